"""Relations between genes, and the features of perturbed genes that are made of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sklearn.preprocessing import MultiLabelBinarizer

from .._logging import logger
from ..data.columns import preview
from ..data.counts import RowReader, check_counts, get_layer, log_normalized

GENES_PER_BLOCK = 1024
N_STEPS = 20
MAX_FEATURES = 64
RELATIONS = "relations"


def relations_from_gene_sets(
    gene_sets: Mapping[str, Iterable[str]] | str | os.PathLike,
    genes: Sequence[str] | None = None,
    min_similarity: float = 0.1,
    n_neighbors: int = 20,
) -> pd.DataFrame:
    """Relate genes that share gene sets, such as terms of the Gene Ontology.

    Similarities are Jaccard indices of the sets of two genes, as in GEARS :cite:p:`Roohani2023`.

    Parameters
    ----------
    gene_sets
        From the name of a set to its genes, or the path of a ``.gmt`` file.
    genes
        Genes to relate, by default all. Give those that are or will be perturbed, and more.
    min_similarity
        Smallest similarity of an edge.
    n_neighbors
        Maximum number of edges per gene.

    Returns
    -------
    Data frame with the columns ``source``, ``target`` and ``weight``, for
    :meth:`scxtrimo.model.XTrimoGenePerturbation.train`.

    Examples
    --------
    >>> sets = {"erythroid": ["KLF1", "GATA1"], "kinase": ["MAPK1", "MAP2K6"]}
    >>> scxtrimo.pp.relations_from_gene_sets(sets)["source"].tolist()
    ['GATA1', 'KLF1', 'MAP2K6', 'MAPK1']
    """
    if not isinstance(gene_sets, Mapping):
        gene_sets = _read_gmt(Path(gene_sets))
    binarizer = MultiLabelBinarizer(sparse_output=True)
    belongs = binarizer.fit_transform(gene_sets.values()).T.tocsr().astype(np.float32)
    names = pd.Index(list(binarizer.classes_))
    if genes is not None:
        kept = names.isin(list(genes))
        belongs, names = belongs[kept], names[kept]
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
    """Relate genes whose expression is correlated.

    Parameters
    ----------
    adata
        Cells with raw counts; not necessarily those that are perturbed.
    genes
        Genes to relate, by default all.
    layer
        Layer with the counts; ``None`` for ``adata.X``.
    min_similarity, n_neighbors
        See :func:`relations_from_gene_sets`.

    Returns
    -------
    See :func:`relations_from_gene_sets`; similarities are absolute correlations of log-normalised
    expression.

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
    names: pd.Index,
    similarity_of: Callable[[slice], np.ndarray],
    min_similarity: float,
    n_neighbors: int,
    source: str,
) -> pd.DataFrame:
    """Return the edges to the most similar genes, computed for a block of genes at a time."""
    if n_neighbors < 1:
        raise ValueError(f"n_neighbors={n_neighbors} must be positive.")
    edges = []
    for start in range(0, len(names), GENES_PER_BLOCK):
        rows = slice(start, min(start + GENES_PER_BLOCK, len(names)))
        similarity = similarity_of(rows)
        np.fill_diagonal(similarity[:, start:], 0)  # no edge from a gene to itself
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :n_neighbors]
        weight = np.take_along_axis(similarity, nearest, axis=1)
        i, j = np.nonzero(weight >= max(min_similarity, 1e-6))
        of_block = {"source": names[start + i], "target": names[nearest[i, j]]}
        edges.append(pd.DataFrame(of_block | {"weight": weight[i, j]}))
    if not any(map(len, edges)):
        raise ValueError(
            f"No two genes of {source} are related: lower min_similarity={min_similarity}, or "
            "check the names of the genes."
        )
    return pd.concat(edges, ignore_index=True)


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


