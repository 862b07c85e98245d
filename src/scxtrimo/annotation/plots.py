"""Plots of how good an annotation is."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ..pl._axes import documents_axes, draw_reliability, finish, new_axes
from . import tools
from .tools import UNCALLED, UNKNOWN, called_cells, labelled_cells


@documents_axes
def annotation_confusion(
    labels: ArrayLike,
    predicted: ArrayLike,
    unknown: str | None = UNKNOWN,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw a confusion matrix: the fractions of the predictions, by label in rows.

    Parameters
    ----------
    labels, predicted, unknown
        See :func:`scxtrimo.tl.annotation_report`.

    Examples
    --------
    >>> ax = scxtrimo.pl.annotation_confusion(["B", "B", "T"], ["B", "T", "T"], show=False)
    >>> ax.get_xlabel()
    'predicted'
    """
    frame = called_cells(labels, predicted, unknown)
    parts = pd.crosstab(frame["label"], frame["predicted"], normalize="index")
    n_cells = frame["label"].value_counts()
    rows = [f"{name} ({n_cells[name]:,})" for name in parts.index]
    others = [name for name in parts.columns if name not in n_cells and name != UNCALLED]
    uncalled = [UNCALLED] if UNCALLED in parts.columns else []
    parts = parts.reindex(columns=[*parts.index, *others, *uncalled], fill_value=0.0)
    columns = [(unknown or UNKNOWN) if name == UNCALLED else name for name in parts.columns]
    ax, show = new_axes(ax, show, (2.2 + 0.42 * len(columns), 1.6 + 0.38 * len(rows)))
    image = ax.imshow(parts, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=90)
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlabel="predicted", ylabel="label (cells)")
    if len(columns) <= 25:  # otherwise the numbers do not fit
        for (i, j), part in np.ndenumerate(parts):
            if part >= 0.005:
                color, text = "white" if part > 0.55 else "black", f"{part:.2f}".lstrip("0")
                ax.text(j, i, text, ha="center", va="center", color=color, fontsize=7)
    ax.figure.colorbar(image, ax=ax, label="fraction of the cells", shrink=0.8)
    return finish(ax, show)


@documents_axes
def coverage_accuracy(
    labels: ArrayLike,
    predicted: ArrayLike,
    confidence: ArrayLike,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw the fraction of cells that get a label, and their accuracy, by threshold.

    Parameters
    ----------
    labels, predicted, confidence
        See :func:`scxtrimo.tl.coverage_accuracy`.

    Examples
    --------
    >>> ax = scxtrimo.pl.coverage_accuracy(["B", "T"], ["B", "B"], [0.9, 0.6], show=False)
    >>> ax.get_ylabel()
    'fraction of the cells'
    """
    curve = tools.coverage_accuracy(labels, predicted, confidence)
    ax, show = new_axes(ax, show, (4.2, 3.2))
    for column, label in (("coverage", "labelled"), ("accuracy", "correct among labelled")):
        ax.plot(curve["min_confidence"], curve[column], label=label)
    ax.set(xlabel="min_confidence", ylabel="fraction of the cells", ylim=(0, 1.02))
    ax.grid(alpha=0.3)
    ax.legend(loc="lower left")
    return finish(ax, show)


@documents_axes
def calibration(
    labels: ArrayLike,
    predicted: ArrayLike,
    confidence: ArrayLike,
    n_bins: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw the accuracy of predictions against their confidence.

    Parameters
    ----------
    labels, predicted, confidence
        See :func:`scxtrimo.tl.coverage_accuracy`.
    n_bins
        Number of bins, with equal numbers of cells.

    Returns
    -------
    The axes; the title has the expected calibration error, the mean distance from the diagonal.

    Examples
    --------
    >>> ax = scxtrimo.pl.calibration(["B", "T"], ["B", "B"], [0.9, 0.6], n_bins=2, show=False)
    >>> ax.get_xlabel()
    'confidence'
    """
    frame = labelled_cells(labels, predicted, confidence)
    columns = frame["confidence"].to_numpy(), frame["right"].to_numpy()
    return draw_reliability(*columns, n_bins, 0.5, ("confidence", "accuracy"), ax, show)
