"""The latent representation: components, their prediction, and batches."""

import anndata
import mudata
import numpy as np
import pytest
from helpers import make_cells, train_tiny
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier

import scxtrimo
from scxtrimo.latent import gene_scale, log_normalize
from scxtrimo.model.xtrimogene import XTrimoGene


def shift_genes(cells: anndata.AnnData, rows: np.ndarray, seed: int = 0) -> anndata.AnnData:
    """Multiply the counts of some cells by a factor of each gene, as another protocol does."""
    factor = np.random.default_rng(seed).lognormal(0, 1.2, cells.n_vars)
    x = cells.X.toarray()
    x[rows] = np.random.default_rng(seed).poisson(x[rows] * factor)
    x[:, 0] += 1
    shifted = cells.copy()
    shifted.X = sparse.csr_matrix(x.astype(np.float32))
    return shifted


@pytest.fixture(scope="module")
def two_batches() -> anndata.AnnData:
    cells = make_cells(n_cells=500, n_genes=150)
    return shift_genes(cells, (cells.obs["batch"] == "b").to_numpy())


@pytest.fixture(scope="module")
def integrated(two_batches) -> XTrimoGene:
    return train_tiny(
        two_batches.copy(), max_epochs=15, setup={"batch_key": "batch"}, plan_kwargs={"lr": 3e-3}
    )


def separation(latent: np.ndarray, groups, cell_type) -> float:
    """Mean silhouette of groups within types: near zero if they are mixed."""
    groups, cell_type = np.asarray(groups), np.asarray(cell_type)
    return np.mean(
        [
            silhouette_score(latent[cell_type == name], groups[cell_type == name])
            for name in np.unique(cell_type)
        ]
    )


def test_measured_components_are_those_of_scikit_learn():
    cells = make_cells()
    model = train_tiny(cells, train_size=1.0, measured_weight=1.0, n_latent=6)
    logged = np.log1p(1e4 * cells.X.toarray() / cells.X.sum(1))
    scale = gene_scale(cells.X, sparse.csr_matrix(logged), seed=0)
    scaled = np.minimum(np.asarray(logged) * scale, 10)
    expected = PCA(6).fit_transform(scaled)
    latent = model.get_latent_representation()
    sign = np.sign((latent * expected).sum(0))
    assert_allclose(latent, expected * sign, rtol=2e-3, atol=2e-3)


def test_genes_count_for_more_the_better_they_repeat_in_other_counts_of_the_cells():
    rng = np.random.default_rng(0)
    rates = 0.1 * 2.0 ** rng.integers(0, 8, 60) * rng.lognormal(0, 0.5, (3000, 60))
    rates[:, :20] = rates[:, :20].mean(0)  # these do not differ between cells
    counts, others = (sparse.csr_matrix(rng.poisson(rates).astype(np.float32)) for _ in range(2))
    logged, logged_again = log_normalize(counts), log_normalize(others)
    repeated = [
        np.corrcoef(logged[:, [g]].toarray()[:, 0], logged_again[:, [g]].toarray()[:, 0])[0, 1]
        for g in range(60)
    ]
    std = logged.toarray().std(0)
    reliability = (gene_scale(counts, logged, seed=0) * std) ** 4
    assert_allclose(reliability, np.clip(repeated, 0.01, 1), atol=0.2)
    assert np.corrcoef(reliability, repeated)[0, 1] > 0.95


def test_a_difference_between_batches_is_no_reason_to_count_for_more():
    rng = np.random.default_rng(0)
    rates = np.full((1000, 200), 3.0)
    rates[500:, 0] *= 8  # differs between batches alone
    rates[:, 1] *= rng.lognormal(0, 1, 1000)  # differs between cells
    counts = sparse.csr_matrix(rng.poisson(rates).astype(np.float32))
    logged = log_normalize(counts)
    std = logged.toarray().std(0)
    batches = np.repeat([3, 7], 500)
    within = (gene_scale(counts, logged, 0, batches) * std) ** 4
    across = (gene_scale(counts, logged, 0) * std) ** 4
    assert across[0] > 0.5
    assert within[0] < 0.2
    assert within[1] > 0.5


def test_predicted_components_have_less_noise_than_measured_ones():
    cells = make_cells(n_cells=300, n_genes=120)
    scores = [
        silhouette_score(
            train_tiny(
                cells, max_epochs=20, plan_kwargs={"lr": 3e-3}, measured_weight=weight
            ).get_latent_representation(),
            cells.obs["cell_type"],
        )
        for weight in (0.0, 0.5, 1.0)
    ]
    assert scores[0] > scores[1] > scores[2] > 0


