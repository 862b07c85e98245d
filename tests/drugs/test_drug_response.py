"""Response to one drug: what closed-form models know, and what the network adds."""

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from drug_screens import FAST, SMALL, SMILES, make_lines, make_responses, make_screen

import scxtrimo
from scxtrimo.drugs.model import XTrimoGeneDrugResponse, XTrimoGeneSynergy
from scxtrimo.drugs.module import ResponseBase, tanimoto
from scxtrimo.drugs.molecules import canonical_smiles

pytest.importorskip("rdkit")
pytest.importorskip("torch_geometric")


def make_model(lines, screen, **kwargs) -> XTrimoGeneDrugResponse:
    XTrimoGeneDrugResponse.setup_anndata(lines, expression="values")
    return XTrimoGeneDrugResponse(lines, screen, **(SMALL | kwargs))


def within_drugs(truth: pd.DataFrame, predicted: pd.Series) -> float:
    """Mean correlation of the lines of a drug."""
    parts = truth.assign(p=predicted.to_numpy()).groupby("drug")
    return float(np.mean([part["y"].corr(part["p"]) for _, part in parts if len(part) > 2]))


@pytest.fixture(scope="module")
def lines():
    return make_lines(n_lines=24)


@pytest.fixture(scope="module")
def screen(lines):
    return make_responses(lines)


@pytest.fixture(scope="module")
def model(lines, screen):
    """Trained on three quarters of the rows; do not change it."""
    model = make_model(lines, screen.sample(frac=0.75, random_state=0))
    model.train(3, **FAST)
    return model


def test_new_measurements_are_predicted_within_drugs(model, screen, lines):
    test = screen.drop(index=screen.sample(frac=0.75, random_state=0).index)
    result = model.predict(test)["predicted_response"]
    assert within_drugs(test, result) > 0.8
    assert np.abs(result - test["y"]).mean() < 0.6


