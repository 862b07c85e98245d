"""Perturbations: effects of genes and pairs that were not measured, and what can go wrong."""

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_perturbed_cells, train_tiny

import scxtrimo
from scxtrimo.model.xtrimogene import XTrimoGene
from scxtrimo.perturbation.model import XTrimoGenePerturbation
from scxtrimo.perturbation.training import EffectsConfig

ARGS = {"accelerator": "cpu", "enable_progress_bar": False}
FAST = EffectsConfig(n_steps=30)
UNSEEN_PAIR = "GENE2+OUTSIDE1"


def train(cells, effects=FAST, seed=0, **kwargs) -> XTrimoGenePerturbation:
    names = ("control", "separator", "population_key", "library_size_key", "layer")
    setup = {name: kwargs.pop(name) for name in names if name in kwargs}
    XTrimoGenePerturbation.setup_anndata(cells, "condition", **setup)
    model = XTrimoGenePerturbation(cells, size="tiny", seed=seed)
    model.train(1, effects=effects, **ARGS, **kwargs)
    return model


@pytest.fixture(scope="module")
def model() -> XTrimoGenePerturbation:
    """Do not change it."""
    return train(make_perturbed_cells())


@pytest.fixture(scope="module")
def with_unseen():
    """The same cells, with pairs that the model has not seen."""
    pairs = [("GENE2", "OUTSIDE1"), ("OUTSIDE3", "OUTSIDE4"), ("GENE2", "GENE4")]
    effects = make_perturbed_cells().uns["effects"]
    return make_perturbed_cells(pairs=pairs, effects=effects, seed=7)


def observed_in(cells) -> anndata.AnnData:
    return scxtrimo.tl.perturbation_effects(cells, "condition")


def test_pairs_that_were_not_measured_are_predicted(model, with_unseen):
    observed = observed_in(with_unseen)
    pairs = [name for name in observed.obs["perturbation"] if "+" in name]
    predicted = model.predict(pairs)
    scores = scxtrimo.tl.perturbation_scores(predicted, observed)
    singles = {n: observed_in(model.adata)[n].layers["effect"][0] for n in model.targets}
    additive = predicted.copy()
    additive.layers["effect"] = np.array(
        [sum(singles[t] for t in name.split("+")) for name in pairs]
    )
    of_additive = scxtrimo.tl.perturbation_scores(additive, observed)
    assert scores["pearson"].min() > 0.8
    assert scores["mse"].mean() < of_additive["mse"].mean()
    assert (predicted.obs["n_unknown"] == 0).all()
    assert not predicted.obs["is_trained"].any()


def test_genes_outside_the_panel_are_targets_like_others(model):
    assert "OUTSIDE1" in model.targets
    assert "OUTSIDE1" not in set(model.vocabulary.gene_ids)
    observed = observed_in(model.adata)
    scores = scxtrimo.tl.perturbation_scores(model.predict("OUTSIDE1"), observed)
    assert scores["pearson"].iloc[0] > 0.9


def test_the_order_of_genes_does_not_matter(model):
    names = ["GENE2+OUTSIDE1", "OUTSIDE1+GENE2", ("OUTSIDE1", "GENE2")]
    first, *others = (model.predict([name]) for name in names)
    for other in others:
        assert other.obs_names.tolist() == [UNSEEN_PAIR]
        for layer in ("effect", "std"):
            np.testing.assert_array_equal(first.layers[layer], other.layers[layer])


def test_predictions_do_not_depend_on_their_company(model):
    alone = model.predict(UNSEEN_PAIR)
    together = model.predict([*model.perturbations, UNSEEN_PAIR])
    np.testing.assert_allclose(alone.X[0], together.X[-1], rtol=1e-5, atol=1e-6)


def test_mean_effect_and_control_belong_together(model):
    predicted = model.predict()
    mean = np.maximum(predicted.layers["control"] + predicted.layers["effect"], 0)
    np.testing.assert_allclose(predicted.X, mean, rtol=1e-6)
    assert (predicted.layers["std"] > 0).all()
    assert predicted.obs["is_trained"].all()


def test_what_is_predicted_less_well_is_less_certain(model):
    known = model.predict("GENE1").layers["std"].mean()
    pair = model.predict(UNSEEN_PAIR).layers["std"].mean()
    unknown = model.predict("NOBODY", unknown_targets="average").layers["std"].mean()
    assert known < pair < unknown


