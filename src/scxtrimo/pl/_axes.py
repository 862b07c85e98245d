"""What all plots do the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def new_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the axes to draw on, new ones of the given size in inches if there are none."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # not before someone draws

    return plt.subplots(figsize=size, layout="constrained")[1]


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
