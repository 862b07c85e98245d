"""What plots share: axes, showing the figure, and what docstrings say of both."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

Plot = TypeVar("Plot", bound=Callable)


def documents_axes(plot: Plot) -> Plot:
    """Add ``ax`` and ``show`` to the docstring of a plot, and, unless it has some, Returns."""
    text, _, examples = inspect.cleandoc(plot.__doc__ or "").partition("\nExamples\n")
    parameters, _, returned = text.partition("\nReturns\n-------\n")
    returned = returned or "The axes.\n"
    plot.__doc__ = (
        f"{parameters}ax, show\n"
        "    Axes to draw on, by default new ones; whether to show the figure.\n\n"
        f"Returns\n-------\n{returned}\nExamples\n{examples}"
    )
    return plot


def new_axes(ax: Axes | None, show: bool | None, size: tuple[float, float]) -> tuple[Axes, bool]:
    """Return the axes, by default new ones of a size in inches, and whether to show the figure.

    By default a figure is shown if it is made here and matplotlib is interactive.
    """
    show = ax is None and plt.isinteractive() if show is None else show
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax, show


def finish(ax: Axes, show: bool) -> Axes:
    """Show the figure if asked to, and return the axes."""
    if show:
        plt.show()
    return ax


def draw_reliability(
    probability: np.ndarray,
    came_true: np.ndarray,
    n_bins: int,
    low: float,
    labels: tuple[str, str],
    ax: Axes | None,
    show: bool | None,
) -> Axes:
    """Draw the observed fraction in bins of equally many rows, and a diagonal from ``low``."""
    parts = np.array_split(np.argsort(probability, kind="stable"), min(n_bins, len(probability)))
    x = np.array([probability[part].mean() for part in parts])
    y = np.array([came_true[part].mean() for part in parts])
    error = np.average(np.abs(x - y), weights=[len(part) for part in parts])
    ax, show = new_axes(ax, show, (3.6, 3.4))
    low = min(x.min(), y.min(), low)
    ax.plot([low, 1], [low, 1], color="0.6", linewidth=1)
    ax.plot(x, y, marker="o")
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.set_title(f"expected calibration error {error:.3f}", fontsize=10)
    ax.grid(alpha=0.3)
    return finish(ax, show)