def test_intervals_cover_what_was_not_seen():
    names = [f"T{i}" for i in range(12)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    model = train(make_perturbed_cells(targets=names, pairs=pairs[::3]))
    again = make_perturbed_cells(targets=names, pairs=pairs[1::3], seed=7)
    truth = observed_in(again)
    truth = truth[["+" in name for name in truth.obs_names]]
    predicted = model.predict(truth.obs_names.tolist())
    # The control cells of the two experiments, 80 each, are not the same.
    of_controls = truth.layers["std"] * np.sqrt(40) * np.sqrt(2 / 80)
    std = np.sqrt(predicted.layers["std"] ** 2 + truth.layers["std"] ** 2 + of_controls**2)
    inside = np.abs(predicted.layers["effect"] - truth.layers["effect"]) < 1.645 * std
    assert 0.85 < inside.mean() < 0.97


def test_left_out_perturbations_were_not_seen(model):
    held_out = model.held_out
    assert held_out.obs_names.is_unique
    for _, of_kind in held_out.obs.groupby("left_out"):
        assert set(of_kind["perturbation"]) == set(model.perturbations)
    without = held_out.obs[held_out.obs["left_out"] == "target"]
    for name, unseen in zip(without["perturbation"], without["unseen_targets"], strict=True):
        assert unseen
        assert set(unseen.split("+")) <= set(name.split("+"))
    only = held_out.obs[held_out.obs["left_out"] == "perturbation"].set_index("perturbation")
    assert "" in only["unseen_targets"].tolist()
    assert only.loc["OUTSIDE4", "unseen_targets"] == "OUTSIDE4"
    # Its own effect is not in what is predicted for a gene that was never seen.
    rows = (held_out.obs["perturbation"] == "OUTSIDE4").to_numpy()
    mine, truth = held_out[rows].layers["effect"][0], held_out[rows].layers["observed"][0]
    assert np.corrcoef(mine, truth)[0, 1] < 0.6


def test_save_and_load(model, tmp_path):
    asked = [UNSEEN_PAIR, "OUTSIDE2"]
    before = model.predict(asked)
    model.save(tmp_path / "model")
    for data in (model.adata, None):
        loaded = XTrimoGenePerturbation.load(tmp_path / "model", adata=data)
        after = loaded.predict(asked)
        np.testing.assert_array_equal(before.X, after.X)
        np.testing.assert_array_equal(before.layers["std"], after.layers["std"])
        assert loaded.targets == model.targets
    with pytest.raises(ValueError, match="was not trained since it was loaded"):
        _ = loaded.held_out


def test_equal_seeds_give_equal_models():
    first, second = (train(make_perturbed_cells()).predict() for _ in range(2))
    np.testing.assert_array_equal(first.X, second.X)


def test_other_control_cells_in_another_order_of_genes(model):
    cells = model.adata
    controls = cells[(cells.obs["condition"] == "control").to_numpy()].copy()
    order = np.random.default_rng(0).permutation(controls.n_vars)
    permuted = model.predict(UNSEEN_PAIR, adata=controls[:, order].copy())
    plain = model.predict(UNSEEN_PAIR, adata=controls)
    np.testing.assert_allclose(permuted.X, plain.X, atol=1e-5)
    known = model.predict(UNSEEN_PAIR)
    np.testing.assert_allclose(plain.layers["control"], known.layers["control"], atol=1e-5)
    assert np.corrcoef(plain.layers["effect"][0], known.layers["effect"][0])[0, 1] > 0.98


def test_control_cells_with_fewer_genes(model):
    cells = model.adata
    panel = cells[(cells.obs["condition"] == "control").to_numpy(), 10:].copy()
    part = model.predict(UNSEEN_PAIR, adata=panel)
    whole = model.predict(UNSEEN_PAIR)
    assert part.n_vars == whole.n_vars
    assert np.corrcoef(part.layers["effect"][0], whole.layers["effect"][0])[0, 1] > 0.95


def test_perturbed_cells_are_not_used_as_control_cells(model):
    cells = model.adata
    is_control = (cells.obs["condition"] == "control").to_numpy()
    everything = model.predict(UNSEEN_PAIR, adata=cells.copy())
    controls = model.predict(UNSEEN_PAIR, adata=cells[is_control].copy())
    np.testing.assert_allclose(everything.X, controls.X, atol=1e-5)
    perturbed = cells[~is_control].copy()
    with pytest.raises(ValueError, match="has no control cells 'control'"):
        model.predict(UNSEEN_PAIR, adata=perturbed)


def test_drawn_cells_have_the_predicted_mean(model):
    cells = model.predict_cells(UNSEEN_PAIR, n_cells=4000)
    mean = model.predict(UNSEEN_PAIR).X[0]
    drawn = np.asarray(cells.X.mean(axis=0)).ravel()
    assert np.corrcoef(drawn, mean)[0, 1] > 0.98
    assert np.abs(drawn - mean).mean() < 0.1
    assert cells.X.min() >= 0
    again = model.predict_cells(UNSEEN_PAIR, n_cells=4000)
    assert (cells.X != again.X).nnz == 0


def populations(effect_in_b: float):
    """Two populations; perturbations do the same in both, or something else in b."""
    first = make_perturbed_cells(seed=1)
    own = {name: effect_in_b * effect for name, effect in first.uns["effects"].items()}
    second = make_perturbed_cells(seed=2, effects=own)
    cells = joined([first, second])
    cells.obs["line"] = np.repeat(["a", "b"], [first.n_obs, second.n_obs])
    return cells


def joined(parts):
    for i, part in enumerate(parts):
        part.obs_names = [f"{i}-{name}" for name in part.obs_names]
        part.uns = {}
    return anndata.concat(parts)


def test_effects_differ_between_populations_where_they_do():
    cells = populations(effect_in_b=-1.0)
    model = train(cells, population_key="line")
    predicted = model.predict("GENE1")
    assert predicted.obs["population"].tolist() == ["a", "b"]
    assert predicted.obs_names.tolist() == ["GENE1 (a)", "GENE1 (b)"]
    assert np.corrcoef(predicted.layers["effect"])[0, 1] < -0.3
    assert model.predict("GENE1", population="b").obs["population"].tolist() == ["b"]


def test_effects_of_another_kind_are_not_carried_over():
    """What is known elsewhere must not be worse than nothing."""
    cells = populations(effect_in_b=-1.0)
    hidden = (cells.obs["condition"] == "OUTSIDE4") & (cells.obs["line"] == "b")
    observed = scxtrimo.tl.perturbation_effects(cells, "condition", population_key="line")
    model = train(cells[~hidden.to_numpy()].copy(), population_key="line")
    predicted = model.predict("OUTSIDE4", population="b")
    nothing = predicted.copy()
    nothing.layers["effect"] = np.zeros(nothing.shape)
    errors = [
        scxtrimo.tl.perturbation_scores(p, observed)["mse"].iloc[0] for p in (predicted, nothing)
    ]
    assert errors[0] < 1.15 * errors[1]
    assert "population" in set(model.held_out.obs["left_out"])


def test_a_perturbation_is_carried_over_from_another_population():
    cells = populations(effect_in_b=1.0)
    hidden = (cells.obs["condition"] == "OUTSIDE4") & (cells.obs["line"] == "b")
    observed = scxtrimo.tl.perturbation_effects(cells, "condition", population_key="line")
    model = train(cells[~hidden.to_numpy()].copy(), population_key="line")
    predicted = model.predict("OUTSIDE4", population="b")
    assert not predicted.obs["is_trained"].any()
    assert model.predict("OUTSIDE4", population="a").obs["is_trained"].all()
    scores = scxtrimo.tl.perturbation_scores(predicted, observed)
    assert scores["pearson"].iloc[0] > 0.8


def related_targets():
    """Targets in four families of equal effects, and features that say who belongs together."""
    rng = np.random.default_rng(5)
    names = [f"T{i}" for i in range(16)]
    family = rng.normal(0, 1.5, (4, 60)) * (rng.random((4, 60)) < 0.3)
    effects = {name: family[i % 4] for i, name in enumerate(names)}
    features = pd.DataFrame(np.eye(4)[np.arange(16) % 4], index=names)
    return names, effects, features


def test_features_say_what_an_unseen_gene_does():
    names, effects, features = related_targets()
    cells = make_perturbed_cells(targets=names, pairs=[], effects=effects)
    observed = observed_in(cells)
    seen = cells[~cells.obs["condition"].isin(["T0", "T1"]).to_numpy()].copy()
    model = train(seen, target_features=features)
    scores = scxtrimo.tl.perturbation_scores(model.predict(["T0", "T1"]), observed)
    assert scores["pearson"].min() > 0.8
    edges = [(a, b) for i, a in enumerate(names) for b in names[i + 4 :: 4]]
    model = train(seen, relations=pd.DataFrame(edges, columns=["source", "target"]))
    scores = scxtrimo.tl.perturbation_scores(model.predict(["T0", "T1"]), observed)
    assert scores["pearson"].min() > 0.8
    without = train(seen).predict(["T0", "T1"], unknown_targets="average")
    scores = scxtrimo.tl.perturbation_scores(without, observed)
    assert scores["pearson"].max() < 0.8


def test_features_survive_saving(tmp_path):
    names, effects, features = related_targets()
    cells = make_perturbed_cells(targets=names, pairs=[], effects=effects, n_cells=15)
    seen = cells[(cells.obs["condition"] != "T0").to_numpy()].copy()
    model = train(seen, target_features={"family": features})
    model.save(tmp_path / "model")
    loaded = XTrimoGenePerturbation.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict("T0").X, model.predict("T0").X)


