"""Real screens of drugs, where they are."""

import anndata
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED_DATA
from drug_screens import FAST, SMALL
from sklearn.metrics import roc_auc_score

from scxtrimo.drugs.model import XTrimoGeneDrugResponse, XTrimoGeneSynergy

pytest.importorskip("rdkit")
pytest.importorskip("torch_geometric")

DRUGS = SHARED_DATA / "drugs"
if not DRUGS.is_dir():
    pytest.skip("the shared screens of drugs are not here", allow_module_level=True)


def test_pairs_of_a_real_screen_are_told_apart():
    table = pd.read_csv(DRUGS / "new_cell_features_954.csv", header=None, low_memory=False)
    lines = anndata.AnnData(table.iloc[2:, 1:].to_numpy(dtype=np.float32))
    lines.obs_names = table.iloc[2:, 0].astype(str).to_list()
    lines.var_names = table.iloc[0, 1:].astype(str).to_list()
    screen = pd.read_csv(DRUGS / "new_labels_0_10.csv").sample(4000, random_state=0)
    XTrimoGeneSynergy.setup_anndata(lines)
    assert lines.uns["scxtrimo_lines"]["expression"] == "tpm"
    model = XTrimoGeneSynergy(lines, screen[:3000], **(SMALL | {"n_genes": 64}))
    model.train(8, **FAST)
    test = screen[3000:]
    p = model.predict(test)["probability"]
    assert roc_auc_score(test["label"], p) > 0.7


def test_responses_of_a_real_screen_are_predicted_within_drugs():
    stored = np.load(DRUGS / "gdsc_expression.npz", allow_pickle=False)
    lines = anndata.AnnData(stored["x"].astype(np.float32)[:, :1000])
    lines.obs_names, lines.var_names = stored["cells"].astype(str), stored["genes"][:1000]
    screen = pd.read_csv(DRUGS / "gdsc2_ic50.csv.gz").sample(20_000, random_state=0)
    smiles = pd.read_csv(DRUGS / "gdsc_smiles.csv").set_index("drug")["smiles"]
    XTrimoGeneDrugResponse.setup_anndata(lines)
    small = SMALL | {"n_linear_genes": 500, "n_genes": 64}
    model = XTrimoGeneDrugResponse(lines, screen[:16_000], drugs=smiles, **small)
    model.train(1, **FAST)
    test = screen[16_000:]
    test = test.assign(p=model.predict(test)["predicted_response"])
    assert test["y"].corr(test["p"]) > 0.85
    within = [part["y"].corr(part["p"]) for _, part in test.groupby("drug") if len(part) > 9]
    assert np.mean(within) > 0.4
