"""Pictures of how good an annotation is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .. import tl
from ..pl._axes import draw_reliability, finish, new_axes
from .tools import UNCALLED, UNKNOWN, called_cells, labelled_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAMED = 25
DARK = 0.55


def annotation_confusion(
    labels: ArrayLike,
    predicted: ArrayLike,
    unknown: str | None = UNKNOWN,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw which labels are taken for which.

    Every row shows where the cells of a label went, as parts of one; the number of its cells is
    beside its name. Labels that are only predicted have no row.

    Parameters
    ----------
    labels, predicted, unknown
        See :func:`scxtrimo.tl.annotation_report`.
    ax
        Axes to draw on; by default new ones.
    show
        Whether to show the figure.

    Returns
    -------
    The axes.

    Examples
    --------
    >>> ax = scxtrimo.pl.annotation_confusion(["B", "B", "T"], ["B", "T", "T"], show=False)
    >>> ax.get_xlabel()
    'predicted'
    """
    frame = called_cells(labels, predicted, unknown)
    counts = pd.crosstab(frame["label"], frame["predicted"])
    rows = list(counts.index)
    others = [name for name in counts.columns if name not in rows and name != UNCALLED]
    columns = rows + others + ([UNCALLED] if UNCALLED in counts.columns else [])
    counts = counts.reindex(columns=columns, fill_value=0)
    columns = [(unknown or UNKNOWN) if name == UNCALLED else name for name in columns]
    n_cells = counts.sum(axis=1)
    parts = counts.div(n_cells, axis=0).to_numpy()
    was_given = ax is not None
    size = (2.2 + 0.42 * len(columns), 1.6 + 0.38 * len(rows))
    ax = new_axes(ax, size)
    image = ax.imshow(parts, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=90)
    ax.set_yticks(
        range(len(rows)), [f"{name} ({n:,})" for name, n in zip(rows, n_cells, strict=True)]
    )
    ax.set_xlabel("predicted")
    ax.set_ylabel("label (cells)")
    if len(columns) <= MAX_NAMED:
        for i, j in np.argwhere(parts >= 0.005):
            color = "white" if parts[i, j] > DARK else "black"
            text = f"{parts[i, j]:.2f}".lstrip("0")
            ax.text(j, i, text, ha="center", va="center", color=color, fontsize=7)
    ax.figure.colorbar(image, ax=ax, label="part of the cells", shrink=0.8)
    return finish(ax, was_given, show)


def coverage_accuracy(
    labels: ArrayLike,
    predicted: ArrayLike,
    confidence: ArrayLike,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw how many cells get a label, and how many of these are right, by threshold.

    Parameters
    ----------
    labels, predicted, confidence
        See :func:`scxtrimo.tl.coverage_accuracy`.
    ax, show
        See :func:`annotation_confusion`.

    Returns
    -------
    The axes.

    Examples
    --------
    >>> ax = scxtrimo.pl.coverage_accuracy(["B", "T"], ["B", "B"], [0.9, 0.6], show=False)
    >>> ax.get_ylabel()
    'part of the cells'
    """
    curve = tl.coverage_accuracy(labels, predicted, confidence)
    was_given = ax is not None
    ax = new_axes(ax, (4.2, 3.2))
    for column, text in (("coverage", "that get a label"), ("accuracy", "of these, right")):
        ax.plot(curve["min_confidence"], curve[column], label=text)
    ax.set_xlabel("min_confidence")
    ax.set_ylabel("part of the cells")
    ax.set_ylim(0, 1.02)
    ax.grid(alpha=0.3)
    ax.legend(loc="lower left")
    return finish(ax, was_given, show)


def calibration(
    labels: ArrayLike,
    predicted: ArrayLike,
    confidence: ArrayLike,
    n_bins: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw how often predictions of some confidence are right.

    Parameters
    ----------
    labels, predicted, confidence
        See :func:`scxtrimo.tl.coverage_accuracy`.
    n_bins
        Number of bins, of equally many cells each.
    ax, show
        See :func:`annotation_confusion`.

    Returns
    -------
    The axes. The title has the expected calibration error: the mean distance from the diagonal.

    Examples
    --------
    >>> ax = scxtrimo.pl.calibration(["B", "T"], ["B", "B"], [0.9, 0.6], n_bins=2, show=False)
    >>> ax.get_xlabel()
    'confidence'
    """
    frame = labelled_cells(labels, predicted, confidence)
    was_given = ax is not None
    sure, right = frame["confidence"].to_numpy(), frame["right"].to_numpy()
    ax = draw_reliability(ax, sure, right, n_bins, low=0.5)
    ax.set_xlabel("confidence")
    ax.set_ylabel("accuracy")
    return finish(ax, was_given, show)