def test_the_network_corrects_what_it_has_learned_and_nothing_else():
    """Pairs add up to a ceiling. With many of them this is learned, with few it is left alone."""
    rng = np.random.default_rng(0)
    names = [f"T{i}" for i in range(24)]
    effects = {n: rng.normal(0, 2.0, 60) * (rng.random(60) < 0.4) for n in names}
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 : i + 4]]
    cells = make_perturbed_cells(targets=names, pairs=pairs, effects=effects)
    model = train(cells, effects=EffectsConfig(n_steps=300))
    assert model.module.effects.gate[0] > 0.3
    plain = train(cells, effects=EffectsConfig(correct=False))
    errors = []
    for trained in (model, plain):
        held_out = trained.held_out
        obs = held_out.obs
        rows = (obs["left_out"] == "perturbation") & (obs["unseen_targets"] == "")
        rows = rows.to_numpy()
        missed = held_out.layers["effect"] - held_out.layers["observed"]
        errors.append(np.square(missed[rows]).mean())
    assert errors[0] < 0.97 * errors[1]
    # What was measured is not corrected.
    pair = "+".join(pairs[0])
    first, second = (trained.predict(pair).layers["effect"] for trained in (model, plain))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_trained_network_is_taken_over():
    cells = make_perturbed_cells()
    network = train_tiny(cells)
    model = XTrimoGenePerturbation.from_xtrimogene_model(network, cells, "condition")
    model.train(effects=FAST)
    np.testing.assert_allclose(
        model.get_gene_embeddings(["GENE1"]), network.get_gene_embeddings(["GENE1"])
    )
    observed = observed_in(cells)
    assert scxtrimo.tl.perturbation_scores(model.predict(), observed)["pearson"].median() > 0.9


