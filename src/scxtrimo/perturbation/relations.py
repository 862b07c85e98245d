"""Relations between genes: what is known about genes that were never perturbed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ..data.counts import RowReader, check_counts, get_layer, log_normalized
from ..data.vocabulary import preview

BLOCK = 1024


def relations_from_gene_sets(
    gene_sets: Mapping[str, Iterable[str]] | str | os.PathLike,
    genes: Sequence[str] | None = None,
    min_similarity: float = 0.1,
    n_neighbors: int = 20,
) -> pd.DataFrame:
    """Relate genes that share gene sets, such as terms of the Gene Ontology.

    Two genes are as similar as the sets they share are many among the sets of either (Jaccard),
    as in GEARS :cite:p:`Roohani2023`.

    Parameters
    ----------
    gene_sets
        From the name of a set to its genes, or the path of a ``.gmt`` file.
    genes
        Genes to relate, by default all. Give those that are or will be perturbed, and more.
    min_similarity
        Smallest similarity of an edge.
    n_neighbors
        Edges per gene at most.

    Returns
    -------
    Data frame with the columns ``source``, ``target`` and ``weight``, for
    :meth:`scxtrimo.model.XTrimoGenePerturbation.train`.

    Raises
    ------
    ValueError
        If the file is no ``.gmt`` file, or no two genes are similar enough.

    Examples
    --------
    >>> sets = {"erythroid": ["KLF1", "GATA1"], "kinase": ["MAPK1", "MAP2K6"]}
    >>> scxtrimo.pp.relations_from_gene_sets(sets)["source"].tolist()
    ['GATA1', 'KLF1', 'MAP2K6', 'MAPK1']
    """
    if not isinstance(gene_sets, Mapping):
        gene_sets = _read_gmt(Path(gene_sets))
    wanted = None if genes is None else set(genes)
    members = [
        sorted({gene for gene in of_set if wanted is None or gene in wanted})
        for of_set in gene_sets.values()
    ]
    names = pd.Index(sorted({gene for of_set in members for gene in of_set}))
    row = names.get_indexer([gene for of_set in members for gene in of_set])
    column = np.repeat(np.arange(len(members)), [len(of_set) for of_set in members])
    belongs = sparse.csr_matrix(
        (np.ones(len(row), np.float32), (row, column)), shape=(len(names), len(members))
    )
    n_sets = np.asarray(belongs.sum(axis=1)).ravel()

    def jaccard(rows: slice) -> np.ndarray:
        shared = (belongs[rows] @ belongs.T).toarray()
        return shared / np.maximum(n_sets[rows, None] + n_sets[None] - shared, 1)

    return _nearest(names, jaccard, min_similarity, n_neighbors, "gene_sets")


def relations_from_expression(
    adata: AnnData,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    min_similarity: float = 0.1,
    n_neighbors: int = 20,
) -> pd.DataFrame:
    """Relate genes whose expression goes together.

    Parameters
    ----------
    adata
        Cells with raw counts; not necessarily those that are perturbed.
    genes
        Genes to relate, by default all. They must be in ``adata``.
    layer
        Layer with the counts; ``None`` for ``adata.X``.
    min_similarity
        Smallest absolute correlation of log-normalised expression of an edge.
    n_neighbors
        Edges per gene at most.

    Returns
    -------
    See :func:`relations_from_gene_sets`; the weight is the absolute correlation.

    Raises
    ------
    ValueError
        If a gene is not in the data, counts are not raw, or no two genes are similar enough.

    Examples
    --------
    >>> relations = scxtrimo.pp.relations_from_expression(adata, n_neighbors=3)
    >>> relations.columns.tolist()
    ['source', 'target', 'weight']
    """
    check_counts(adata, layer)
    names = adata.var_names if genes is None else pd.Index(list(genes))
    columns = adata.var_names.get_indexer(names)
    if (columns < 0).any():
        raise ValueError(f"adata lacks the genes {preview(names[columns < 0])}.")
    reader = RowReader(get_layer(adata, layer))
    parts = [log_normalized(chunk)[:, columns].astype(np.float32) for chunk in reader.chunks()]
    values = sparse.vstack(parts).tocsc()
    mean = np.asarray(values.mean(axis=0)).ravel()
    variance = np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2
    inverse = np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0)

    def correlation(rows: slice) -> np.ndarray:
        product = (values[:, rows].T @ values).toarray() / values.shape[0]
        covariance = product - mean[rows, None] * mean[None]
        return np.abs(covariance * inverse[rows, None] * inverse[None])

    return _nearest(names, correlation, min_similarity, n_neighbors, "adata")


def _nearest(
    names: pd.Index, similarity_of, min_similarity: float, n_neighbors: int, source: str
) -> pd.DataFrame:
    """Return the edges to the nearest genes, a block of genes at a time."""
    if n_neighbors < 1:
        raise ValueError(f"n_neighbors={n_neighbors} must be positive.")
    edges = []
    for start in range(0, len(names), BLOCK):
        rows = slice(start, min(start + BLOCK, len(names)))
        similarity = similarity_of(rows)
        place = np.arange(rows.stop - rows.start)
        similarity[place, start + place] = 0  # a gene is no relation of itself
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :n_neighbors]
        weight = np.take_along_axis(similarity, nearest, axis=1)
        i, j = np.nonzero(weight >= max(min_similarity, 1e-6))
        edges.append(
            pd.DataFrame(
                {
                    "source": names[start + i],
                    "target": names[nearest[i, j]],
                    "weight": weight[i, j],
                }
            )
        )
    joined = pd.concat(edges, ignore_index=True) if edges else pd.DataFrame()
    if len(joined) == 0:
        raise ValueError(
            f"No two genes of {source} are related: lower min_similarity={min_similarity}, or "
            "check the names of the genes."
        )
    return joined


def _read_gmt(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise FileNotFoundError(f"gene_sets={str(path)!r} does not exist.")
    lines = [line.split("\t") for line in path.read_text().splitlines() if line.strip()]
    if short := [fields[0] for fields in lines if len(fields) < 3]:
        raise ValueError(
            f"{path} is no .gmt file: a line needs a name, a description and genes, separated by "
            f"tabs, which {preview(short)} does not have."
        )
    return {fields[0]: [gene for gene in fields[2:] if gene] for fields in lines}
