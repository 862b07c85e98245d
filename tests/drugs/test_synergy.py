"""Synergy: what is learned from a screen, and what happens when something is wrong with it."""

import subprocess
import sys
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from drug_screens import FAST, SMALL, SMILES, make_lines, make_screen
from scipy import sparse
from sklearn.metrics import log_loss, roc_auc_score

from scxtrimo.drugs.model import XTrimoGeneDrugResponse, XTrimoGeneSynergy

pytest.importorskip("rdkit")
pytest.importorskip("torch_geometric")

PAIRS = ["drug1", "drug2", "cell"]


def make_model(lines, screen, **kwargs) -> XTrimoGeneSynergy:
    XTrimoGeneSynergy.setup_anndata(lines, expression=kwargs.pop("expression", "values"))
    return XTrimoGeneSynergy(lines, screen, **(SMALL | kwargs))


@pytest.fixture(scope="module")
def lines() -> anndata.AnnData:
    return make_lines()


@pytest.fixture(scope="module")
def screen(lines) -> pd.DataFrame:
    return make_screen(lines)


@pytest.fixture(scope="module")
def held_out(screen) -> np.ndarray:
    return np.random.default_rng(1).random(len(screen)) < 0.25


@pytest.fixture(scope="module")
def model(lines, screen, held_out) -> XTrimoGeneSynergy:
    """Trained on three quarters of the rows; do not change it."""
    model = make_model(lines, screen[~held_out])
    model.train(25, **FAST)
    return model


def probability(model, table, **kwargs) -> np.ndarray:
    return model.predict(table, **kwargs)["probability"].to_numpy()


def test_planted_synergy_is_found_in_rows_not_seen(model, screen, held_out):
    test = screen[held_out]
    assert roc_auc_score(test["label"], probability(model, test)) > 0.85


def test_swapping_the_drugs_changes_nothing_at_all(model, screen):
    swapped = screen.rename(columns={"drug1": "drug2", "drug2": "drug1"})
    for column in ("probability", "predicted_std"):
        np.testing.assert_array_equal(
            model.predict(screen)[column], model.predict(swapped)[column]
        )
    half = screen.copy()  # also where only some rows are swapped
    half.loc[::2, ["drug1", "drug2"]] = half.loc[::2, ["drug2", "drug1"]].to_numpy()
    np.testing.assert_array_equal(probability(model, screen), probability(model, half))


def test_training_on_swapped_rows_gives_the_same_model(lines, screen):
    swapped = screen.rename(columns={"drug1": "drug2", "drug2": "drug1"})
    one, two = (make_model(lines, table) for table in (screen, swapped))
    one.train(1, **FAST)
    two.train(1, **FAST)
    np.testing.assert_allclose(probability(one, screen), probability(two, screen), atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours(model, screen):
    alone = [probability(model, screen.iloc[[i]])[0] for i in (0, 7, 100)]
    np.testing.assert_allclose(alone, probability(model, screen)[[0, 7, 100]], atol=1e-5)


def test_predictions_are_a_copy_with_probabilities(model, screen):
    shuffled = screen.sample(frac=1, random_state=0).drop(columns="label")
    before = shuffled.copy()
    result = model.predict(shuffled)
    pd.testing.assert_frame_equal(shuffled, before)
    assert result.index.equals(shuffled.index)
    assert result["probability"].between(0, 1).all()
    assert (result["predicted_std"] > 0).any()
    expected = model.predict(screen).loc[shuffled.index, "probability"]
    np.testing.assert_allclose(result["probability"], expected, atol=1e-5)


def test_saved_and_loaded_it_predicts_the_same(model, screen, tmp_path):
    model.save(tmp_path / "model")
    loaded = XTrimoGeneSynergy.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.predict(screen), model.predict(screen))
    assert loaded.history["train_loss"].equals(model.history["train_loss"])
    names = {path.suffix for path in (tmp_path / "model").iterdir()}
    assert names == {".json", ".safetensors"}
    with pytest.raises(ValueError, match="no screen to train on"):
        loaded.train()