def outside_the_panel(n_targets=4, **kwargs):
    """Cells whose perturbed genes are not measured."""
    names = [f"OUTSIDE{i}" for i in range(n_targets)]
    return make_perturbed_cells(targets=names, pairs=[tuple(names[:2])], n_cells=20, **kwargs)


@pytest.mark.parametrize(("n_targets", "correct"), [(4, True), (10, False)])
def test_an_encoder_that_contributes_nothing_is_not_trained(n_targets, correct, tmp_path):
    cells = outside_the_panel(n_targets)
    config = EffectsConfig(n_steps=30, correct=correct)
    model = train(cells, effects=config)
    assert not model.is_trained_
    assert model.history == {}
    assert "none, they are the same for any encoder, so it was not trained" in repr(model)
    for result in (
        model.get_latent_representation,
        model.get_normalized_expression,
        model.get_gene_embeddings,
    ):
        with pytest.raises(ValueError, match="encoder of this model was not trained"):
            result()
    # Nor does a trained encoder change anything.
    XTrimoGene.setup_anndata(cells)
    network = XTrimoGene(cells, size="tiny", seed=5)
    network.train(1, **ARGS)
    other = XTrimoGenePerturbation.from_xtrimogene_model(network, cells, "condition", seed=0)
    other.train(effects=config)
    assert repr(other).endswith("none, they are the same for any encoder")
    assert other.get_latent_representation().shape == (cells.n_obs, 32)
    model.save(tmp_path / "model")
    loaded = XTrimoGenePerturbation.load(tmp_path / "model", adata=cells)
    controls = cells[(cells.obs["condition"] == "control").to_numpy(), 5:].copy()
    names = ["OUTSIDE0+OUTSIDE2", "OUTSIDE1"]
    for data in (None, controls):
        expected = model.predict(names, adata=data)
        for layer in ("effect", "std", "score", "control"):
            for same in (other, loaded):
                found = same.predict(names, adata=data).layers[layer]
                np.testing.assert_array_equal(found, expected.layers[layer])
    for layer in ("effect", "std", "score", "observed"):
        np.testing.assert_array_equal(model.held_out.layers[layer], other.held_out.layers[layer])


