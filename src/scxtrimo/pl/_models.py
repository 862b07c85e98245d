"""Plots of trainings, predictions and networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator
from mudata import MuData
from pydantic import PositiveInt
from scipy.cluster.hierarchy import leaves_list, linkage

from .._validation import check
from ._axes import documents_axes, finish, new_axes

if TYPE_CHECKING:
    from scvi.model.base import BaseModelClass

    from ..model.base import XTrimoGeneBase

LOSSES = {"train_loss": "training", "validation_loss": "validation"}
MAX_NAMED = 60


@documents_axes
def training_curves(
    model: BaseModelClass,
    keys: Sequence[str] = tuple(LOSSES),
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw losses, or other entries of the training history, by epoch.

    Parameters
    ----------
    model
        A trained model of any class of ``scxtrimo.model``.
    keys
        Entries of ``model.history``. ``"validation_loss"`` is omitted if there is none.

    Examples
    --------
    >>> ax = scxtrimo.pl.training_curves(model, show=False)
    >>> ax.get_xlabel()
    'epoch'
    """
    history = model.history
    if not history:
        raise ValueError(
            f"This {type(model).__name__} has no history of a training. Call `model.train()` "
            "first; imported and pretrained weights have no history."
        )
    keys = [keys] if isinstance(keys, str) else list(keys)
    drawn = [key for key in keys if key in history]
    unknown = [key for key in keys if key not in history and key != "validation_loss"]
    if unknown or not drawn:
        raise ValueError(
            f"keys={unknown or keys} are not in model.history, which has {sorted(history)}."
        )
    words = {key: LOSSES.get(key, key.replace("_", " ")) for key in drawn}
    ax, show = new_axes(ax, show, (4.2, 3.2))
    for key in drawn:
        values = history[key]
        marker = "o" if len(values) < 2 else None  # a line of one point is invisible
        ax.plot(values.index, np.ravel(values), label=words[key], marker=marker)
    ax.set_xlabel(history[drawn[0]].index.name or "epoch")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    ax.grid(alpha=0.3)
    if len(drawn) > 1:
        ax.set_ylabel("loss" if all("loss" in key for key in drawn) else "")
        ax.legend()
    else:
        ax.set_ylabel(words[drawn[0]])
    return finish(ax, show)


