"""Names that the examples in docstrings use."""

import re
import shutil
from importlib.util import find_spec

import pytest

GB1 = "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
INSULIN = "FVNQHLCGSHLVEALYLVCGERGFFYTPKT"
READS_STORE = re.compile(r"\b(CellStore|StoreDataModule|write_store|pretrain|embed_store)\(")


@pytest.fixture(autouse=True)
def _doctest_names(request: pytest.FixtureRequest, doctest_namespace: dict) -> None:
    if request.node.__class__.__name__ != "DoctestItem":
        return
    source = "".join(example.source for example in request.node.dtest.examples)
    store = request.getfixturevalue("_store") if READS_STORE.search(source) else None
    directory = request.getfixturevalue("_in_empty_directory")
    if "proteins.fasta" in source:
        import scxtrimo

        scxtrimo.write_fasta({"gb1": GB1, "insulin": INSULIN}, directory / "proteins.fasta")
    if store is not None:
        shutil.copytree(store, directory / "cells.zarr")
    doctest_namespace |= request.getfixturevalue("_example")


@pytest.fixture
def _in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def _store(tmp_path_factory):
    """Write the bundled cells to a store, the `cells.zarr` of the examples."""
    pytest.importorskip("annbatch")
    import scxtrimo

    directory = tmp_path_factory.mktemp("store")
    scxtrimo.datasets.pbmc68k().write_h5ad(directory / "pbmc.h5ad")
    files, out = [directory / "pbmc.h5ad"], directory / "cells.zarr"
    scxtrimo.pretraining.write_store(files, out, min_genes=1, validation_size=0.05)
    return out


@pytest.fixture(scope="session")
def _example() -> dict:
    """`scxtrimo`, and on the bundled cells `adata`, `model` and `annotator`, hardly trained.

    What is made up: `proteins` with a `proteins_model`, `perturbed_cells` with a
    `perturbation_model`, and, where the extra `drug` is
    installed, `lines` and a `screen` of drugs with a model `synergy`.
    """
    from drug_screens import FAST, SMALL, make_lines, make_screen
    from helpers import make_perturbed_cells, make_proteins

    import scxtrimo

    adata = scxtrimo.datasets.pbmc68k()
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
    effects = scxtrimo.perturbation.EffectsConfig(n_steps=20)
    perturbation_model.train(max_epochs=1, effects=effects, enable_progress_bar=False)
    proteins = make_proteins()
    scxtrimo.model.XTrimoPGLM.setup_anndata(proteins)
    proteins_model = scxtrimo.model.XTrimoPGLM(proteins, size="tiny")
    names = {
        "proteins": proteins,
        "proteins_model": proteins_model,
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