def test_the_encoder_is_trained_as_soon_as_it_may_contribute():
    model = train(outside_the_panel(10), effects=EffectsConfig(correct=False))
    before = model.predict("OUTSIDE1")
    model.train(1, effects=FAST, **ARGS)  # a correction has the encoder's view of the genes
    assert model.is_trained_
    assert len(model.history["validation_loss"]) == 1
    assert model.get_gene_embeddings().shape == (60, 32)
    np.testing.assert_array_equal(model.predict("OUTSIDE1").X, before.X)


def test_predictions_without_a_correction_are_the_same_for_any_encoder():
    model = train(outside_the_panel(10))
    assert not model.module.effects.gate.any()  # there is nothing to correct
    controls = model.adata[(model.adata.obs["condition"] == "control").to_numpy()].copy()
    before = [model.predict("OUTSIDE0+OUTSIDE3", adata=data).X for data in (None, controls)]
    for parameter in model.module.net.parameters():
        torch.nn.init.normal_(parameter.data)
    after = [model.predict("OUTSIDE0+OUTSIDE3", adata=data).X for data in (None, controls)]
    np.testing.assert_array_equal(before, after)


def test_it_is_said_what_the_encoder_contributes(model):
    assert repr(model).endswith("encoder in the predictions: gene embeddings")
    names = ["OUTSIDE1", "OUTSIDE2", "OUTSIDE3"]
    both = joined([make_perturbed_cells(targets=names, pairs=[], n_cells=10) for _ in range(2)])
    both.obs["line"] = np.repeat(["a", "b"], both.n_obs // 2)
    assert repr(train(both, population_key="line")).endswith(": similarity of populations")


def test_a_network_that_knows_more_genes_than_the_data():
    cells = make_perturbed_cells()
    network = train_tiny(make_perturbed_cells(n_genes=90))
    panel = cells[:, :30].copy()
    panel = panel[np.asarray(panel.X.sum(axis=1)).ravel() > 0].copy()
    model = XTrimoGenePerturbation.from_xtrimogene_model(network, panel, "condition")
    model.train(effects=FAST)
    assert model.predict("GENE1").n_vars == 30
    assert model.predict("GENE50").obs["n_unknown"].tolist() == [1]  # its embedding is known


def test_training_on_another_screen(model, tmp_path):
    model.save(tmp_path / "model")
    effects = {"NEW1": np.full(60, 1.0), "NEW2": np.full(60, -1.0), "NEW3": np.eye(60)[3] * 3}
    other = make_perturbed_cells(targets=list(effects), pairs=[], effects=effects)
    loaded = XTrimoGenePerturbation.load(tmp_path / "model", adata=other)
    loaded.train(effects=FAST)
    assert loaded.perturbations == ["NEW1", "NEW2", "NEW3"]
    scores = scxtrimo.tl.perturbation_scores(loaded.predict("NEW3"), observed_in(other))
    assert scores["pearson"].iloc[0] > 0.9


def test_one_perturbation_says_nothing_about_others():
    cells = make_perturbed_cells(targets=["GENE1"], pairs=[], n_cells=10)
    XTrimoGenePerturbation.setup_anndata(cells, "condition")
    model = XTrimoGenePerturbation(cells, size="tiny")
    with pytest.raises(ValueError, match="single perturbation 'GENE1'"):
        model.train(1, **ARGS)
    assert not model.is_trained_


def test_a_failed_training_leaves_the_model_as_it_was(tmp_path, model, monkeypatch):
    model.save(tmp_path / "model")
    loaded = XTrimoGenePerturbation.load(tmp_path / "model", adata=model.adata)
    before = loaded.predict("GENE1").X

    def fail(*args, **kwargs):
        raise RuntimeError("interrupted")

    monkeypatch.setattr(torch.optim.LBFGS, "step", fail)  # variances are fitted by it
    with pytest.raises(RuntimeError, match="interrupted"):
        loaded.train()
    np.testing.assert_array_equal(loaded.predict("GENE1").X, before)


@pytest.mark.parametrize("kind", ["categorical", "view", "backed", "mudata", "ensembl", "few"])
def test_data_of_all_kinds(kind, tmp_path):
    cells = make_perturbed_cells(n_cells=1 if kind == "few" else 10)
    cells.obs["condition"] = cells.obs["condition"].astype("category")
    data, setup = cells, {}
    if kind == "view":
        data = make_perturbed_cells(n_cells=20)[::2]
    elif kind == "backed":
        cells.uns = {}
        cells.write_h5ad(tmp_path / "cells.h5ad")
        data = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    elif kind == "mudata":
        data = mudata.MuData({"rna": cells})
        data.obs["condition"] = cells.obs["condition"].astype(str)
        del data.mod["rna"].obs["condition"]
        setup = {"modality": "rna"}
    elif kind == "ensembl":
        cells.var["id"] = [f"ENSG{i}" for i in range(cells.n_vars)]
        setup = {"gene_id_key": "id"}
    XTrimoGenePerturbation.setup_anndata(data, "condition", **setup)
    model = XTrimoGenePerturbation(data, size="tiny")
    model.train(1, effects=FAST, **ARGS)
    effect = model.predict("GENE1+GENE3").layers["effect"]
    assert np.isfinite(effect).all()
    assert np.abs(effect).max() > 0.05
    if kind == "ensembl":  # targets are symbols, which are found
        assert model.predict("GENE20").obs["n_unknown"].tolist() == [1]


def test_controls_named_like_combinations():
    cells = make_perturbed_cells(n_cells=10)
    cells.obs["condition"] = cells.obs["condition"].replace("control", "no+guide")
    model = train(cells, control="no+guide")
    assert "GENE1" in model.perturbations


def test_names_of_perturbations():
    cells = make_perturbed_cells()
    cells.obs["condition"] = [
        f"{name}_ctrl" if "+" not in name and name != "control" else name.replace("+", "_")
        for name in cells.obs["condition"].replace("control", "ctrl")
    ]
    model = train(cells, control="ctrl", separator="_")
    assert "GENE1" in model.perturbations
    assert "GENE1_GENE2" in model.perturbations


def test_library_sizes_are_those_of_all_genes():
    cells = make_perturbed_cells()
    cells.obs["total"] = np.asarray(cells.X.sum(axis=1)).ravel()
    panel = cells[:, :40].copy()
    model = train(panel, library_size_key="total")
    whole = observed_in(cells)[:, :40]
    known = scxtrimo.tl.perturbation_effects(panel, "condition", library_size_key="total")
    np.testing.assert_allclose(known.layers["effect"], whole.layers["effect"], atol=1e-5)
    np.testing.assert_allclose(
        model.predict("GENE1").layers["control"][0], whole.layers["control"][0], atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "setup", "message"),
    [
        ({}, {"control": "ctrl"}, "has no control cells 'ctrl'"),
        ({}, {"perturbation_key": "guide"}, "'guide' is not a column of adata.obs"),
        ({"condition": "control"}, {}, "has control cells only"),
        ({"condition": "A++B"}, {}, "empty gene name"),
        ({"condition": "A+A"}, {}, r"names \['A'\] twice"),
        ({"condition": np.nan}, {}, "missing values"),
        ({"total": -1.0}, {"library_size_key": "total"}, "must hold the total counts"),
        ({"total": "many"}, {"library_size_key": "total"}, "must hold the total counts"),
        ({}, {"population_key": "line"}, "'line' is not a column of adata.obs"),
    ],
)
def test_bad_set_ups_are_refused(change, setup, message):
    cells = make_perturbed_cells(n_cells=4)
    for key, value in change.items():
        if value == "control":
            cells.obs[key] = value
            continue
        column = cells.obs[key].astype(object) if key in cells.obs else 1.0
        cells.obs[key] = column
        cells.obs[key] = cells.obs[key].astype(object)
        cells.obs.loc[cells.obs_names[3], key] = value
    with pytest.raises(ValueError, match=message):
        XTrimoGenePerturbation.setup_anndata(cells, **({"perturbation_key": "condition"} | setup))


