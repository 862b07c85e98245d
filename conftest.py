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
    """`scxtrimo`, and on the bundled cells `adata`, `model` and `annotator`, hardly trained."""
    import scxtrimo

    adata = scxtrimo.pp.pbmc68k_counts()
    scxtrimo.model.XTrimoGene.setup_anndata(adata)
    model = scxtrimo.model.XTrimoGene(adata, size="tiny")
    model.train(max_epochs=1, enable_progress_bar=False)
    annotator = scxtrimo.model.XTrimoGeneAnnotator.from_xtrimogene_model(
        model, labels_key="bulk_labels"
    )
    annotator.train()
    return {"scxtrimo": scxtrimo, "adata": adata, "model": model, "annotator": annotator}