def feature_table(
    target_features: pd.DataFrame | Mapping[str, pd.DataFrame] | None,
    relations: pd.DataFrame | None,
    targets: Sequence[str],
) -> pd.DataFrame:
    """Return all features of genes side by side; the upper level of the columns is their kind."""
    tables = {} if target_features is None else target_features
    if not isinstance(tables, Mapping):
        tables = {"target_features": tables}
    checked = {name: _standardized(table, name, targets) for name, table in tables.items()}
    if relations is not None:
        if RELATIONS in checked:
            raise ValueError(
                f"target_features has the key {RELATIONS!r}, which is reserved for `relations=`. "
                "Rename it."
            )
        checked[RELATIONS] = relation_features(relations, targets)
    if not checked:
        return pd.DataFrame()
    for name, table in checked.items():
        n_known = sum(target in table.index for target in targets)
        logger.info(f"{name}: known for {n_known} of {len(targets)} perturbed genes.")
    return pd.concat(checked, axis=1).fillna(0.0).astype(np.float32)


def _standardized(table: pd.DataFrame, name: str, targets: Sequence[str]) -> pd.DataFrame:
    """Return scaled features with a mean square of 1 per gene, 64 principal components at most."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"{name} must be a DataFrame with genes as index, not {type(table)}.")
    table = table.set_axis(table.index.astype(str), axis=0)
    if not table.index.is_unique:
        twice = preview(table.index[table.index.duplicated()].unique())
        raise ValueError(f"{name} has genes twice: {twice}. Keep one row of each.")
    values = table.to_numpy(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has NaN or infinite values; leave these genes out.")
    _check_overlap(targets, table.index, name)
    values = values - values.mean(axis=0)
    spread = values.std(axis=0)
    values = values[:, spread > 0] / spread[spread > 0]
    if values.shape[1] > MAX_FEATURES:
        left, sizes, _ = np.linalg.svd(values, full_matrices=False)
        values = (left * sizes)[:, :MAX_FEATURES]
    values /= np.sqrt(max(np.square(values).sum(axis=1).mean(), 1e-12))
    return pd.DataFrame(values, index=table.index)


def _check_overlap(targets: Sequence[str], genes: pd.Index, name: str) -> None:
    if not set(targets) & set(genes):
        raise ValueError(
            f"None of the {len(targets)} perturbed genes, such as {targets[0]!r}, is in {name}, "
            f"which has genes such as {preview(genes, 3)}. Use the same names."
        )


def relation_features(relations: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    """Return features whose products are the similarities of genes on the graph of relations."""
    if missing := sorted({"source", "target"} - set(relations.columns)):
        raise ValueError(
            f"relations lacks the columns {missing}; it has {list(relations.columns)}."
        )
    if relations[["source", "target"]].isna().any(axis=None):
        raise ValueError("relations has edges without a source or target; leave them out.")
    edges = relations[relations["source"] != relations["target"]]
    if len(edges) == 0:
        raise ValueError("relations has no edges between different genes.")
    weights = edges["weight"].to_numpy(float) if "weight" in edges else np.ones(len(edges))
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError("relations['weight'] must be positive everywhere; leave other edges out.")
    source, target = edges["source"].astype(str), edges["target"].astype(str)
    genes = pd.Index(sorted({*source, *target}))
    places = genes.get_indexer(pd.Index(targets))
    places = places[places >= 0]
    _check_overlap(targets, genes, "relations")
    ends = genes.get_indexer(pd.Index(source)), genes.get_indexer(pd.Index(target))
    graph = sparse.coo_matrix((weights, ends), shape=(len(genes), len(genes))).tocsr()
    graph = graph.maximum(graph.T)
    scale = sparse.diags_array(1 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel()))
    half = scale @ graph @ scale / 2
    # With the normalised adjacency A these are (2 I - A)^-1 = sum_k (A / 2)^k / 2: many layers of
    # a linear graph convolution with restart.
    start = np.zeros((len(genes), len(places)))
    start[places, np.arange(len(places))] = 0.5
    similarity = start
    for _ in range(N_STEPS):
        similarity = start + half @ similarity
    # Nystroem approximation: features of all genes from their similarities to the targets.
    values, vectors = np.linalg.eigh(similarity[places])
    kept = values > 1e-6 * values[-1]
    features = similarity @ vectors[:, kept] / np.sqrt(values[kept])
    features /= np.sqrt(np.diag(similarity[places]).mean())
    return pd.DataFrame(features.astype(np.float32), index=genes)
