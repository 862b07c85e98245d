"""Names that the examples in docstrings use."""

from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True)
def _doctest_names(request: pytest.FixtureRequest, doctest_namespace: dict) -> None:
    if request.node.__class__.__name__ != "DoctestItem":
        return
    request.getfixturevalue("_in_empty_directory")
    doctest_namespace |= request.getfixturevalue("_example")


@pytest.fixture
def _in_empty_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def _example() -> dict:
    """`scxtrimo`, and on the bundled cells `adata`, `model` and `annotator`, hardly trained.

    What is made up: `perturbed_cells` with a `perturbation_model`, and, where the extra `drug` is
    installed, `lines` and a `screen` of drugs with a model `synergy`.
    """
    from drug_screens import FAST, SMALL, make_lines, make_screen
    from helpers import make_perturbed_cells

    import scxtrimo

    adata = scxtrimo.pp.pbmc68k_counts()
    scxtrimo.model.XTrimoGene.setup_anndata(adata)
    model = scxtrimo.model.XTrimoGene(adata, size="tiny")
    model.train(max_epochs=1, enable_progress_bar=False)
    annotator = scxtrimo.model.XTrimoGeneAnnotator.from_xtrimogene_model(
        model, labels_key="bulk_labels"
    )
    annotator.train()
    perturbed_cells = make_perturbed_cells()
    scxtrimo.model.XTrimoGenePerturbation.setup_anndata(perturbed_cells, "condition")
    perturbation_model = scxtrimo.model.XTrimoGenePerturbation(perturbed_cells, size="tiny")
    effects = scxtrimo.train.EffectsConfig(n_steps=20)
    perturbation_model.train(max_epochs=1, effects=effects, enable_progress_bar=False)
    names = {
        "scxtrimo": scxtrimo,
        "adata": adata,
        "model": model,
        "annotator": annotator,
        "perturbed_cells": perturbed_cells,
        "perturbation_model": perturbation_model,
    }
    if not all(map(find_spec, ("rdkit", "torch_geometric"))):
        return names
    lines = make_lines()
    screen = make_screen(lines, n_drugs=5)
    scxtrimo.model.XTrimoGeneSynergy.setup_anndata(lines, expression="values")
    synergy = scxtrimo.model.XTrimoGeneSynergy(lines, screen, **SMALL)
    synergy.train(1, **FAST)
    return names | {"lines": lines, "screen": screen, "synergy": synergy}
