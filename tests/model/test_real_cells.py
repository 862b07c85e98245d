"""Real cells of other sources, panels and identifiers; skipped where they are not at hand."""

import numpy as np
import pytest
from helpers import train_tiny
from numpy.testing import assert_allclose

from scxtrimo.data.vocabulary import COVERAGE_KEY
from scxtrimo.model.xtrimogene import XTrimoGene


@pytest.fixture(scope="module")
def trained():
    return {}


def reference(shared_cells, trained: dict) -> XTrimoGene:
    if "model" not in trained:
        cells = shared_cells("pbmc3k")[:300].copy()
        trained["model"] = train_tiny(cells, max_epochs=1, n_input_genes=1000)
    return trained["model"]


def test_the_same_cells_under_ensembl_ids(shared_cells, trained):
    model = reference(shared_cells, trained)
    cells = shared_cells("pbmc3k")[300:350].copy()
    expected = model.get_latent_representation(cells)
    model.prepare_query_anndata(cells, gene_aliases={})
    versioned = shared_cells("pbmc3k")[300:350].copy()
    aliases = dict(zip(versioned.var["ensembl"], versioned.var_names, strict=True))
    versioned.var_names = versioned.var["ensembl"] + ".3"
    del versioned.var["symbol"]
    model.prepare_query_anndata(versioned, gene_aliases=aliases)
    assert_allclose(model.get_latent_representation(versioned), expected, atol=1e-5)
    assert versioned.uns[COVERAGE_KEY]["overlap"] == 1


@pytest.mark.parametrize(
    ("name", "overlap"), [("pbmc4k", 0.9), ("kang_ifnb", 0.4), ("tnbc_deep", 0.9)]
)
def test_other_data_sets_are_embedded(shared_cells, trained, name, overlap):
    model = reference(shared_cells, trained)
    cells = shared_cells(name)[:60].copy()
    latent = model.get_latent_representation(cells)
    assert latent.shape == (60, 32)
    assert np.isfinite(latent).all()
    assert cells.uns[COVERAGE_KEY]["overlap"] > overlap


def test_log_normalised_screen_points_to_its_counts(shared_cells):
    import anndata
    from conftest import SHARED_DATA

    path = SHARED_DATA / "perturbation" / "norman_mcfaline.h5ad"
    if not path.exists():
        pytest.skip(f"shared data set {path.name} is not here")
    with pytest.raises(ValueError, match="`layer='counts_recovered'` looks raw"):
        XTrimoGene.setup_anndata(anndata.read_h5ad(path))
