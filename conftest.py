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

    Of drugs: `lines`, `screen` and `synergy`.
    """
    from drug_screens import FAST, SMALL, make_lines, make_screen

    import scxtrimo

    adata = scxtrimo.pp.pbmc68k_counts()
    scxtrimo.model.XTrimoGene.setup_anndata(adata)
    model = scxtrimo.model.XTrimoGene(adata, size="tiny")
    model.train(max_epochs=1, enable_progress_bar=False)
    annotator = scxtrimo.model.XTrimoGeneAnnotator.from_xtrimogene_model(
        model, labels_key="bulk_labels"
    )
    annotator.train()
    names = {"scxtrimo": scxtrimo, "adata": adata, "model": model, "annotator": annotator}
    if not all(map(find_spec, ("rdkit", "torch_geometric"))):
        return names
    lines = make_lines()
    screen = make_screen(lines, n_drugs=5)
    scxtrimo.model.XTrimoGeneSynergy.setup_anndata(lines, expression="values")
    synergy = scxtrimo.model.XTrimoGeneSynergy(lines, screen, **SMALL)
    synergy.train(1, **FAST)
    return names | {"lines": lines, "screen": screen, "synergy": synergy}
