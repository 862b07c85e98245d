"""Observed effects, their ranking, scores and interactions, and what is known of genes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from helpers import make_perturbed_cells
from scipy import sparse

import scxtrimo
from scxtrimo.perturbation.tools import change_means


@pytest.fixture(scope="module")
def cells():
    return make_perturbed_cells(n_cells=60)


@pytest.fixture(scope="module")
def effects(cells):
    return scxtrimo.tl.perturbation_effects(cells, "condition")


def test_effects_are_differences_of_means_as_scanpy_normalises(cells, effects):
    logged = cells.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    mean = {
        name: np.asarray(logged[(logged.obs["condition"] == name).to_numpy()].X.mean(axis=0))[0]
        for name in ("control", "GENE1")
    }
    np.testing.assert_allclose(effects["GENE1"].X[0], mean["GENE1"], rtol=1e-4)
    change = mean["GENE1"] - mean["control"]
    np.testing.assert_allclose(effects["GENE1"].layers["effect"][0], change, atol=1e-4)


def test_standard_errors_are_those_of_repeated_experiments():
    repeated = [
        scxtrimo.tl.perturbation_effects(
            make_perturbed_cells(
                targets=["GENE1"], pairs=[], effects={"GENE1": np.zeros(60)}, seed=seed
            ),
            "condition",
        )
        for seed in range(30)
    ]
    stated = np.mean([one.layers["std"][0] for one in repeated], axis=0)
    effect = np.array([one.layers["effect"][0] for one in repeated])
    of_control = stated / np.sqrt(2)  # twice as many cells
    z = effect / np.hypot(stated, of_control)
    assert 0.85 < z.std() < 1.15
    score = np.array([one.layers["score"][0] for one in repeated])
    assert 0.85 < score.std() < 1.15


def test_names_in_another_order_are_one_perturbation(cells, effects):
    swapped = cells.copy()
    rows = np.flatnonzero(swapped.obs["condition"] == "GENE1+GENE2")[::2]
    swapped.obs["condition"] = swapped.obs["condition"].astype(str)
    swapped.obs.iloc[rows, swapped.obs.columns.get_loc("condition")] = "GENE2+GENE1"
    again = scxtrimo.tl.perturbation_effects(swapped, "condition")
    np.testing.assert_allclose(again.X, effects.X)


def test_effects_are_measured_within_populations(cells):
    both = cells.copy()
    both.obs["line"] = np.where(np.arange(both.n_obs) % 2, "a", "b")
    effects = scxtrimo.tl.perturbation_effects(both, "condition", population_key="line")
    part = both[(both.obs["line"] == "a").to_numpy()].copy()
    alone = scxtrimo.tl.perturbation_effects(part, "condition")
    mine = effects[(effects.obs["population"] == "a").to_numpy()]
    np.testing.assert_allclose(mine.layers["effect"], alone.layers["effect"], atol=1e-6)
    assert "GENE1 (a)" in effects.obs_names


def test_populations_without_control_cells_are_named(cells):
    cells = cells.copy()
    cells.obs["line"] = np.where(cells.obs["condition"] == "GENE1", "odd", "even")
    with pytest.raises(ValueError, match="'odd' of adata.obs.'line'. have no control cells"):
        scxtrimo.tl.perturbation_effects(cells, "condition", population_key="line")
    cells.obs.loc[cells.obs_names[0], "condition"] = np.nan
    with pytest.raises(ValueError, match="missing values"):
        scxtrimo.tl.perturbation_effects(cells, "condition")


def test_log_normalised_data_are_refused(cells):
    logged = cells.copy()
    sc.pp.log1p(logged)
    with pytest.raises(ValueError, match="non-integer values"):
        scxtrimo.tl.perturbation_effects(logged, "condition")


def test_changed_genes_are_ranked_first(cells, effects):
    truth = np.abs(cells.uns["effects"]["GENE1"])
    ranked = scxtrimo.tl.rank_perturbed_genes(effects, 5)
    mine = ranked[ranked["perturbation"] == "GENE1"]
    assert len(mine) == 5
    places = [effects.var_names.get_loc(gene) for gene in mine["gene"]]
    assert (truth[places] > 0).all()
    assert mine["score"].abs().is_monotonic_decreasing
    with pytest.raises(ValueError, match="n_genes=0"):
        scxtrimo.tl.rank_perturbed_genes(effects, 0)


def test_scores(effects):
    scores = scxtrimo.tl.perturbation_scores(effects, effects)
    assert (scores["mse"] == 0).all()
    np.testing.assert_allclose(scores[["pearson", "pearson_top", "direction"]], 1.0)
    nothing = effects.copy()
    nothing.layers["effect"] = np.zeros(effects.shape)
    scores = scxtrimo.tl.perturbation_scores(nothing, effects)
    assert (scores["pearson"] == 0).all()
    expected = np.square(effects.layers["effect"].astype(float)).mean(axis=1)
    np.testing.assert_allclose(scores["mse"], expected)
    other = effects[["GENE1"]].copy()
    with pytest.raises(ValueError, match="was not observed"):
        scxtrimo.tl.perturbation_scores(effects, other)
    # Genes are matched by name.
    order = np.random.default_rng(0).permutation(effects.n_vars)
    scores = scxtrimo.tl.perturbation_scores(effects[:, order].copy(), effects)
    assert (scores["mse"] == 0).all()


def test_genetic_interactions(effects):
    made = effects.copy()
    place = {name: i for i, name in enumerate(made.obs["perturbation"])}
    layer = np.array(made.layers["effect"])
    first, second = layer[place["GENE1"]], layer[place["GENE2"]]
    layer[place["GENE1+GENE2"]] = 2.0 * first + 0.1 * second
    made.layers["effect"] = layer
    of_pair = scxtrimo.tl.genetic_interactions(made).loc["GENE1+GENE2"]
    assert of_pair["c_a"] == pytest.approx(2.0, abs=1e-3)
    assert of_pair["c_b"] == pytest.approx(0.1, abs=1e-3)
    assert of_pair["fit"] == pytest.approx(1.0)
    assert of_pair["equality"] == pytest.approx(0.05, abs=1e-3)
    singles = effects[["+" not in name for name in effects.obs["perturbation"]]].copy()
    pairs = effects[["+" in name for name in effects.obs["perturbation"]]].copy()
    apart = scxtrimo.tl.genetic_interactions(pairs, singles=singles)
    pd.testing.assert_frame_equal(apart, scxtrimo.tl.genetic_interactions(effects))
    with pytest.raises(ValueError, match="There is no pair"):
        scxtrimo.tl.genetic_interactions(singles)


def test_what_is_no_effects_is_refused(cells):
    with pytest.raises(ValueError, match="effects lacks"):
        scxtrimo.tl.rank_perturbed_genes(cells)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7, 10.0])
def test_drawn_cells_have_the_mean_that_is_asked_for(factor):
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 0.5, (5000, 3)) * (rng.random((5000, 3)) < [0.1, 0.5, 1.0])
    wanted = factor * values.mean(axis=0)
    drawn = change_means(values, wanted, rng).toarray()
    np.testing.assert_allclose(drawn.mean(axis=0), wanted, rtol=0.1, atol=0.01)
    assert drawn.min() >= 0
    from_nothing = change_means(np.zeros((5000, 1)), np.array([0.2]), rng)
    assert from_nothing.mean() == pytest.approx(0.2, rel=0.1)


def test_genes_that_share_sets_are_related(tmp_path):
    sets = {"one": ["A", "B"], "two": ["A", "B", "C"], "three": ["D", "E"]}
    relations = scxtrimo.pp.relations_from_gene_sets(sets)
    weight = relations.set_index(["source", "target"])["weight"]
    assert weight["A", "B"] == 1.0
    assert weight["A", "C"] == 0.5
    assert ("A", "D") not in weight
    path = tmp_path / "sets.gmt"
    path.write_text("".join(f"{k}\tnone\t" + "\t".join(v) + "\n" for k, v in sets.items()))
    pd.testing.assert_frame_equal(scxtrimo.pp.relations_from_gene_sets(path), relations)
    some = scxtrimo.pp.relations_from_gene_sets(sets, genes=["A", "C"])
    assert set(some["source"]) == {"A", "C"}
    path.write_text("no gmt\n")
    with pytest.raises(ValueError, match="is no .gmt file"):
        scxtrimo.pp.relations_from_gene_sets(path)
    with pytest.raises(ValueError, match="No two genes of gene_sets are related"):
        scxtrimo.pp.relations_from_gene_sets({"alone": ["A"]})


def test_genes_that_go_together_are_related(cells):
    counts = cells.copy()
    dense = counts.X.toarray()[:, :40]
    dense[:, 7] = dense[:, 5]
    counts = counts[:, :40].copy()
    counts.X = sparse.csr_matrix(dense)
    relations = scxtrimo.pp.relations_from_expression(counts, n_neighbors=1)
    of_gene = relations.set_index("source")
    assert of_gene.loc["GENE5", "target"] == "GENE7"
    assert of_gene.loc["GENE5", "weight"] == pytest.approx(1.0, abs=1e-3)
    expected = np.abs(np.corrcoef(np.log1p(dense / dense.sum(axis=1)[:, None] * 1e4).T))
    pair = of_gene.iloc[3]
    i, j = (counts.var_names.get_loc(g) for g in (of_gene.index[3], pair["target"]))
    assert pair["weight"] == pytest.approx(expected[i, j], abs=1e-4)
    with pytest.raises(ValueError, match="lacks the genes 'NOBODY'"):
        scxtrimo.pp.relations_from_expression(counts, ["NOBODY"])


def test_pictures(effects):
    ax = scxtrimo.pl.perturbation_effects(effects, effects, "GENE1", show=False)
    assert "r = 1.00" in ax.get_title()
    x, y = ax.collections[-1].get_offsets().T
    np.testing.assert_allclose(x, y)
    given = plt.figure().add_subplot()
    assert scxtrimo.pl.perturbed_genes(effects, "GENE1", n_genes=4, ax=given) is given
    assert len(given.patches) == 4
    with pytest.raises(ValueError, match="'NOBODY' is not in effects"):
        scxtrimo.pl.perturbed_genes(effects, "NOBODY", show=False)
    plt.close("all")
