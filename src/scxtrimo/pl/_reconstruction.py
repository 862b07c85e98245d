"""Pictures of what is predicted for genes that were hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from mudata import MuData

from ._axes import finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..annotation.model import XTrimoGeneAnnotator
    from ..model._expression import DecoderName
    from ..model.xtrimogene import XTrimoGene
    from ..perturbation.model import XTrimoGenePerturbation


def masked_prediction(
    model: XTrimoGene | XTrimoGeneAnnotator | XTrimoGenePerturbation,
    adata: AnnData | MuData | None = None,
    indices: Sequence[int] | None = None,
    decoder: DecoderName | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw measured against predicted expression of expressed genes that were hidden.

    Parameters
    ----------
    model
        A trained model.
    adata, indices
        Cells; by default the validation cells of the model's own data.
    decoder
        Which decoder predicts, see
        :meth:`~scxtrimo.model.XTrimoGene.get_normalized_expression`.
    ax
        Axes to draw on; by default new ones.
    show
        Whether to show the figure.

    Returns
    -------
    The axes. The title has Pearson's correlation and the mean squared error, and for comparison
    those of the gene's mean over the training cells.

    Raises
    ------
    ValueError
        If the model has no such decoder, or no expressed gene was hidden.

    Examples
    --------
    >>> ax = scxtrimo.pl.masked_prediction(model, show=False)
    >>> ax.get_ylabel()
    'measured log-normalised expression'
    """
    name = model._decoder(decoder)
    table = model.get_masked_predictions(adata, indices)
    table = table[table["measured"] > 0]
    if table.empty:
        raise ValueError("No expressed gene of these cells was hidden; name more cells.")
    x, y = table[name].to_numpy(), table["measured"].to_numpy()
    was_given = ax is not None
    ax = new_axes(ax, (4.4, 3.8))
    low, high = min(0.0, float(x.min())), 1.02 * max(float(x.max()), float(y.max()))
    image = ax.hexbin(
        x,
        y,
        gridsize=45,
        extent=(low, high, low, high),
        bins="log",
        mincnt=1,
        cmap="viridis",
        linewidths=0.1,
    )
    ax.plot([low, high], [low, high], color="C3", linewidth=1)
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.set_aspect("equal")
    ax.set_xlabel(f"predicted ({name.replace('_', ' ')})")
    ax.set_ylabel("measured log-normalised expression")
    title = _scores("hidden genes", x, y)
    if "gene mean" in table:
        title += "\n" + _scores("gene mean", table["gene mean"].to_numpy(), y)
    ax.set_title(title, fontsize=10)
    ax.figure.colorbar(image, ax=ax, label="hidden genes", shrink=0.8)
    return finish(ax, was_given, show)


def _scores(name: str, predicted: np.ndarray, truth: np.ndarray) -> str:
    """Return correlation and error as text; a constant has no correlation."""
    r = np.corrcoef(predicted, truth)[0, 1] if predicted.std() and truth.std() else np.nan
    return f"{name}: r = {r:.2f}, MSE = {np.square(predicted - truth).mean():.2f}"
