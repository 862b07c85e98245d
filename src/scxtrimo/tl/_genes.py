"""Modules of genes with similar embeddings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from ._agreement import leiden

UNASSIGNED = "unassigned"


def gene_modules(
    embeddings: pd.DataFrame,
    n_neighbors: int = 10,
    resolution: float = 1.0,
    min_genes: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Cluster genes by their embeddings.

    Parameters
    ----------
    embeddings
        Genes x dimensions, as of :meth:`scxtrimo.model.XTrimoGene.get_gene_embeddings`.
    n_neighbors, seed
        Nearest neighbours per gene, by cosine, and seed of neighbours and clustering.
    resolution
        Resolution of the Leiden clustering; higher values give more and smaller modules.
    min_genes
        Genes of smaller clusters are ``"unassigned"``.

    Returns
    -------
    Data frame with genes as index, sorted by the columns ``module`` (categorical; ``"0"`` is the
    largest, ``"unassigned"`` comes last) and ``similarity``, the cosine between a gene and the
    centre of its module (NaN if unassigned).

    Examples
    --------
    >>> modules = scxtrimo.tl.gene_modules(model.get_gene_embeddings())
    >>> list(modules)
    ['module', 'similarity']
    """
    genes = gene_graph(embeddings, n_neighbors, seed)
    return find_modules(genes, embeddings.index, resolution, min_genes, seed)


def find_modules(
    genes: AnnData, index: pd.Index, resolution: float = 1.0, min_genes: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Return the modules in the graph of :func:`gene_graph`, with genes named by ``index``."""
    clusters = leiden(genes, resolution, seed).astype(str)
    sizes = clusters.value_counts()
    kept = sizes.index[sizes >= min_genes]
    new_names = {name: str(place) for place, name in enumerate(kept)}
    module = clusters.map(new_names).fillna(UNASSIGNED)
    unit = genes.X / np.linalg.norm(genes.X, axis=1, keepdims=True).clip(min=1e-12)
    similarity = np.full(len(unit), np.nan)
    for name in new_names.values():
        is_in = (module == name).to_numpy()
        center = unit[is_in].mean(axis=0)
        similarity[is_in] = unit[is_in] @ center / max(np.linalg.norm(center), 1e-12)
    names = [*new_names.values(), *([UNASSIGNED] if len(kept) < len(sizes) else [])]
    columns = {"module": pd.Categorical(module, names), "similarity": similarity}
    table = pd.DataFrame(columns, index=index)
    return table.sort_values(["module", "similarity"], ascending=[True, False], kind="stable")


def gene_graph(embeddings: pd.DataFrame, n_neighbors: int, seed: int) -> AnnData:
    """Return genes with the graph of their nearest neighbours by cosine."""
    if not isinstance(embeddings, pd.DataFrame):
        raise TypeError(
            "embeddings must be a data frame with genes as index, as "
            f"`model.get_gene_embeddings()` returns it, not {type(embeddings).__name__}."
        )
    if len(embeddings) < 3:
        raise ValueError(f"embeddings has {len(embeddings)} genes; modules need at least 3.")
    if not embeddings.index.is_unique:
        twice = embeddings.index[embeddings.index.duplicated()][0]
        raise ValueError(f"embeddings has the gene {twice!r} more than once. Keep one of them.")
    values = embeddings.to_numpy(dtype=np.float32)
    if n_missing := int((~np.isfinite(values)).any(axis=1).sum()):
        raise ValueError(
            f"embeddings of {n_missing} genes are missing or infinite: drop them, for instance "
            "`embeddings.dropna()`."
        )
    genes = AnnData(values, obs=pd.DataFrame(index=embeddings.index.astype(str)))
    n_neighbors = min(n_neighbors, len(embeddings) - 1)
    sc.pp.neighbors(genes, n_neighbors, use_rep="X", metric="cosine", random_state=seed)
    return genes
