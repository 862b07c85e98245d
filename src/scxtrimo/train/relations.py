"""From relations between genes to features of genes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse import csgraph

MAX_DENSE = 3000


def relation_features(relations: pd.DataFrame, n_features: int = 64) -> pd.DataFrame:
    r"""Return features of genes whose products are the similarities on a graph.

    The similarities are :math:`(I + L)^{-1}` with the normalised Laplacian :math:`L`: what
    infinitely many layers of a linear graph convolution with restart would spread.

    Parameters
    ----------
    relations
        Edges, with the columns ``source``, ``target`` and, optionally, ``weight`` (positive). They
        have no direction.
    n_features
        Number of features at most; the smoothest on the graph are kept.

    Returns
    -------
    Data frame of shape ``(n_genes, n_features)``, genes as index.

    Raises
    ------
    ValueError
        If a column is missing, there are no edges or a weight is not positive.

    Examples
    --------
    >>> import pandas as pd
    >>> edges = pd.DataFrame({"source": ["A", "B", "D"], "target": ["B", "C", "E"]})
    >>> features = relation_features(edges)
    >>> similarity = features @ features.T
    >>> bool(similarity.loc["A", "B"] > similarity.loc["A", "C"] > similarity.loc["A", "D"])
    True
    """
    if missing := sorted({"source", "target"} - set(relations.columns)):
        raise ValueError(
            f"relations lacks the columns {missing}; it has {list(relations.columns)}."
        )
    edges = relations[relations["source"] != relations["target"]]
    if len(edges) == 0:
        raise ValueError("relations has no edges between different genes.")
    weights = edges["weight"] if "weight" in edges else pd.Series(1.0, index=edges.index)
    weights = weights.to_numpy(float)
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError("relations['weight'] must be positive everywhere; leave other edges out.")
    ends = [edges["source"].astype(str), edges["target"].astype(str)]
    genes = pd.Index(sorted(set(ends[0]) | set(ends[1])))
    source, target = (genes.get_indexer(pd.Index(end)) for end in ends)
    shape = (len(genes), len(genes))
    graph = sparse.coo_matrix((weights, (source, target)), shape=shape).tocsr()
    graph = graph.maximum(graph.T)
    laplacian = csgraph.laplacian(graph, normed=True)
    n_features = min(n_features, len(genes))
    if len(genes) <= MAX_DENSE:
        values, vectors = np.linalg.eigh(laplacian.toarray())
    else:
        # The smallest eigenvalues of L are the largest of 2 I - L, which Lanczos finds fast.
        shifted = 2 * sparse.identity(len(genes)) - laplacian
        start = np.ones(len(genes))  # a random one would make results differ
        largest, vectors = sparse.linalg.eigsh(shifted, k=n_features, v0=start)
        values, vectors = 2 - largest[::-1], vectors[:, ::-1]
    features = vectors[:, :n_features] / np.sqrt(1 + np.maximum(values[:n_features], 0))
    return pd.DataFrame(features.astype(np.float32), index=genes)
