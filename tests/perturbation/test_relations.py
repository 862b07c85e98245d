"""Features of genes from a graph."""

import numpy as np
import pandas as pd

from scxtrimo.perturbation.relations import relation_features


def test_products_of_features_are_the_similarities_on_the_graph():
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(30)]
    edges = pd.DataFrame(
        [
            (genes[i], genes[j], rng.random() + 0.1)
            for i in range(30)
            for j in range(i)
            if rng.random() < 0.2
        ],
        columns=["source", "target", "weight"],
    )
    targets = genes[:12]
    features = relation_features(edges, targets)
    adjacency = np.zeros((30, 30))
    for a, b, weight in edges.itertuples(index=False):
        adjacency[int(a[1:]), int(b[1:])] = adjacency[int(b[1:]), int(a[1:])] = weight
    degree = adjacency.sum(axis=1)
    laplacian = np.eye(30) - adjacency / np.sqrt(np.outer(degree, degree))
    similarity = np.linalg.inv(np.eye(30) + laplacian)
    found = features.loc[genes] @ features.loc[targets].T
    expected = similarity[:, :12] / np.diag(similarity)[:12].mean()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_many_separate_families_stay_apart():
    names = np.random.default_rng(0).permutation(400)
    families = [[f"G{i}" for i in names[k : k + 4]] for k in range(0, 400, 4)]
    edges = [(a, b) for family in families for a in family for b in family if a < b]
    features = relation_features(
        pd.DataFrame(edges, columns=["source", "target"]), [family[0] for family in families]
    )
    similarity = features @ features.T
    for family in families[:10]:
        assert (similarity.loc[family[1], family] > 0.05).all()
        assert np.abs(similarity.loc[family[1]].drop(family)).max() < 1e-4
