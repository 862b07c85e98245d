"""Drawing that several plots share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def new_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the axes to draw on, by default new ones of the given size in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def new_grid(
    shape: tuple[int, int], size: tuple[float, float], for_legends: float = 0.0
) -> np.ndarray:
    """Return an array of new axes of the given size in inches, with room for legends."""
    import matplotlib.pyplot as plt

    n_rows, n_columns = shape
    figsize = (size[0] * n_columns + for_legends, size[1] * n_rows)
    return plt.subplots(*shape, figsize=figsize, layout="constrained", squeeze=False)[1]


def finish(ax: Axes, was_given: bool, show: bool | None) -> Axes:
    """Show the figure if asked to, by default if it was made here, and return the axes."""
    import matplotlib.pyplot as plt

    if show or (show is None and not was_given and plt.isinteractive()):
        plt.show()
    return ax


def draw_reliability(
    ax: Axes | None, probability: np.ndarray, came_true: np.ndarray, n_bins: int, low: float
) -> Axes:
    """Draw the observed fraction against the probability, in bins of equally many rows.

    The diagonal starts at ``low`` at the latest. The title has the expected calibration error.
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
