"""What is said of drugs and lines that were not trained on, and of unusual input."""

import copy
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from drug_screens import FAST, SMALL, SMILES, make_lines, make_screen
from sklearn.metrics import roc_auc_score

from scxtrimo.drugs.model import XTrimoGeneDrugResponse, XTrimoGeneSynergy
from scxtrimo.drugs.training import choose_own_weight, draw_newcomers

pytest.importorskip("rdkit")
pytest.importorskip("torch_geometric")


def make_model(lines, screen, **kwargs) -> XTrimoGeneSynergy:
    XTrimoGeneSynergy.setup_anndata(lines, expression=kwargs.pop("expression", "values"))
    return XTrimoGeneSynergy(lines, screen, **(SMALL | kwargs))


def probability(model, table, **kwargs) -> np.ndarray:
    return model.predict(table, **kwargs)["probability"].to_numpy()


@pytest.fixture(scope="module")
def lines():
    return make_lines()


@pytest.fixture(scope="module")
def screen(lines):
    return make_screen(lines)


@pytest.fixture(scope="module")
def model(lines, screen) -> XTrimoGeneSynergy:
    """Do not change it."""
    model = make_model(lines, screen)
    model.train(15, **FAST)
    return model


def test_new_lines_are_predicted_by_their_expression(lines, screen):
    is_new = screen["cell"].isin(["LINE10", "LINE11"])
    model = make_model(lines[:10].copy(), screen[~is_new])
    model.train(25, validate_on="lines", **FAST)
    new = lines[10:].copy()
    assert (
        roc_auc_score(screen.loc[is_new, "label"], probability(model, screen[is_new], lines=new))
        > 0.75
    )
    with pytest.raises(ValueError, match="'LINE10', 'LINE11'"):
        model.predict(screen)


def test_new_drugs_are_predicted_by_their_structure(lines, screen):
    new = [SMILES["glycine"], SMILES["benzamide"]]
    is_new = screen[["drug1", "drug2"]].isin(new).any(axis=1)
    model = make_model(lines, screen[~is_new])
    model.train(25, **FAST)
    assert roc_auc_score(screen.loc[is_new, "label"], probability(model, screen[is_new])) > 0.7
    assert not set(new) & set(model.smiles)


def test_new_lines_are_trusted_where_expression_says_something(model, lines, screen):
    assert model.module.own_weight[1] > 0.5
    new = lines[:2].copy()
    new.obs_names = ["NEW0", "NEW1"]
    table = screen[screen["cell"].isin(["LINE0", "LINE1"])]
    renamed = table.assign(cell=table["cell"].str.replace("LINE", "NEW"), drug1="CCN")
    alone = probability(model, renamed.iloc[[3]], lines=new)
    np.testing.assert_allclose(alone, probability(model, renamed, lines=new)[[3]], atol=1e-5)


@pytest.mark.parametrize("is_classification", [True, False])
def test_the_weight_is_that_of_what_predicts(is_classification):
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=(2, 400))
    target = (signal > 0).astype(float) if is_classification else signal
    assert choose_own_weight(signal, noise, target, is_classification) > 0.8
    assert choose_own_weight(noise, signal, target, is_classification) < 0.2
    assert choose_own_weight(signal[:9], noise[:9], target[:9], is_classification) is None


def test_newcomers_are_drawn_from_training_rows():
    rng = np.random.default_rng(0)
    drugs, lines = rng.integers(0, 20, (2000, 2)), rng.integers(0, 12, 2000)
    is_trained = rng.random(2000) < 0.8
    drawn = draw_newcomers(drugs, lines, is_trained, 0)
    parts = np.stack(drawn)
    assert (parts.sum(axis=0) <= is_trained).all()
    known_drugs, known_lines = np.unique(drugs[parts[0]]), np.unique(lines[parts[0]])
    assert len(known_drugs) == 15
    assert len(known_lines) == 9
    assert not np.isin(drugs[parts[1]], known_drugs).all(axis=1).any()
    assert np.isin(lines[parts[1]], known_lines).all()
    assert not np.isin(lines[parts[2]], known_lines).any()
    assert np.isin(drugs[parts[2]], known_drugs).all()
    assert draw_newcomers(drugs % 2, lines % 2, is_trained, 0) is None


def test_own_weights_are_saved(model, screen, tmp_path):
    model.save(tmp_path / "model")
    loaded = XTrimoGeneSynergy.load(tmp_path / "model")
    table = screen.assign(drug1="CCN")
    np.testing.assert_array_equal(probability(loaded, table), probability(model, table))


