"""Fixtures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import anndata
import pytest
import torch
from helpers import make_cells, train_tiny
from hypothesis import settings

import scxtrimo

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
settings.register_profile("untimed", deadline=None)  # other work on the machine is no failure
settings.load_profile("untimed")


@pytest.fixture
def caplog(caplog):
    """Catch our messages, too, which do not go on to other loggers."""
    scxtrimo._logging.logger.addHandler(caplog.handler)
    yield caplog
    scxtrimo._logging.logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture
def cells() -> anndata.AnnData:
    """150 cells x 60 genes."""
    return make_cells()


@pytest.fixture(scope="session")
def _trained() -> scxtrimo.model.XTrimoGene:
    return train_tiny(make_cells(), setup={"batch_key": "batch", "labels_key": "cell_type"})


@pytest.fixture
def model(_trained) -> scxtrimo.model.XTrimoGene:
    """A trained model with a batch covariate; do not change it."""
    return _trained


@pytest.fixture
def shared_cells() -> Callable[[str], anndata.AnnData]:
    """Read one of the shared real data sets."""

    def read(name: str) -> anndata.AnnData:
        path = SHARED_DATA / "cells" / f"{name}.h5ad"
        if not path.exists():
            pytest.skip(f"shared data set {path.name} is not here")
        return anndata.read_h5ad(path)

    return read


@pytest.fixture(scope="session")
def published_index() -> Path:
    """The gene index of the published checkpoints."""
    path = SHARED_DATA / "genes" / "OS_scRNA_gene_index.19264.tsv"
    if not path.exists():
        pytest.skip(f"the gene index {path.name} is not here")
    return path
