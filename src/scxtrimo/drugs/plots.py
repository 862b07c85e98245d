"""Plots of drug predictions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ..pl._axes import documents_axes, draw_reliability, finish, new_axes


def _same_length(truth: ArrayLike, predicted: ArrayLike) -> pd.DataFrame:
    """Return both as columns, after checking shapes and values."""
    truth_n, predicted_n = (np.asarray(x, dtype=np.float64) for x in (truth, predicted))
    if truth_n.ndim != 1 or truth_n.shape != predicted_n.shape or not len(truth_n):
        raise ValueError(
            "Truth and predictions must have the same length, at least 1, but have the shapes "
            f"{truth_n.shape} and {predicted_n.shape}."
        )
    frame = pd.DataFrame({"truth": truth_n, "predicted": predicted_n})
    if n := int((~np.isfinite(frame)).any(axis=1).sum()):
        raise ValueError(f"{n} rows of truth or predictions are missing or infinite. Drop them.")
    return frame


@documents_axes
def probability_calibration(
    truth: ArrayLike,
    probability: ArrayLike,
    n_bins: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Plot the fraction of synergistic pairs against the predicted probability.

    Parameters
    ----------
    truth, probability
        Classes, 0 and 1, and predicted probabilities of class 1.
    n_bins
        Number of bins with equal numbers of rows.

    Returns
    -------
    The axes. The title has the expected calibration error: the mean distance from the diagonal.

    Examples
    --------
    >>> ax = scxtrimo.pl.probability_calibration([0, 1, 1], [0.1, 0.6, 0.9], show=False)
    >>> ax.get_ylabel()
    'fraction synergistic'
    """
    frame = _same_length(truth, probability)
    if not frame["truth"].isin([0, 1]).all():
        raise ValueError("`truth` must hold 0 and 1 only.")
    columns = frame["predicted"].to_numpy(), frame["truth"].to_numpy()
    labels = "predicted probability", "fraction synergistic"
    return draw_reliability(*columns, n_bins, 0.0, labels, ax, show)


@documents_axes
def observed_predicted(
    truth: ArrayLike,
    predicted: ArrayLike,
    unit: str = "response",
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Plot measured against predicted responses.

    Parameters
    ----------
    truth, predicted
        Measured and predicted responses of the same rows.
    unit
        Name and unit of the response, for the axes.

    Returns
    -------
    The axes. The title has Pearson's correlation.

    Examples
    --------
    >>> ax = scxtrimo.pl.observed_predicted([1, 2, 3], [1.1, 2.3, 2.9], "ln IC50", show=False)
    >>> ax.get_xlabel()
    'predicted ln IC50'
    """
    frame = _same_length(truth, predicted)
    truth_n, predicted_n = frame["truth"], frame["predicted"]
    ax, show = new_axes(ax, show, (3.6, 3.4))
    ends = [frame.min().min(), frame.max().max()]
    ax.plot(ends, ends, color="0.6", linewidth=1)
    ax.scatter(predicted_n, truth_n, s=4, alpha=0.4, linewidths=0, rasterized=True)
    ax.set(xlabel=f"predicted {unit}", ylabel=f"measured {unit}")
    ax.set_title(f"Pearson {truth_n.corr(predicted_n):.3f}", fontsize=10)
    ax.grid(alpha=0.3)
    return finish(ax, show)
