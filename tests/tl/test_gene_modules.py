import numpy as np
import pandas as pd
import pytest

from scxtrimo.tl._genes import gene_modules

SIZES = (40, 60, 25)


@pytest.fixture
def embeddings():
    """Genes around three directions, of different lengths."""
    rng = np.random.default_rng(0)
    centers = np.repeat(np.eye(3, 10), SIZES, axis=0)
    values = (centers + 0.05 * rng.normal(size=centers.shape)) * rng.uniform(0.5, 20, (125, 1))
    names = [f"M{m}_{i}" for m, size in enumerate(SIZES) for i in range(size)]
    return pd.DataFrame(values, index=names).sample(frac=1, random_state=0)


def test_planted_modules_are_found_by_direction_the_largest_first(embeddings):
    table = gene_modules(embeddings, resolution=0.3)
    assert set(table.index) == set(embeddings.index)
    planted = pd.Series(table.index.str[:2], index=table.index)
    assert [set(part) for _, part in planted.groupby(table["module"], observed=True)] == [
        {"M1"},
        {"M0"},
        {"M2"},
    ]
    assert table["similarity"].between(0.9, 1).all()
    assert table["module"].is_monotonic_increasing
    for _, part in table.groupby("module", observed=True):
        assert part["similarity"].is_monotonic_decreasing
        unit = embeddings.loc[part.index].to_numpy()
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        center = unit.mean(axis=0)
        np.testing.assert_allclose(
            part["similarity"], unit @ center / np.linalg.norm(center), rtol=1e-4
        )


def test_genes_of_small_clusters_are_unassigned(embeddings):
    table = gene_modules(embeddings, resolution=0.3, min_genes=30)
    rest = table["module"] == "unassigned"
    assert set(table.index[rest].str[:2]) == {"M2"}
    assert table["similarity"].isna().equals(rest)
    assert list(table["module"].cat.categories) == ["0", "1", "unassigned"]


def test_equal_seeds_give_equal_modules(embeddings):
    pd.testing.assert_frame_equal(
        gene_modules(embeddings, seed=3), gene_modules(embeddings, seed=3)
    )


def test_what_cannot_be_clustered_is_refused(embeddings):
    with pytest.raises(TypeError, match="ndarray"):
        gene_modules(embeddings.to_numpy())
    with pytest.raises(ValueError, match="at least 3"):
        gene_modules(embeddings[:2])
    with pytest.raises(ValueError, match="more than once"):
        gene_modules(pd.concat([embeddings, embeddings[:1]]))
    embeddings.iloc[3, 2] = np.nan
    with pytest.raises(ValueError, match="of 1 genes are missing"):
        gene_modules(embeddings)