def test_stand_ins_are_pairs_that_may_be(model, screen, monkeypatch):
    """Not a drug with itself: that is no pair of the screen."""
    asked = []
    forward = type(model.module).forward

    def spy(self, drugs_dh, lines_lh, drugs_nd, lines_n):
        asked.append(drugs_nd)
        return forward(self, drugs_dh, lines_lh, drugs_nd, lines_n)

    monkeypatch.setattr(type(model.module), "forward", spy)
    known = screen["drug1"].iloc[0]
    table = screen.head(2).assign(drug1=["CCN", known], drug2=["CCCN", "CCN"])
    model.predict(table)
    assert len(asked) > 3
    assert all((drugs[:, 0] != drugs[:, 1]).all() for drugs in asked)
    swapped = table.rename(columns={"drug1": "drug2", "drug2": "drug1"})
    np.testing.assert_array_equal(probability(model, table), probability(model, swapped))


def test_what_is_new_is_less_certain(model, lines, screen):
    known = model.predict(screen)["predicted_std"].mean()
    new_drug = model.predict(screen.assign(drug1="CCN"))["predicted_std"].mean()
    two_new = model.predict(screen.assign(drug1="CCN", drug2="CCCN"))["predicted_std"].mean()
    assert known < new_drug
    assert known < two_new


def test_a_model_that_learns_nothing_is_trained_all_the_same(lines, screen):
    """Random weights are no better than trained ones, whatever the validation loss says."""
    rng = np.random.default_rng(0)
    noise = screen.assign(label=rng.integers(0, 2, len(screen)))
    model = make_model(lines, noise)
    started = copy.deepcopy(model.module.head.state_dict())
    model.train(3, validate_on="lines", **FAST)
    trained = model.module.head.state_dict()
    assert any((trained[name] != started[name]).any() for name in trained)


def test_an_insensitive_line_is_insensitive_to_a_new_drug():
    """What drugs do to a line on average is what is known of a drug unlike any."""
    lines = make_lines(n_lines=16)
    effect = dict(zip(lines.obs_names, np.linspace(-3, 3, 16), strict=True))
    rows = [(s, line, y) for s in SMILES.values() for line, y in effect.items()]
    screen = pd.DataFrame(rows, columns=["drug", "cell", "y"])
    XTrimoGeneDrugResponse.setup_anndata(lines, expression="values")
    model = XTrimoGeneDrugResponse(lines, screen, **SMALL)
    model.train(2, **FAST)
    new = pd.DataFrame({"drug": "[Pt]", "cell": list(effect)})
    predicted = model.predict(new)["predicted_response"]
    assert np.polyfit(list(effect.values()), predicted, 1)[0] > 0.7


def test_structures_that_another_rdkit_writes_are_still_known(
    model, screen, tmp_path, monkeypatch
):
    before = probability(model, screen)
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    text = path.read_text()
    assert "Oc1ccccc1" in text
    path.write_text(text.replace('"Oc1ccccc1"', '"c1ccc(O)cc1"'))
    loaded = XTrimoGeneSynergy.load(tmp_path / "model")
    np.testing.assert_allclose(probability(loaded, screen), before, atol=1e-6)


def test_expression_of_another_unit_or_layer_is_pointed_out(model, lines, screen, caplog):
    with caplog.at_level(logging.WARNING, "scxtrimo"):
        model.predict(screen, lines=lines)
    assert not caplog.records
    other = lines.copy()
    other.X = 50 * np.exp(other.X)
    with caplog.at_level(logging.WARNING, "scxtrimo"):
        model.predict(screen, lines=other)
    assert "differs from the training data" in caplog.text


def test_query_lines_are_read_from_the_layer_of_the_training(lines, screen):
    layered = lines.copy()
    layered.layers["z"] = lines.X.copy()
    layered.X = np.exp(lines.X)
    XTrimoGeneSynergy.setup_anndata(layered, layer="z", expression="values")
    model = XTrimoGeneSynergy(layered, screen, **SMALL)
    model.train(2, **FAST)
    query = layered.copy()
    del query.uns["scxtrimo_lines"]
    np.testing.assert_allclose(
        probability(model, screen, lines=query), probability(model, screen), atol=1e-6
    )
    del query.layers["z"]
    with pytest.raises(ValueError, match="layer='z' is not in lines.layers"):
        model.predict(screen, lines=query)


def test_a_name_stands_for_one_structure(lines, screen):
    by_name = screen.drop(columns=["drug1", "drug2"])
    keys = {"drug1_key": "name1", "drug2_key": "name2"}
    twice = pd.Series([*SMILES.values(), "CCCCCC"], index=[*SMILES, "ethanol"])
    with pytest.raises(ValueError, match="'ethanol' has two SMILES"):
        make_model(lines, by_name, drugs=twice, **keys)
    model = make_model(lines, by_name, drugs=SMILES, **keys)
    model.train(1, **FAST)
    with pytest.raises(ValueError, match="'ethanol' has two SMILES"):
        model.predict(by_name, drugs={"ethanol": "CCCCCC"})