def test_new_lines_are_placed_by_their_expression(lines, screen):
    is_new = screen["cell"].isin(lines.obs_names[-6:])
    model = make_model(lines[:-6].copy(), screen[~is_new])
    model.train(3, **FAST)
    new = lines[-6:, ::-1].copy()  # and the genes in another order
    test = screen[is_new]
    assert within_drugs(test, model.predict(test, lines=new)["predicted_response"]) > 0.8
    fewer = new[:, : new.n_vars // 2].copy()
    assert within_drugs(test, model.predict(test, lines=fewer)["predicted_response"]) > 0.7


def test_new_drugs_are_placed_by_their_structure(lines, screen):
    is_new = screen["name"].isin(["phenol", "acetone"])
    model = make_model(lines, screen[~is_new])
    model.train(3, **FAST)
    test = screen[is_new].assign(p=model.predict(screen[is_new])["predicted_response"])
    phenol = test[test["name"] == "phenol"]
    assert phenol["y"].corr(phenol["p"]) > 0.5
    assert test["p"].between(screen["y"].min(), screen["y"].max()).all()


def test_the_validation_rows_have_no_influence_before_validation(lines, screen):
    model = make_model(lines, screen)
    model.train(1, validate_on="lines", validation_size=0.25, **FAST)
    base = model.module.base
    held = ~model.module.line_is_known
    assert held.sum() == 6
    assert (base.table_ld[held] == 0).all()
    assert (base.table_ld[~held] != 0).any()
    changed = screen.copy()
    changed.loc[model.validation_rows, "y"] += 100.0
    other = make_model(lines, changed)
    other.train(1, validate_on="lines", validation_size=0.25, **FAST)
    torch.testing.assert_close(other.module.base.table_ld, base.table_ld)


def test_a_network_that_adds_nothing_is_left_out(lines, screen):
    model = make_model(lines, screen)
    with pytest.raises(FloatingPointError):
        model.train(2, lr=1e30, **FAST)
    model.train(1, lr=1e-12, **FAST)
    base = model.module.base
    table_ld = base.mean_d[:-1] + base.scale_d[:-1] * base.table_ld
    drugs = [model.smiles.tolist().index(canonical_smiles([s])[s]) for s in screen["drug"]]
    lines = [model.line_names.index(name) for name in screen["cell"]]
    predicted = model.predict(screen)["predicted_response"]
    np.testing.assert_allclose(predicted, table_ld[lines, drugs], atol=1e-4)


def test_saved_and_loaded_it_predicts_the_same(model, screen, lines, tmp_path):
    model.save(tmp_path / "model")
    loaded = XTrimoGeneDrugResponse.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.predict(screen), model.predict(screen))
    new = screen.head(3).assign(drug="CCN")
    other = XTrimoGeneDrugResponse.load(tmp_path / "model", adata=lines[:2].copy())
    np.testing.assert_allclose(
        other.predict(new.head(2))["predicted_response"],
        model.predict(new.head(2))["predicted_response"],
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", [XTrimoGeneDrugResponse, XTrimoGeneSynergy])
def test_history_state_and_seed_are_kept_as_in_other_models(lines, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(scvi.settings, "_seed", 5)
    screen = make_screen(lines, 4) if kind is XTrimoGeneSynergy else make_responses(lines)
    kind.setup_anndata(lines, expression="values")
    model = kind(lines, screen, **SMALL)
    assert (model.history, model.is_trained_, model.seed_) == (None, False, 5)
    assert kind(lines, screen, seed=3, **SMALL).seed_ == 3
    model.save(tmp_path)
    assert kind.load(tmp_path).history is None
    model.train(2, **FAST)
    model.save(tmp_path, overwrite=True)
    loaded = kind.load(tmp_path)
    assert (loaded.is_trained_, loaded.is_trained, loaded.seed_) == (True, True, 5)
    assert list(model.history) == ["train_loss", "validation_loss"]
    for name, losses in model.history.items():
        assert (list(losses), losses.index.name, len(losses)) == ([name], "epoch", 2)
        pd.testing.assert_frame_equal(loaded.history[name], losses)
    assert len(scxtrimo.pl.training_curves(loaded, show=False).lines) == 2
    assert list(loaded.predict(screen, lines)) == list(loaded.predict(screen))


def test_names_with_one_structure_are_one_drug(lines, screen):
    named = screen.assign(drug=screen["name"])
    drugs = SMILES | {"alcohol": "OCC"}
    named.loc[named["drug"] == "ethanol", "drug"] = np.where(
        np.arange(24) % 2, "alcohol", "ethanol"
    )
    model = make_model(lines, named, drugs=drugs)
    assert len(model.smiles) == len(SMILES)


def test_the_table_of_drugs_and_lines_is_completed():
    rng = np.random.default_rng(0)
    drug_of, line_of = rng.normal(size=(2, 20)), rng.normal(size=(2, 60))
    table_ld = line_of.T @ drug_of
    place = rng.permutation(table_ld.size)
    train, test = place[: len(place) // 2], place[len(place) // 2 :]
    base = ResponseBase(20, 60, 5, 8)
    values_lg = np.column_stack([line_of.T, rng.normal(size=(60, 3))]).astype(np.float32)
    fingerprints = np.eye(20, 8, dtype=np.float32)
    base.fit(fingerprints, values_lg, train % 20, train // 20, table_ld.ravel()[train], 0)
    features, everything = torch.from_numpy(fingerprints), torch.from_numpy(values_lg)
    known = base(features, torch.arange(20), everything, torch.arange(60))[0].numpy()
    assert np.corrcoef(known.ravel()[test], table_ld.ravel()[test])[0, 1] > 0.9
    new = base(features, torch.arange(20), everything, torch.full((60,), -1))[0].numpy()
    assert np.corrcoef(new.ravel()[test], table_ld.ravel()[test])[0, 1] > 0.9


def test_fingerprints_are_compared_with_their_counts():
    similarity = tanimoto(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(similarity, torch.tensor([[2 / 3, 0.0]]))


def test_what_is_wrong_is_said(lines, screen):
    with pytest.raises(ValueError, match="lacks the columns \\['y'\\]"):
        make_model(lines, screen.drop(columns="y"))
    with pytest.raises(ValueError, match="no 'y'"):
        make_model(lines, screen.assign(y=screen["y"].where(screen.index > 0)))
    with pytest.raises(ValueError, match="'y' are 2"):
        make_model(lines, screen.assign(y=2.0))
    with pytest.raises(ValueError, match="cannot be read"):
        make_model(lines, screen, drug_key="name")
    with pytest.raises(ValueError, match="'NOWHERE'"):
        make_model(lines, screen.assign(cell="NOWHERE"))


def test_the_former_name_of_the_seed_still_works(model):
    with pytest.warns(FutureWarning, match="`seed` is now `seed_`"):
        assert model.seed == model.seed_