def test_another_process_imports_the_extra_late_and_predicts_the_same(model, screen, tmp_path):
    model.save(tmp_path / "model")
    screen[PAIRS].head(20).to_csv(tmp_path / "pairs.csv")
    code = (
        "import sys, pandas as pd, scxtrimo\n"
        "assert not {'rdkit', 'torch_geometric'} & set(sys.modules)\n"
        "model = scxtrimo.model.XTrimoGeneSynergy.load(sys.argv[1] + '/model')\n"
        "pairs = pd.read_csv(sys.argv[1] + '/pairs.csv', index_col=0)\n"
        "model.predict(pairs).to_csv(sys.argv[1] + '/result.csv')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert "warn" not in done.stderr.lower()
    result = pd.read_csv(tmp_path / "result.csv", index_col=0)
    np.testing.assert_allclose(
        result["probability"], probability(model, screen.head(20)), atol=1e-6
    )


def test_foreign_and_damaged_files_are_refused(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="XTrimoGeneSynergy, not XTrimoGeneDrugResponse"):
        XTrimoGeneDrugResponse.load(tmp_path / "model")
    with pytest.raises(FileExistsError, match="overwrite"):
        model.save(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="No scxtrimo model"):
        XTrimoGeneSynergy.load(tmp_path)
    weights = next((tmp_path / "model").glob("*.safetensors"))
    weights.write_bytes(b"\x80\x04cos\nsystem\n")  # a pickle
    with pytest.raises(ValueError, match="truncated or damaged"):
        XTrimoGeneSynergy.load(tmp_path / "model")


def test_genes_may_come_in_any_order_and_form(model, lines, screen):
    rng = np.random.default_rng(0)
    permuted = lines[:, rng.permutation(lines.n_vars)].copy()
    permuted.X = sparse.csr_matrix(permuted.X)
    permuted.var_names = permuted.var_names.str.lower()
    expected = probability(model, screen)
    np.testing.assert_allclose(probability(model, screen, lines=permuted), expected, atol=1e-6)
    more = anndata.AnnData(np.c_[lines.X, np.ones((lines.n_obs, 3))])
    more.obs_names, more.var_names = lines.obs_names, [*lines.var_names, "X1", "X2", "X3"]
    np.testing.assert_allclose(probability(model, screen, lines=more), expected, atol=1e-6)


def test_a_partial_panel_changes_predictions_modestly(model, lines, screen):
    read = np.isin(lines.var_names, model.panel.gene_ids)
    rng = np.random.default_rng(0)
    keep = rng.random(lines.n_vars) > 0.3
    assert (read & ~keep).any()
    expected = probability(model, screen)
    partial = probability(model, screen, lines=lines[:, keep].copy())
    assert 0 < np.abs(partial - expected).mean() < 0.1
    assert np.corrcoef(partial, expected)[0, 1] > 0.9


def test_what_was_held_out_is_not_taken_for_known(lines, screen):
    model = make_model(lines, screen)
    model.train(1, validate_on="lines", **FAST)
    held = screen["cell"].to_numpy()[model.validation_rows]
    trained = np.delete(screen["cell"].to_numpy(), model.validation_rows)
    assert not set(held) & set(trained)
    is_known = dict(zip(model.line_names, model.module.line_is_known.tolist(), strict=True))
    assert {name for name, known in is_known.items() if not known} == set(held)
    model.train(1, validate_on="drugs", **FAST)
    held = screen.iloc[model.validation_rows]
    trained = screen.drop(index=held.index)
    seen = set(trained[["drug1", "drug2"]].to_numpy().ravel())
    assert not held[["drug1", "drug2"]].isin(seen).all(axis=1).any()
    model.train(1, validate_on="pairs", **FAST)
    pairs = (screen["drug1"] + screen["drug2"]).to_numpy()
    assert not set(pairs[model.validation_rows]) & set(np.delete(pairs, model.validation_rows))


def test_repeats_are_never_on_both_sides(lines, screen):
    swapped = screen.rename(columns={"drug1": "drug2", "drug2": "drug1"})
    swapped["drug1"] = "OCC"  # ethanol, written in another way
    screen = screen[screen["drug1"] == "CCO"]
    twice = pd.concat([screen, swapped.loc[screen.index].assign(drug2=screen["drug2"])])
    model = make_model(lines, twice)
    model.train(1, validation_size=0.3, **FAST)
    held = set(model.validation_rows.tolist())
    n = len(screen)
    assert held
    assert {row % n for row in held} == {row for row in held if row < n}


def test_calibration_does_not_make_the_held_out_rows_less_likely(lines, screen):
    model = make_model(lines, screen, dropout=0.0)
    model.train(25, **FAST)
    held = model.validation
    calibrated = log_loss(held["truth"], held["probability"])
    model.module.temperature.fill_(1.0)
    plain = log_loss(held["truth"], model.validation["probability"])
    assert calibrated <= plain + 1e-9


def test_the_same_seed_gives_the_same_model(lines, screen):
    def trained(seed: int) -> np.ndarray:
        model = make_model(lines, screen, seed=seed)
        model.train(2, **FAST)
        return probability(model, screen)

    first = trained(3)
    np.testing.assert_array_equal(first, trained(3))
    assert not np.allclose(first, trained(4))


def test_scores_are_predicted_in_their_unit(lines, screen, held_out):
    table = screen.assign(score=100 + 10 * screen["score"])
    model = make_model(lines, table[~held_out], label_key="score")
    assert model.task == "regression"
    model.train(25, **FAST)
    result = model.predict(table[held_out])
    assert np.corrcoef(result["predicted_score"], table.loc[held_out, "score"])[0, 1] > 0.7
    assert abs(result["predicted_score"].mean() - 100) < 5
    numbers = make_model(lines, screen, task="regression")
    assert numbers.task == "regression"


def test_names_of_drugs_are_looked_up(lines, screen, model):
    keys = {"drug1_key": "name1", "drug2_key": "name2"}
    named = make_model(lines, screen, drugs=pd.Series(SMILES), **keys)
    by_smiles = make_model(lines, screen)
    named.train(1, **FAST)
    by_smiles.train(1, **FAST)
    np.testing.assert_array_equal(probability(named, screen), probability(by_smiles, screen))
    new = screen.head(2).assign(name1="new")
    with pytest.raises(ValueError, match="'new'"):
        named.predict(new)
    assert len(named.predict(new, drugs={"new": "CCN"})) == 2
    with pytest.raises(ValueError, match="not in `drugs`: 'urea'"):
        make_model(lines, screen, drugs={k: v for k, v in SMILES.items() if k != "urea"}, **keys)
    with pytest.raises(ValueError, match="'nan of urea'"):
        make_model(lines, screen, drugs=pd.Series(SMILES | {"urea": np.nan}), **keys)
    with pytest.raises(TypeError, match="mapping or Series"):
        make_model(lines, screen, drugs=list(SMILES), **keys)


@pytest.mark.parametrize("drug_input", ["graph", "fingerprint"])
def test_either_way_of_reading_drugs_works_alone(lines, screen, drug_input, held_out):
    model = make_model(lines, screen[~held_out], drug_input=drug_input)
    model.train(12, **FAST)
    test = screen[held_out]
    assert roc_auc_score(test["label"], probability(model, test)) > 0.8


def test_unusual_molecules_are_read(lines, screen):
    table = screen.copy()
    table.loc[0, "drug1"] = "[Pt]"  # a single atom without bonds
    table.loc[1, "drug1"] = "N.N.O=C(O)C1(C(=O)O)CCC1.[Pt]"
    table.loc[2, "drug2"] = table.loc[2, "drug1"]  # a drug with itself
    model = make_model(lines, table)
    model.train(1, **FAST)
    assert model.predict(table)["probability"].notna().all()


def test_booleans_are_classes_and_a_failed_training_leaves_the_last(lines, screen):
    model = make_model(lines, screen.assign(label=screen["label"].astype(bool)))
    assert model.task == "classification"
    model.train(1, **FAST)
    expected = probability(model, screen)
    with pytest.raises(FloatingPointError, match="lower learning rate"):
        model.train(2, lr=1e30, **FAST)
    np.testing.assert_array_equal(probability(model, screen), expected)


def test_nothing_warns(lines, screen, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make_model(lines, screen)
        model.train(1, **FAST)
        model.predict(screen)
    assert capfd.readouterr().err == ""


BAD_SCREENS = {
    "lacks the columns \\['drug2'\\]": lambda t: t.drop(columns="drug2"),
    "has no rows": lambda t: t.head(0),
    "2 rows of `screen` have no 'label'": lambda t: t.assign(label=t["label"].where(t.index > 1)),
    "'label' are 1": lambda t: t[t["label"] == 1],
    "infinite": lambda t: t.assign(label=np.inf),
    "must hold numbers": lambda t: t.assign(label="yes"),
    "2 of 11 cannot be read by RDKit: 'not a drug', 'C1CC'": lambda t: t.assign(
        drug1=np.where(t.index % 2, "C1CC", "not a drug")
    ),
    "cannot be read by RDKit: ''": lambda t: t.assign(drug1=""),
    "cannot be read by RDKit: '3'": lambda t: t.assign(drug1=3),
    "'NOWHERE'": lambda t: t.assign(cell="NOWHERE"),
    "rows of `screen` have no 'cell'": lambda t: t.assign(cell=None),
}


@pytest.mark.parametrize("message", BAD_SCREENS)
def test_what_is_wrong_with_a_screen_is_said(lines, screen, message, capfd):
    with pytest.raises(ValueError, match=message):
        make_model(lines, BAD_SCREENS[message](screen))
    assert "RDKit" not in capfd.readouterr().err


def test_other_mistakes_are_named(lines, screen, model):
    with pytest.raises(ValueError, match="setup_anndata"):
        XTrimoGeneSynergy(make_lines(), screen)
    with pytest.raises(TypeError, match="DataFrame"):
        make_model(lines, screen.to_numpy())
    with pytest.raises(ValueError, match="ranges from"):
        make_model(lines, screen, label_key="score", task="classification")
    with pytest.raises(ValueError, match="task='both'"):
        make_model(lines, screen, task="both")
    with pytest.raises(ValueError, match="both 'drug1'"):
        make_model(lines, screen, drug2_key="drug1")
    with pytest.raises(ValueError, match="not trained"):
        make_model(lines, screen).predict(screen)
    with pytest.raises(ValueError, match="n_members=0"):
        make_model(lines, screen, n_members=0)
    with pytest.raises(ValueError, match="drug_input='name'"):
        make_model(lines, screen, drug_input="name")
    with pytest.raises(ValueError, match="dropout=1"):
        make_model(lines, screen, dropout=1)
    with pytest.raises(ValueError, match="multiple of"):
        make_model(lines, screen, n_line_hidden=30)
    fresh = make_model(lines, screen)
    with pytest.raises(ValueError, match="validate_on='cells'"):
        fresh.train(validate_on="cells")
    with pytest.raises(ValueError, match="validation_size=2"):
        fresh.train(validation_size=2)
    with pytest.raises(ValueError, match="max_epochs=0"):
        fresh.train(0)
    with pytest.raises(ValueError, match="`pairs` lacks the columns \\['cell'\\]"):
        model.predict(screen.drop(columns="cell"))
    with pytest.raises(ValueError, match="cannot be read"):
        model.predict(screen.assign(drug1="C1CC"))
    other = lines.copy()
    other.var_names = [f"OTHER{i}" for i in range(other.n_vars)]
    with pytest.raises(ValueError, match="Only 0.0% of the 24 genes"):
        model.predict(screen, lines=other)


def test_lines_of_another_kind_are_refused(model, lines, screen):
    other = lines.copy()
    other.X = np.abs(other.X)
    XTrimoGeneSynergy.setup_anndata(other, expression="tpm")
    with pytest.raises(ValueError, match='"values", these lines are set up as "tpm"'):
        model.predict(screen, lines=other)


def test_the_extra_is_named_where_it_is_missing(lines, screen, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(ImportError, match=r"PyTorch Geometric.*scxtrimo\[drug\]"):
        make_model(lines, screen)
    monkeypatch.setitem(sys.modules, "rdkit.Chem", None)
    with pytest.raises(ImportError, match=r"RDKit.*scxtrimo\[drug\]"):
        make_model(lines, screen)


def test_predicting_changes_nothing_of_the_lines(model, lines, screen):
    other = make_lines()
    view = other[:, ::-1]
    model.predict(screen, lines=view)
    assert view.is_view
    assert "scxtrimo_lines" not in other.uns
