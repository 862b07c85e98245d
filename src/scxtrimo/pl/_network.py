"""Pictures of what a network has learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from ._axes import finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..annotation.model import XTrimoGeneAnnotator
    from ..model.xtrimogene import XTrimoGene
    from ..perturbation.model import XTrimoGenePerturbation

N_VALUES = 400
MIN_WEIGHT = 1e-3
MAX_NAMED = 60


def value_bins(
    model: XTrimoGene | XTrimoGeneAnnotator | XTrimoGenePerturbation,
    n_bins: int | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw how a model divides expression values into bins.

    Every value is a mixture of bins (:class:`~scxtrimo.nn.AutoDiscretization`); the picture shows
    their weights, bins sorted by the value at which they weigh most.

    Parameters
    ----------
    model
        A model.
    n_bins
        Draw only so many bins, those with the greatest weights; by default all.
    ax
        Axes to draw on; by default new ones.
    show
        Whether to show the figure.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If ``n_bins`` is not positive.

    Examples
    --------
    >>> ax = scxtrimo.pl.value_bins(model, show=False)
    >>> ax.get_xlabel()
    'log-normalised expression'
    """
    if n_bins is not None and n_bins < 1:
        raise ValueError(f"n_bins={n_bins} must be positive.")
    highest = np.log1p(1e4)  # all counts of a cell in one gene
    values = torch.linspace(0, float(highest), N_VALUES, device=model.device)
    with torch.no_grad():
        weights_vb = model.module.net.embedding.value.bin_weights(values).float().cpu().numpy()
    greatest = np.argsort(-weights_vb.max(axis=0), kind="stable")[:n_bins]
    weights_bv = weights_vb.T[np.sort(greatest)]
    weights_bv = weights_bv[np.argsort(weights_bv.argmax(axis=1), kind="stable")]
    from matplotlib.colors import LogNorm

    was_given = ax is not None
    ax = new_axes(ax, (4.6, 3.6))
    image = ax.imshow(
        weights_bv,
        extent=(0, highest, 0, len(weights_bv)),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        norm=LogNorm(MIN_WEIGHT, 1.0, clip=True),
    )
    ax.set_xlabel("log-normalised expression")
    ax.set_ylabel("bin, by the value of its peak")
    ax.figure.colorbar(image, ax=ax, label="weight of the bin")
    return finish(ax, was_given, show)


def attention(
    attention: pd.DataFrame,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw how much the encoder attends from gene to gene.

    Parameters
    ----------
    attention
        Genes x genes, see :meth:`scxtrimo.model.XTrimoGene.get_attention`. If nothing is missing,
        genes with similar attention are put side by side; else their order is kept.
    ax
        Axes to draw on; by default new ones.
    show
        Whether to show the figure.

    Returns
    -------
    The axes. More than 60 genes are not named.

    Raises
    ------
    ValueError
        If rows and columns are not the same genes, or all values are missing.

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
            "not read them (`model.input_genes`)."
        )
    order = np.arange(len(values))
    if len(values) > 2 and not is_missing.any():
        from scipy.cluster import hierarchy  # not before someone draws

        both = np.hstack([values, values.T])  # from and to the gene
        order = hierarchy.leaves_list(hierarchy.linkage(both, "average", optimal_ordering=True))
    names = attention.index.astype(str)[order]
    was_given = ax is not None
    side = 2.0 + 0.16 * len(names) if len(names) <= MAX_NAMED else 6.0
    ax = new_axes(ax, (side + 1.2, side))
    ax.set_facecolor("0.85")  # where there is no value
    image = ax.imshow(values[np.ix_(order, order)], cmap="viridis", vmin=0)
    ticks = range(len(names)) if len(names) <= MAX_NAMED else []
    ax.set_xticks(ticks, names if ticks else [], rotation=90, fontsize=8)
    ax.set_yticks(ticks, names if ticks else [], fontsize=8)
    ax.set_xlabel("to gene")
    ax.set_ylabel("from gene")
    ax.figure.colorbar(image, ax=ax, label="mean attention", shrink=0.8)
    return finish(ax, was_given, show)
