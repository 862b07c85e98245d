"""Drawing that several plots share."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes


def new_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the axes to draw on, by default new ones of the given size in inches."""
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def finish(ax: Axes, was_given: bool, show: bool | None) -> Axes:
    """Show the figure if asked to, by default if it was made here, and return the axes."""
    if show or (show is None and not was_given and plt.isinteractive()):
        plt.show()
    return ax


def draw_reliability(
    ax: Axes | None, probability: np.ndarray, came_true: np.ndarray, n_bins: int, low: float
) -> Axes:
    """Draw the observed fraction in bins of equally many rows, and a diagonal from ``low``."""
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