def test_a_population_without_control_cells_is_named():
    cells = make_perturbed_cells(n_cells=6)
    cells.obs["line"] = np.where(cells.obs["condition"] == "GENE1", "odd", "even")
    XTrimoGenePerturbation.setup_anndata(cells, "condition", population_key="line")
    model = XTrimoGenePerturbation(cells, size="tiny")
    with pytest.raises(ValueError, match="'odd' of adata.obs.'line'. have no control cells"):
        model.train(1, **ARGS)
    assert not model.is_trained_  # found before the network was trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"perturbations": "NOBODY+GENE1"}, "Nothing is known about 'NOBODY'"),
        ({"perturbations": "control"}, "has 'control', which is the control"),
        ({"perturbations": []}, "perturbations is empty"),
        ({"perturbations": "GENE1+GENE1"}, "twice"),
        ({"perturbations": ["GENE1+GENE2", "GENE2+GENE1"]}, "more than once"),
        ({"perturbations": "GENE1", "population": "x"}, "population='x' is not one"),
        ({"perturbations": "GENE1", "population": ["all", "all"]}, "each once"),
        ({"perturbations": "GENE1", "unknown_targets": "zero"}, "must be 'raise' or 'average'"),
    ],
)
def test_bad_questions_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.predict(**arguments)


