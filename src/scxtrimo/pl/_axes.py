"""What all plots do the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def new_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the axes to draw on, new ones of the given size in inches if there are none."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # not before someone draws

    return plt.subplots(figsize=size, layout="constrained")[1]


def new_grid(
    shape: tuple[int, int], size: tuple[float, float], for_legends: float = 0.0
) -> np.ndarray:
    """Return an array of new axes of the given size, and room for legends, in inches."""
    import matplotlib.pyplot as plt

    n_rows, n_columns = shape
    figsize = (size[0] * n_columns + for_legends, size[1] * n_rows)
    return plt.subplots(*shape, figsize=figsize, layout="constrained", squeeze=False)[1]


def finish(ax: Axes, was_given: bool, show: bool | None) -> Axes:
    """Show the figure if asked to, by default if it was made here, and return the axes.

    Parameters
    ----------
    ax
        What was drawn on.
    was_given
        Whether the caller brought the axes.
    show
        What the caller said.
    """
    import matplotlib.pyplot as plt

    if show or (show is None and not was_given and plt.isinteractive()):
        plt.show()
    return ax
