"""Pictures of predictions for drugs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..pl._axes import draw_reliability, finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _same_length(truth: ArrayLike, predicted: ArrayLike) -> pd.DataFrame:
    """Return both as columns, after checking that they belong together."""
    truth_n = np.asarray(truth, dtype=np.float64)
    predicted_n = np.asarray(predicted, dtype=np.float64)
    if truth_n.ndim != 1 or truth_n.shape != predicted_n.shape or not len(truth_n):
        raise ValueError(
            "Truth and predictions must be of one length, at least 1, but have the shapes "
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
    """Draw how often pairs of some probability are synergistic.

    Parameters
    ----------
    truth
        Classes, 0 and 1.
    probability
        Predicted probabilities of class 1.
    n_bins
        Number of bins, of equally many rows each.
    ax
        Axes to draw on; by default new ones.
    show
        Whether to show the figure.

    Returns
    -------
    The axes. The title has the expected calibration error: the mean distance from the diagonal.

    Raises
    ------
    ValueError
        If truth and probabilities do not belong together, or truth is not 0 or 1.

    Examples
    --------
    >>> ax = scxtrimo.pl.probability_calibration([0, 1, 1], [0.1, 0.6, 0.9], show=False)
    >>> ax.get_ylabel()
    'part that is synergistic'
    """
    frame = _same_length(truth, probability)
    if not frame["truth"].isin([0, 1]).all():
        raise ValueError("`truth` must hold 0 and 1 only.")
    was_given = ax is not None
    predicted, came_true = (frame[name].to_numpy() for name in ("predicted", "truth"))
    ax = draw_reliability(ax, predicted, came_true, n_bins, low=0.0)
    ax.set_xlabel("predicted probability")
    ax.set_ylabel("part that is synergistic")
    return finish(ax, was_given, show)


def observed_predicted(
    truth: ArrayLike,
    predicted: ArrayLike,
    unit: str = "response",
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw measured against predicted responses.

    Parameters
    ----------
    truth, predicted
        Responses, of the same rows.
    unit
        What they are, for the axes.
    ax, show
        See :func:`probability_calibration`.

    Returns
    -------
    The axes. The title has Pearson's correlation.

    Raises
    ------
    ValueError
        If truth and predictions do not belong together.

    Examples
    --------
    >>> ax = scxtrimo.pl.observed_predicted([1, 2, 3], [1.1, 2.3, 2.9], "ln IC50", show=False)
    >>> ax.get_xlabel()
    'predicted ln IC50'
    """
    frame = _same_length(truth, predicted)
    was_given = ax is not None
    ax = new_axes(ax, (3.6, 3.4))
    low, high = frame.min().min(), frame.max().max()
    ax.plot([low, high], [low, high], color="0.6", linewidth=1)
    ax.scatter(frame["predicted"], frame["truth"], s=4, alpha=0.4, linewidths=0, rasterized=True)
    ax.set_xlabel(f"predicted {unit}")
    ax.set_ylabel(f"measured {unit}")
    ax.set_title(f"Pearson {frame['truth'].corr(frame['predicted']):.3f}", fontsize=10)
    ax.grid(alpha=0.3)
    return finish(ax, was_given, show)