def test_a_measured_gene_that_was_never_perturbed_may_be_asked_for(model):
    """Its embedding is known."""
    assert model.predict("GENE9").obs["n_unknown"].tolist() == [1]


def test_an_untrained_model_predicts_nothing():
    cells = make_perturbed_cells(n_cells=4)
    XTrimoGenePerturbation.setup_anndata(cells, "condition")
    with pytest.raises(ValueError, match="No effects were learned yet"):
        XTrimoGenePerturbation(cells, size="tiny").predict("GENE1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_features": pd.DataFrame([[np.nan]], index=["A"])}, "NaN or infinite"),
        ({"target_features": pd.DataFrame([[1.0], [2.0]], index=["A", "A"])}, "genes twice: 'A'"),
        ({"relations": pd.DataFrame({"source": ["A"]})}, r"lacks the columns \['target'\]"),
        (
            {"target_features": pd.DataFrame([[1.0], [2.0]], index=["A", "B"])},
            "None of the 8 perturbed genes, such as 'GENE1', is in target_features",
        ),
        (
            {"relations": pd.DataFrame({"source": ["A"], "target": ["B"]})},
            "None of the 8 perturbed genes, such as 'GENE1', is in relations",
        ),
        ({"relations": pd.DataFrame({"source": ["A"], "target": ["A"]})}, "no edges"),
        (
            {"relations": pd.DataFrame({"source": ["A"], "target": ["B"], "weight": [-1.0]})},
            "must be positive",
        ),
    ],
)
def test_bad_features_are_refused(arguments, message):
    cells = make_perturbed_cells(n_cells=4)
    XTrimoGenePerturbation.setup_anndata(cells, "condition")
    model = XTrimoGenePerturbation(cells, size="tiny")
    with pytest.raises(ValueError, match=message):
        model.train(1, **arguments, **ARGS)
    assert not model.is_trained_


def test_models_of_another_kind_are_refused(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="holds a model of class XTrimoGenePerturbation"):
        XTrimoGene.load(tmp_path / "model")


def test_what_follows_from_perturbations_that_are_unknown_is_said(caplog):
    cells = make_perturbed_cells(10, 20)
    XTrimoGenePerturbation.setup_anndata(cells, "condition")
    model = XTrimoGenePerturbation(cells, size="tiny")
    query = cells.copy()
    query.obs["condition"] = query.obs["condition"].replace({"GENE2": "GENE19"})
    model.prepare_query_anndata(query)
    (message,) = [text for text in caplog.messages if "unknown to the model" in text]
    assert "GENE19" in message
    assert message.endswith("their effects are neither learned from nor needed.")