def test_what_numpy_and_pandas_hand_over_is_saved(lines, screen, tmp_path):
    by_name = screen.drop(columns=["drug1", "drug2"])
    drugs = pd.Series(SMILES | {"antibody": pd.NA})
    small = SMALL | {"n_genes": np.int64(24)}
    XTrimoGeneSynergy.setup_anndata(lines, expression="values")
    model = XTrimoGeneSynergy(
        lines, by_name, drug1_key="name1", drug2_key="name2", drugs=drugs, **small
    )
    model.train(1, **FAST)
    model.save(tmp_path / "model")
    assert XTrimoGeneSynergy.load(tmp_path / "model").config.n_genes == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_hidden": 32.0}, "n_hidden=32.0 must be a whole number"),
        ({"n_genes": "24"}, "n_genes='24' must be a whole number"),
        ({"dropout": "0.1"}, "dropout='0.1' must be a number"),
        ({"seed": -1}, "seed=-1 must not be negative"),
    ],
)
def test_impossible_settings_are_refused_at_once(lines, screen, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model(lines, screen, **arguments)


def test_impossible_training_is_refused_at_once(lines, screen):
    model = make_model(lines, screen)
    with pytest.raises(ValueError, match="max_epochs=2.5 must be a whole number"):
        model.train(2.5, **FAST)
    assert not model.is_trained


def test_labels_that_are_not_what_they_seem(lines, screen, caplog):
    with pytest.raises(ValueError, match="has only the two values -1 and 1"):
        make_model(lines, screen.assign(label=2 * screen["label"] - 1))
    repeated = pd.concat([screen, screen.head(3).assign(label=1 - screen["label"].head(3))])
    with caplog.at_level(logging.WARNING, "scxtrimo"):
        make_model(lines, repeated)
    assert "3 measurements are repeated in the screen" in caplog.text
    with pytest.raises(ValueError, match="duplicate columns: 'label'"):
        make_model(lines, pd.concat([screen, screen[["label"]]], axis=1))


def test_few_validation_rows_are_no_calibration(lines, screen, caplog):
    model = make_model(lines, screen.sample(40, random_state=0))
    with caplog.at_level(logging.INFO, "scxtrimo"):
        model.train(1, **FAST)
    assert "too few to calibrate" in caplog.text
    assert float(model.module.temperature) == 1.0


def test_text_after_a_structure_is_not_swallowed(lines, screen):
    with pytest.raises(ValueError, match="C vitamin"):
        make_model(lines, screen.assign(drug1="C vitamin"))


def test_salts_and_stereoisomers_are_held_out_together(lines, screen):
    salts = screen.copy()
    salts["drug1"] = salts["drug1"].where(np.arange(len(salts)) % 2 == 0, salts["drug1"] + ".Cl")
    model = make_model(lines, salts)
    model.train(1, validate_on="drugs", **FAST)
    held = salts.iloc[model.validation_rows]
    plainly = salts.assign(drug1=salts["drug1"].str.removesuffix(".Cl"))
    seen = set(plainly.drop(index=held.index)[["drug1", "drug2"]].to_numpy().ravel())
    both = plainly.loc[held.index, ["drug1", "drug2"]]
    assert not both.isin(seen).all(axis=1).any()


def test_an_interruption_keeps_the_best_weights(lines, screen, monkeypatch):
    model, step, times = make_model(lines, screen), torch.optim.AdamW.step, []

    def interrupted(optimizer, *args, **kwargs):
        times.append(optimizer)
        if len(times) > 60:
            raise KeyboardInterrupt
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    model.train(25, **FAST)
    assert model.is_trained
    assert len(model.history["validation_loss"]) < 25
    assert roc_auc_score(screen["label"], probability(model, screen)) > 0.6


def test_a_panel_without_the_genes_of_the_encoder_is_refused(screen):
    lines = make_lines(n_genes=80)
    responses = screen.rename(columns={"drug1": "drug", "score": "y"})
    XTrimoGeneDrugResponse.setup_anndata(lines, expression="values")
    model = XTrimoGeneDrugResponse(lines, responses, **(SMALL | {"n_genes": 8}))
    model.train(1, **FAST)
    read = np.array(model.panel.gene_ids)[model.module.read_genes]
    with pytest.raises(ValueError, match="Only 0.0% of the 8 genes the encoder reads"):
        model.predict(responses, lines=lines[:, ~lines.var_names.isin(read)].copy())