@documents_axes
def masked_prediction(
    model: XTrimoGeneBase,
    adata: AnnData | MuData | None = None,
    indices: Sequence[int] | None = None,
    decoder: Literal["bottleneck", "cross_attention", "performer"] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw measured against predicted expression of expressed genes that were masked.

    Parameters
    ----------
    model
        A trained model.
    adata, indices
        Cells; by default the validation cells of the model's own data.
    decoder
        Decoder, see :meth:`~scxtrimo.model.XTrimoGene.get_normalized_expression`.

    Returns
    -------
    The axes; the title has correlation and error, also of each gene's mean for comparison.

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
        raise ValueError("No expressed gene of these cells was masked; choose more cells.")
    x, y = table[name].to_numpy(), table["measured"].to_numpy()
    ax, show = new_axes(ax, show, (4.4, 3.8))
    low, high = min(0.0, float(x.min())), 1.02 * max(float(x.max()), float(y.max()))
    style: dict[str, Any] = {"bins": "log", "mincnt": 1, "cmap": "viridis", "linewidths": 0.1}
    image = ax.hexbin(x, y, gridsize=45, extent=(low, high, low, high), **style)
    ax.plot([low, high], [low, high], color="C3", linewidth=1)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.set_xlabel(f"predicted ({name.replace('_', ' ')})")
    ax.set_ylabel("measured log-normalised expression")
    title = _scores("hidden genes", x, y)
    if "gene mean" in table:
        title += "\n" + _scores("gene mean", table["gene mean"].to_numpy(), y)
    ax.set_title(title, fontsize=10)
    ax.figure.colorbar(image, ax=ax, label="hidden genes", shrink=0.8)
    return finish(ax, show)


def _scores(name: str, predicted: np.ndarray, truth: np.ndarray) -> str:
    """Return correlation (NaN for constants) and error as text."""
    r = np.corrcoef(predicted, truth)[0, 1] if predicted.std() and truth.std() else np.nan
    return f"{name}: r = {r:.2f}, MSE = {np.square(predicted - truth).mean():.2f}"


@documents_axes
def value_bins(
    model: XTrimoGeneBase,
    n_bins: int | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw the weights of the bins of values, see :class:`~scxtrimo.nn.AutoDiscretization`.

    Parameters
    ----------
    model
        A model.
    n_bins
        Draw only the bins with the greatest weights; by default all.

    Examples
    --------
    >>> ax = scxtrimo.pl.value_bins(model, show=False)
    >>> ax.get_xlabel()
    'log-normalised expression'
    """
    check("n_bins", n_bins, PositiveInt | None)
    highest = float(np.log1p(1e4))  # all counts of a cell in one gene
    values = torch.linspace(0, highest, 400, device=model.device)
    with torch.no_grad():
        weights_vb = model.module.net.embedding.value.bin_weights(values).float().cpu().numpy()
    greatest = np.argsort(-weights_vb.max(axis=0), kind="stable")[:n_bins]
    weights_bv = weights_vb.T[np.sort(greatest)]
    weights_bv = weights_bv[np.argsort(weights_bv.argmax(axis=1), kind="stable")]
    ax, show = new_axes(ax, show, (4.6, 3.6))
    style: dict[str, Any] = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    extent, norm = (0, highest, 0, len(weights_bv)), LogNorm(1e-3, 1.0, clip=True)
    image = ax.imshow(weights_bv, "viridis", norm, extent=extent, **style)
    ax.set(xlabel="log-normalised expression", ylabel="bin, by the value of its peak")
    ax.figure.colorbar(image, ax=ax, label="weight of the bin")
    return finish(ax, show)


@documents_axes
def attention(attention: pd.DataFrame, ax: Axes | None = None, show: bool | None = None) -> Axes:
    """Draw the attention of the encoder from gene to gene.

    Parameters
    ----------
    attention
        Genes x genes, see :meth:`scxtrimo.model.XTrimoGene.get_attention`. Unless values are
        missing, genes with similar attention are put side by side.

    Returns
    -------
    The axes. Names of more than 60 genes are omitted.

    Examples
    --------
    >>> table = model.get_attention(["CD3D", "CD3E", "NKG7", "GNLY"])
    >>> ax = scxtrimo.pl.attention(table, show=False)
    >>> ax.get_xlabel()
    'to gene'
    """
    if not isinstance(attention, pd.DataFrame) or not attention.index.equals(attention.columns):
        raise ValueError(
            "attention must be a data frame with the same genes as rows and columns, as "
            "`model.get_attention(gene_list)` returns it."
        )
    values = attention.to_numpy(dtype=np.float64)
    is_missing = np.isnan(values)
    if is_missing.all():
        raise ValueError(
            "attention has no value: no cell expresses two of these genes, or the encoder does "
            "not read them. Choose from `model.input_genes`."
        )
    order = np.arange(len(values))
    if len(values) > 2 and not is_missing.any():
        both = np.hstack([values, values.T])  # from and to the gene
        order = leaves_list(linkage(both, "average", optimal_ordering=True))
    names = attention.index.astype(str)[order]
    side = 2.0 + 0.16 * len(names) if len(names) <= MAX_NAMED else 6.0
    ax, show = new_axes(ax, show, (side + 1.2, side))
    ax.set_facecolor("0.85")  # missing values
    image = ax.imshow(values[np.ix_(order, order)], cmap="viridis", vmin=0)
    named = names if len(names) <= MAX_NAMED else []
    ax.set_xticks(range(len(named)), named, rotation=90, fontsize=8)
    ax.set_yticks(range(len(named)), named, fontsize=8)
    ax.set(xlabel="to gene", ylabel="from gene")
    ax.figure.colorbar(image, ax=ax, label="mean attention", shrink=0.8)
    return finish(ax, show)
