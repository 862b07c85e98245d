"""Plots of drug predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..pl._axes import draw_reliability, finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    ax, show
        Axes to draw on, by default new ones, and whether to show the figure.

    Returns
    -------
    The axes. The title has the expected calibration error: the mean distance from the diagonal.

    Raises
    ------
    ValueError
        If lengths differ, values are missing, or truth is not 0 or 1.

    Examples
    --------
    >>> ax = scxtrimo.pl.probability_calibration([0, 1, 1], [0.1, 0.6, 0.9], show=False)
    >>> ax.get_ylabel()
    'fraction synergistic'
    """
    frame = _same_length(truth, probability)
    if not frame["truth"].isin([0, 1]).all():
        raise ValueError("`truth` must hold 0 and 1 only.")
    predicted, came_true = (frame[name].to_numpy() for name in ("predicted", "truth"))
    drawn = draw_reliability(ax, predicted, came_true, n_bins, low=0.0)
    drawn.set(xlabel="predicted probability", ylabel="fraction synergistic")
    return finish(drawn, ax is not None, show)


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
    ax, show
        See :func:`probability_calibration`.

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
    drawn = new_axes(ax, (3.6, 3.4))
    ends = [frame.min().min(), frame.max().max()]
    drawn.plot(ends, ends, color="0.6", linewidth=1)
    drawn.scatter(predicted_n, truth_n, s=4, alpha=0.4, linewidths=0, rasterized=True)
    drawn.set(xlabel=f"predicted {unit}", ylabel=f"measured {unit}")
    drawn.set_title(f"Pearson {truth_n.corr(predicted_n):.3f}", fontsize=10)
    drawn.grid(alpha=0.3)
    return finish(drawn, ax is not None, show)
