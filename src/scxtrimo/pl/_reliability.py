"""How often predictions of some probability come true."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_reliability(
    ax: Axes | None, probability: np.ndarray, came_true: np.ndarray, n_bins: int, low: float
) -> Axes:
    """Draw the part that came true against the probability, in bins of equally many rows.

    Parameters
    ----------
    ax
        Axes to draw on; ``None`` for new ones.
    probability, came_true
        Probability of every row, and whether it came true.
    n_bins
        Number of bins.
    low
        Where the diagonal starts at the latest.

    Returns
    -------
    The axes. The title has the expected calibration error.
    """
    parts = np.array_split(np.argsort(probability, kind="stable"), min(n_bins, len(probability)))
    x = np.array([probability[part].mean() for part in parts])
    y = np.array([came_true[part].mean() for part in parts])
    error = np.average(np.abs(x - y), weights=[len(part) for part in parts])
    ax = new_axes(ax, (3.6, 3.4))
    low = min(x.min(), y.min(), low)
    ax.plot([low, 1], [low, 1], color="0.6", linewidth=1)
    ax.plot(x, y, marker="o")
    ax.set_title(f"expected calibration error {error:.3f}", fontsize=10)
    ax.grid(alpha=0.3)
    return ax
