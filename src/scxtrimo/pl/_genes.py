"""Plots of the genes of a model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes

from ..data.vocabulary import COVERAGE_KEY, preview
from ..tl._genes import UNASSIGNED, find_modules, gene_graph
from ._axes import documents_axes, finish, new_axes

SEED = 0


@documents_axes
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
        Number of genes to name per module.

    Examples
    --------
    >>> ax = scxtrimo.pl.gene_modules(model.get_gene_embeddings(), show=False)
    >>> ax.get_legend().get_texts()[0].get_text().startswith("0: ")
    True
    """
    if modules is not None and len(lost := embeddings.index.difference(modules.index)):
        raise ValueError(
            f"modules lacks {len(lost)} of the {len(embeddings)} genes of embeddings: "
            f"{preview(lost)}. Compute it with `scxtrimo.tl.gene_modules(embeddings)`."
        )
    genes = gene_graph(embeddings, 10, SEED)
    if modules is None:
        modules = find_modules(genes, embeddings.index, seed=SEED)
    sc.tl.umap(genes, random_state=SEED)
    modules = modules[modules.index.isin(embeddings.index)]
    modules = modules.sort_values("similarity", ascending=False, kind="stable")
    members = {str(name): part.index for name, part in modules.groupby("module", observed=True)}
    members.pop(UNASSIGNED, None)
    names = sorted(members, key=lambda name: (len(name), name))
    central = [", ".join(map(str, members[name][:n_labels])) for name in names]
    labels = [f"{name}: {text}".rstrip(": ") for name, text in zip(names, central, strict=True)]
    module_of = modules["module"].astype(str).reindex(embeddings.index)
    module_of = module_of.map(dict(zip(names, labels, strict=True)))  # missing if unassigned
    genes.obs["module"] = pd.Categorical(module_of.to_numpy(), labels)
    ax, show = new_axes(ax, show, (7.0, max(4.0, 0.22 * len(names) + 0.6)))
    palette = sc.pl.palettes.default_20 if len(names) <= 20 else sc.pl.palettes.default_102
    options = {"palette": palette, "size": 30, "title": "", "na_in_legend": False}
    sc.pl.umap(genes, color="module", ax=ax, show=False, **options)
    for label, name in zip(labels, names, strict=True):
        x, y = np.median(genes[genes.obs["module"] == label].obsm["X_umap"], axis=0)
        box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.7, "linewidth": 0}
        ax.text(x, y, name, ha="center", va="center", fontsize=9, weight="bold", bbox=box)
    if names:
        place = (1.0, 0.5)
        legend = ax.legend(loc="center left", bbox_to_anchor=place, fontsize=7, frameon=False)
        legend.set_title("module: most central genes")
        legend.get_title().set_fontsize(8)
        legend.set_alignment("left")
    return finish(ax, show)


@documents_axes
def gene_coverage(adata: AnnData, ax: Axes | None = None, show: bool | None = None) -> Axes:
    """Draw how many genes of a model were found in other data.

    Parameters
    ----------
    adata
        Data that a model was applied to, with ``adata.uns["scxtrimo_gene_coverage"]``.

    Examples
    --------
    >>> query = adata[:100, :300].copy()
    >>> model.prepare_query_anndata(query)
    >>> scxtrimo.pl.gene_coverage(query, show=False).get_title()
    "39.2% of the model's 765 genes found, identifiers from 'var_names'"
    """
    if COVERAGE_KEY not in adata.uns:
        raise ValueError(
            f"adata.uns[{COVERAGE_KEY!r}] is missing. It is written when a model is applied to "
            "other data: `model.prepare_query_anndata(adata)`, or any method with `adata=`."
        )
    report = adata.uns[COVERAGE_KEY]
    counts = [int(report[f"n_{name}"]) for name in ("matched", "renamed", "missing", "unused")]
    matched, renamed, missing, unused = counts
    shared = [("found by identifier", matched, "C0"), ("under another name", renamed, "C9")]
    bars = [[*shared, ("missing", missing, "C3")], [*shared, ("not used", unused, "0.7")]]
    ax, show = new_axes(ax, show, (6.4, 2.2))
    total = matched + renamed + max(missing, unused)
    for y, bar in enumerate(bars):
        left = 0
        for i, (text, n, color) in enumerate(bar):
            label = text if y == 0 or i == 2 else None
            ax.barh(y, n, left=left, color=color, height=0.6, label=label)
            if n > 0.06 * total:  # otherwise the number does not fit
                ax.text(left + n / 2, y, f"{n:,}", ha="center", va="center", fontsize=8)
            left += n
    ax.set_yticks([0, 1], ["genes of the model", "genes of the data"])
    ax.invert_yaxis()
    ax.set_xlabel("genes")
    ax.set_title(
        f"{report['overlap']:.1%} of the model's {matched + renamed + missing:,} genes found, "
        f"identifiers from {report['source']!r}",
        fontsize=10,
    )
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=4, fontsize=8, frameon=False)
    return finish(ax, show)