def test_batches_are_integrated_and_types_are_kept(two_batches, integrated):
    plain = train_tiny(two_batches.copy(), max_epochs=15, plan_kwargs={"lr": 3e-3})
    before, after = (m.get_latent_representation() for m in (plain, integrated))
    batch, cell_type = two_batches.obs["batch"], two_batches.obs["cell_type"]
    assert separation(before, batch, cell_type) > 0.1
    assert abs(separation(after, batch, cell_type)) < 0.02
    assert silhouette_score(after, cell_type) > silhouette_score(before, cell_type)


def test_integration_of_a_cell_does_not_depend_on_the_others(two_batches, integrated):
    cells = two_batches.copy()
    everything = integrated.get_latent_representation(cells)
    for rows in ([7], [3, 400, 9]):
        alone = integrated.get_latent_representation(cells, indices=rows)
        assert_allclose(alone, everything[rows], rtol=1e-4, atol=1e-4)


def test_a_query_lands_on_the_training_cells_of_its_type():
    cells = make_cells(n_cells=600, n_genes=150)
    is_query = np.arange(cells.n_obs) >= 400
    both = shift_genes(cells, is_query, seed=1)
    reference, query = both[~is_query].copy(), both[is_query].copy()
    model = train_tiny(reference, max_epochs=15, plan_kwargs={"lr": 3e-3})
    latent = model.get_latent_representation()
    as_it_is, mapped = model.get_latent_representation(query), model.map_query(query)
    groups = ["reference"] * len(reference) + ["query"] * len(query)
    cell_type = cells.obs["cell_type"]
    apart = [
        separation(np.concatenate([latent, part]), groups, cell_type)
        for part in (as_it_is, mapped)
    ]
    assert apart[0] > 0.04
    assert apart[1] < apart[0] / 4
    neighbors = KNeighborsClassifier(15).fit(latent, reference.obs["cell_type"])
    assert neighbors.score(mapped, query.obs["cell_type"]) > 0.95
    assert_array_equal(model.map_query(query), mapped)


def test_batches_of_a_query_are_mapped_one_by_one(integrated, two_batches):
    query = two_batches[:100].copy()
    query.obs["sample"] = ["x"] * 50 + ["y"] * 50
    mapped = integrated.map_query(query, batch_key="sample")
    alone = integrated.map_query(query[50:].copy())
    assert_allclose(mapped[50:], alone, rtol=1e-4, atol=1e-4)
    query.obs["sample"] = [None] * 1 + ["y"] * 99
    with pytest.raises(ValueError, match=r"lacks the batch of 1 cells"):
        integrated.map_query(query, batch_key="sample")
    with pytest.raises(ValueError, match="'nonsense'"):
        integrated.map_query(query, batch_key="nonsense")


def test_bottleneck_is_the_cell_vector_as_it_is(two_batches):
    model = train_tiny(two_batches.copy(), latent_space="bottleneck")
    assert model.module.latent_space is None
    batch = next(iter(model._make_data_loader(model.adata, indices=[0, 1])))
    vectors = model._encode(batch).latent_cz.detach().numpy()
    assert_allclose(model.get_latent_representation(indices=[0, 1]), vectors, rtol=1e-5)
    with pytest.raises(ValueError, match="latent_space='components'"):
        model.map_query(two_batches.copy())


def test_integration_repeats_and_survives_saving(two_batches, integrated, tmp_path):
    again = train_tiny(
        two_batches.copy(), max_epochs=15, setup={"batch_key": "batch"}, plan_kwargs={"lr": 3e-3}
    )
    expected = integrated.get_latent_representation()
    assert_array_equal(again.get_latent_representation(), expected)
    integrated.save(tmp_path / "model")
    loaded = scxtrimo.model.XTrimoGene.load(tmp_path / "model", adata=two_batches.copy())
    assert_array_equal(loaded.get_latent_representation(), expected)


@pytest.mark.parametrize("n_cells", [3, 70])
def test_few_cells_in_two_batches(n_cells):
    cells = make_cells()[:n_cells].copy()
    cells.obs["batch"] = np.resize(["a", "b"], n_cells)
    model = train_tiny(cells, max_epochs=1, setup={"batch_key": "batch"})
    latent = model.get_latent_representation()
    assert (latent.std(0)[:2] > 0).all()
    assert np.isfinite(model.map_query(make_cells()[:2].copy())).all()


