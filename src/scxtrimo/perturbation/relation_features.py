"""From relations between genes to features of genes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

N_STEPS = 20


def relation_features(relations: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    r"""Return features of genes whose products are the similarities on a graph.

    The similarities are :math:`(I + L)^{-1} = \sum_k (A / 2)^k / 2` with the normalised adjacency
    :math:`A` and Laplacian :math:`L = I - A`: what many layers of a linear graph convolution with
    restart spread. They are exact between any gene and the targets.

    Parameters
    ----------
    relations
        Edges, with the columns ``source``, ``target`` and, optionally, ``weight`` (positive). They
        have no direction.
    targets
        Genes that were perturbed.

    Returns
    -------
    Data frame of shape ``(n_genes, n_features)``, genes as index; a feature for every target that
    has an edge. The similarity of such a target to itself is 1 on average.

    Raises
    ------
    ValueError
        If a column is missing, there are no edges, a weight is not positive or no target has an
        edge.

    Examples
    --------
    >>> import pandas as pd
    >>> edges = pd.DataFrame({"source": ["A", "B", "D"], "target": ["B", "C", "E"]})
    >>> features = relation_features(edges, ["A", "D"])
    >>> similarity = features @ features.T
    >>> bool(similarity.loc["A", "B"] > similarity.loc["A", "C"] > similarity.loc["A", "D"])
    True
    """
    if missing := sorted({"source", "target"} - set(relations.columns)):
        raise ValueError(
            f"relations lacks the columns {missing}; it has {list(relations.columns)}."
        )
    if relations[["source", "target"]].isna().any(axis=None):
        raise ValueError("relations has edges without a source or target; leave them out.")
    edges = relations[relations["source"] != relations["target"]]
    if len(edges) == 0:
        raise ValueError("relations has no edges between different genes.")
    weights = edges["weight"] if "weight" in edges else pd.Series(1.0, index=edges.index)
    weights = weights.to_numpy(float)
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError("relations['weight'] must be positive everywhere; leave other edges out.")
    ends = [edges["source"].astype(str), edges["target"].astype(str)]
    genes = pd.Index(sorted(set(ends[0]) | set(ends[1])))
    places = genes.get_indexer(pd.Index(targets))
    places = places[places >= 0]
    if len(places) == 0:
        raise ValueError(
            f"None of the {len(targets)} perturbed genes, such as {targets[0]!r}, is in "
            f"relations, which have genes such as {genes[0]!r}. Use the same names."
        )
    source, target = (genes.get_indexer(pd.Index(end)) for end in ends)
    shape = (len(genes), len(genes))
    graph = sparse.coo_matrix((weights, (source, target)), shape=shape).tocsr()
    graph = graph.maximum(graph.T)
    scale = sparse.diags_array(1 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel()))
    half = scale @ graph @ scale / 2
    start = np.zeros((len(genes), len(places)))
    start[places, np.arange(len(places))] = 0.5
    similarity = start
    for _ in range(N_STEPS):
        similarity = start + half @ similarity
    # Features of all genes by what they have in common with the targets (Nystroem).
    values, vectors = np.linalg.eigh(similarity[places])
    kept = values > 1e-6 * values[-1]
    features = similarity @ vectors[:, kept] / np.sqrt(values[kept])
    features /= np.sqrt(np.diag(similarity[places]).mean())
    return pd.DataFrame(features.astype(np.float32), index=genes)
