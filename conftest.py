"""Names that the examples in docstrings use."""

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

    Besides `perturbed_cells`, which are made up, and a `perturbation_model` of them.
    """
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
    return {
        "scxtrimo": scxtrimo,
        "adata": adata,
        "model": model,
        "annotator": annotator,
        "perturbed_cells": perturbed_cells,
        "perturbation_model": perturbation_model,
    }