def test_a_batch_with_one_cell_and_one_without_training_cells():
    cells = make_cells()
    cells.obs["batch"] = ["alone"] + ["a"] * 70 + ["b"] * 78 + ["held out"]
    split = {"external_indexing": [np.arange(149), np.array([149]), np.array([], dtype=int)]}
    model = train_tiny(
        cells, max_epochs=1, setup={"batch_key": "batch"}, datasplitter_kwargs=split
    )
    latent = model.get_latent_representation()
    assert np.isfinite(latent).all()
    unknown = cells[[149]].copy()
    unknown.obs["batch"] = "never seen"
    assert_allclose(latent[[149]], model.get_latent_representation(unknown), atol=1e-6)


@pytest.mark.parametrize("n_latent", [1, 40])
def test_one_component_and_more_than_the_width(n_latent):
    model = train_tiny(make_cells(), max_epochs=1, n_latent=n_latent, setup={"batch_key": "batch"})
    assert model.get_latent_representation().shape == (150, n_latent)


def test_no_components_are_refused_before_training():
    with pytest.raises(ValueError, match=r"1 genes to read have no.*latent_space=.bottleneck"):
        train_tiny(make_cells(), max_epochs=1, n_input_genes=1)
    train_tiny(make_cells(), max_epochs=1, n_input_genes=1, latent_space="bottleneck")


def test_fine_tuning_on_batches_the_model_does_not_know(integrated, two_batches, tmp_path):
    integrated.save(tmp_path / "model")
    known = integrated.get_latent_representation(two_batches.copy())
    other = two_batches[:150].copy()
    other.obs["batch"] = "elsewhere"
    model = scxtrimo.model.XTrimoGene.load(tmp_path / "model", adata=other)
    model.train(max_epochs=1, enable_progress_bar=False, plan_kwargs={"lr": 1e-8})
    after = model.get_latent_representation(two_batches.copy())
    # How far it is from zero depends on the processor; it stays well below that of other models.
    apart = train_tiny(two_batches.copy(), max_epochs=5).get_latent_representation()
    by_batch = two_batches.obs["batch"], two_batches.obs["cell_type"]
    assert separation(after, *by_batch) < 0.25 * separation(apart, *by_batch)
    assert np.corrcoef(known[:, 0], after[:, 0])[0, 1] > 0.95


def test_fine_tuning_on_fewer_genes_keeps_the_meaning_of_the_components(tmp_path):
    cells = make_cells(n_cells=300)
    model = train_tiny(cells, max_epochs=10, plan_kwargs={"lr": 3e-3})
    before = model.get_latent_representation()
    model.save(tmp_path / "model")
    fewer = cells[:, 6:].copy()
    tuned = scxtrimo.model.XTrimoGene.load(tmp_path / "model", adata=fewer)
    tuned.train(max_epochs=1, enable_progress_bar=False, plan_kwargs={"lr": 1e-8})
    after = tuned.get_latent_representation(cells)
    error = np.square(after - before).sum() / np.square(before).sum()
    assert error < 0.05


def test_batches_beside_other_covariates(two_batches):
    cells = two_batches.copy()
    cells.obs["lane"] = np.resize(["x", "y", "z"], cells.n_obs)
    setup = {"batch_key": "batch", "categorical_covariate_keys": ["lane"]}
    model = train_tiny(cells, max_epochs=5, setup=setup, plan_kwargs={"lr": 3e-3})
    assert model.module.latent_space.shifts.shape[0] == 2
    latent = model.get_latent_representation()
    assert separation(latent, cells.obs["batch"], cells.obs["cell_type"]) < 0.02


def test_a_depth_of_choice_gives_predicted_components():
    cells = make_cells()
    model = train_tiny(cells, read_depth_aware=True)
    at_own, deep = (model.get_latent_representation(target_depth=t) for t in (None, "f2"))
    _, batch = next(iter(model._batches(None, [0, 1], None, "", "f2")))
    predicted = model.module.latent_space.predict(model._encode(batch).latent_cz)
    assert_allclose(deep[:2], predicted.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert not np.allclose(at_own[:2], deep[:2], atol=1e-2)


def test_batch_column_of_a_mudata_query(integrated, two_batches):
    query = two_batches[:100].copy()
    mdata = mudata.MuData({"rna": query})
    cells = two_batches.copy()
    model = train_tiny(mudata.MuData({"rna": cells}), max_epochs=1, setup={"modality": "rna"})
    mdata.obs["sample"] = ["x"] * 50 + ["y"] * 50
    assert model.map_query(mdata, batch_key="sample").shape == (100, 32)
