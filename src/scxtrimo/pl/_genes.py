"""Pictures of the genes of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from ..data.vocabulary import COVERAGE_KEY, preview
from ..tl._genes import UNASSIGNED, find_modules, gene_graph
from ._axes import finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEED = 0
N_NEIGHBORS = 10


def gene_modules(
    embeddings: pd.DataFrame,
    modules: pd.DataFrame | None = None,
    n_labels: int = 5,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw the UMAP of genes, coloured by module; the legend names the most central genes.

    Parameters
    ----------
    embeddings
        Genes x dimensions, as of :meth:`scxtrimo.model.XTrimoGene.get_gene_embeddings`.
    modules
        See :func:`scxtrimo.tl.gene_modules`; by default with its defaults.
    n_labels
        How many genes to name per module.
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
        If the modules are those of other genes.

    Examples
    --------
    >>> ax = scxtrimo.pl.gene_modules(model.get_gene_embeddings(), show=False)
    >>> ax.get_legend().get_texts()[0].get_text().startswith("0: ")
    True
    """
    if modules is not None and len(lost := embeddings.index.difference(modules.index)):
        raise ValueError(
            f"modules lacks {len(lost)} of the {len(embeddings)} genes of embeddings: "
            f"{preview(lost)}. Make it of these: `scxtrimo.tl.gene_modules(embeddings)`."
        )
    genes = gene_graph(embeddings, N_NEIGHBORS, SEED)
    if modules is None:
        modules = find_modules(genes, embeddings.index, seed=SEED)
    sc.tl.umap(genes, random_state=SEED)
    places = pd.DataFrame(genes.obsm["X_umap"], index=embeddings.index)
    modules = modules[modules.index.isin(places.index)]
    central_first = modules.sort_values("similarity", ascending=False, kind="stable")
    module_of = central_first["module"].astype(str)
    names = sorted(set(module_of) - {UNASSIGNED}, key=lambda name: (len(name), name))
    palette = sc.pl.palettes.default_20 if len(names) <= 20 else sc.pl.palettes.default_102
    was_given = ax is not None
    ax = new_axes(ax, (7.0, max(4.0, 0.22 * len(names) + 0.6)))
    rest = places.loc[module_of.index[module_of == UNASSIGNED]]
    ax.scatter(rest[0], rest[1], s=6, color="0.8", linewidths=0, rasterized=True)
    for i, name in enumerate(names):
        members = module_of.index[module_of == name]
        x, y = places.loc[members].to_numpy().T
        label = f"{name}: {', '.join(map(str, members[:n_labels]))}".rstrip(": ")
        color = palette[i % len(palette)]
        ax.scatter(x, y, s=8, color=color, linewidths=0, label=label, rasterized=True)
        ax.annotate(
            name,
            (float(np.median(x)), float(np.median(y))),
            ha="center",
            va="center",
            fontsize=9,
            weight="bold",
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.7, "linewidth": 0},
        )
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("UMAP1")
    ax.set_ylabel("UMAP2")
    if names:
        ax.legend(
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            fontsize=7,
            frameon=False,
            markerscale=2,
            title="module: most central genes",
            title_fontsize=8,
            alignment="left",
        )
    return finish(ax, was_given, show)


def gene_coverage(adata: AnnData, ax: Axes | None = None, show: bool | None = None) -> Axes:
    """Draw how many genes of a model other data have.

    Parameters
    ----------
    adata
        Data that a model was applied to, with the report of the alignment in
        ``adata.uns["scxtrimo_gene_coverage"]``.
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
        If there is no report.

    Examples
    --------
    >>> query = adata[:100, :300].copy()
    >>> model.prepare_query_anndata(query)
    >>> scxtrimo.pl.gene_coverage(query, show=False).get_title()
    "39.2% of the model's 765 genes found, identifiers from 'var_names'"
    """
    if COVERAGE_KEY not in adata.uns:
        raise ValueError(
            f"adata.uns[{COVERAGE_KEY!r}] is not there. It is written when a model is applied to "
            "other data: `model.prepare_query_anndata(adata)`, or any method with `adata=`."
        )
    report = adata.uns[COVERAGE_KEY]
    matched, renamed, missing, unused = (
        int(report[f"n_{name}"]) for name in ("matched", "renamed", "missing", "unused")
    )
    bars = {
        "genes of the model": {
            "found by identifier": (matched, "C0"),
            "under another name": (renamed, "C9"),
            "missing": (missing, "C3"),
        },
        "genes of the data": {
            "found by identifier": (matched, "C0"),
            "under another name": (renamed, "C9"),
            "not used": (unused, "0.7"),
        },
    }
    was_given = ax is not None
    ax = new_axes(ax, (6.4, 2.2))
    total = max(matched + renamed + missing, matched + renamed + unused)
    for y, parts in enumerate(bars.values()):
        left = 0
        for text, (n, color) in parts.items():
            label = text if y == 0 or text == "not used" else None
            ax.barh(y, n, left=left, color=color, height=0.6, label=label)
            if n > 0.06 * total:  # else there is no room
                ax.text(left + n / 2, y, f"{n:,}", ha="center", va="center", fontsize=8)
            left += n
    ax.set_yticks(range(len(bars)), list(bars))
    ax.invert_yaxis()
    ax.set_xlabel("genes")
    ax.set_title(
        f"{report['overlap']:.1%} of the model's {matched + renamed + missing:,} genes found, "
        f"identifiers from {report['source']!r}",
        fontsize=10,
    )
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=4, fontsize=8, frameon=False)
    return finish(ax, was_given, show)
