"""Data that change, and several models on the same data: never a silent shift."""

import gc
import warnings
import weakref

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scvi
from helpers import make_cells, train_tiny
from numpy.testing import assert_allclose, assert_array_equal

from scxtrimo.data import COVERAGE_KEY
from scxtrimo.model import XTrimoGene


def close(a, b) -> None:
    assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_genes_subset_in_place_after_set_up_are_aligned_again():
    cells = make_cells()
    model = train_tiny(cells, max_epochs=1)
    expected = model.get_latent_representation(make_cells()[:, 20:].copy())
    cells._inplace_subset_var(np.arange(20, 60))
    close(model.get_latent_representation(), expected)
    assert len(model.vocabulary) == 60
    model.train(1, accelerator="cpu", enable_progress_bar=False)


def test_cells_subset_in_place_after_set_up_are_registered_again():
    cells = make_cells()
    model = train_tiny(cells, max_epochs=1, setup={"batch_key": "batch"})
    expected = model.get_normalized_expression().iloc[50:]
    cells._inplace_subset_obs(np.arange(50, 150))
    pd.testing.assert_frame_equal(model.get_normalized_expression(), expected, rtol=1e-4)


def test_another_set_up_of_the_data_does_not_change_a_model():
    cells = make_cells()
    model = train_tiny(cells, max_epochs=1)
    expected = model.get_latent_representation(make_cells()[:, 20:].copy())
    cells._inplace_subset_var(np.arange(20, 60))
    XTrimoGene.setup_anndata(cells)
    assert len(XTrimoGene(cells, size="tiny").vocabulary) == 40
    assert len(model.vocabulary) == 60
    close(model.get_latent_representation(), expected)


def test_models_with_other_batches_on_the_same_data_do_not_mix_them_up():
    cells = make_cells()
    cells.obs["other"] = [f"o{i % 3}" for i in range(cells.n_obs)]
    alone = train_tiny(make_cells(), max_epochs=1, setup={"batch_key": "batch"})
    XTrimoGene.setup_anndata(cells, batch_key="batch")
    first = XTrimoGene(cells, size="tiny")
    XTrimoGene.setup_anndata(cells, batch_key="other")
    second = XTrimoGene(cells, size="tiny")
    assert second.summary_stats.n_batch == 3
    first.train(1, accelerator="cpu", enable_progress_bar=False)
    assert_array_equal(first.get_gene_embeddings(), alone.get_gene_embeddings())


def test_data_keep_their_set_up_for_other_models(model):
    cells = make_cells()
    XTrimoGene.setup_anndata(cells)
    scvi.model.SCVI.setup_anndata(cells)
    model.get_latent_representation(cells)
    assert len(XTrimoGene(cells, size="tiny").vocabulary) == 60
    scvi.model.SCVI(cells)
    copy = cells.copy()
    XTrimoGene.setup_anndata(copy)
    XTrimoGene(cells, size="tiny")


def test_prepared_queries_stay_prepared(model):
    other = train_tiny(make_cells(), max_epochs=1)
    expected = model.get_latent_representation(make_cells())
    queries = []
    for factor in (2, 3):
        query = make_cells()
        query.layers["counts"] = query.X.copy()
        query.X = query.X * factor
        model.prepare_query_anndata(query, layer="counts")
        queries.append(query)
    for query in queries:
        other.get_latent_representation(query)
        assert_array_equal(model.get_latent_representation(query), expected)


def test_queries_are_not_kept_alive(model):
    references = []
    for i in range(3):
        query = make_cells()[i : i + 5].copy()
        model.get_latent_representation(query)
        references.append(weakref.ref(query))
        del query
    gc.collect()
    assert sum(reference() is not None for reference in references) <= 1


def test_counts_that_were_normalised_after_set_up_are_refused():
    cells = make_cells()
    model = train_tiny(cells, max_epochs=1)
    sc.pp.log1p(cells)
    with pytest.raises(ValueError, match="changed after `setup_anndata`"):
        model.get_latent_representation()


def test_modality_and_covariates_of_a_mudata_come_from_the_model():
    def make() -> mudata.MuData:
        rna, unspliced = make_cells(), make_cells(seed=1)
        del rna.obs["batch"], unspliced.obs["batch"]
        unspliced.var_names = [f"u_{name}" for name in unspliced.var_names]
        mdata = mudata.MuData({"rna": rna, "unspliced": unspliced})
        mdata.obs["batch"] = make_cells().obs["batch"].to_numpy()
        return mdata

    mdata = make()
    XTrimoGene.setup_anndata(mdata, modality="rna", batch_key="batch")
    model = XTrimoGene(mdata, size="tiny")
    model.train(1, accelerator="cpu", enable_progress_bar=False)
    expected = model.get_normalized_expression(mdata)
    XTrimoGene.setup_anndata(mdata, modality="unspliced")
    pd.testing.assert_frame_equal(model.get_normalized_expression(mdata), expected)
    pd.testing.assert_frame_equal(model.get_normalized_expression(make()), expected)


def test_missing_identifiers_match_nothing(model):
    cells = make_cells()
    expected = model.get_latent_representation(make_cells())
    cells.var["note"] = ["a"] * 59 + [None]
    assert_array_equal(model.get_latent_representation(cells), expected)
    cells.var["ids"] = [*cells.var_names[:58], None, np.nan]
    model.prepare_query_anndata(cells, gene_id_key="ids")
    assert cells.uns[COVERAGE_KEY]["n_matched"] == 58
    with pytest.raises(ValueError, match=r"adata\.var\['ids'\] lacks the identifier of 2 genes"):
        XTrimoGene.setup_anndata(cells, gene_id_key="ids")


def test_symbols_of_two_genes_are_not_guessed():
    cells = make_cells()
    cells.var["ensembl"] = [f"ENSG{i}" for i in range(60)]
    with warnings.catch_warnings():  # of anndata, in some versions
        warnings.simplefilter("ignore")
        cells.var_names = ["TWICE", "TWICE", *cells.var_names[2:]]
    model = train_tiny(cells, max_epochs=1, setup={"gene_id_key": "ensembl"})
    with pytest.raises(ValueError, match="'TWICE'"):
        model.vocabulary.index_of(["TWICE"])
    query = make_cells()
    query.var_names = ["TWICE", "ELSE", *query.var_names[2:]]
    model.get_latent_representation(query)
    assert query.uns[COVERAGE_KEY]["n_matched"] == 58
    model.prepare_query_anndata(cells.copy(), min_gene_overlap=0.9)  # by its Ensembl ids


def test_categories_that_cannot_be_saved_are_refused_before_training(cells):
    cells.obs["age"] = pd.cut(np.arange(cells.n_obs), 3)
    with pytest.raises(ValueError, match=r"categories of type Interval.*astype\(str\)"):
        XTrimoGene.setup_anndata(cells, batch_key="age")


def test_a_single_key_in_place_of_a_list(cells):
    with pytest.raises(TypeError, match=r"'batch' must be a list of keys: \['batch'\]"):
        XTrimoGene.setup_anndata(cells, categorical_covariate_keys="batch")


def test_labels_of_a_query_do_not_matter(model):
    query = make_cells()
    query.obs["cell_type"] = None
    assert_array_equal(
        model.get_latent_representation(query), model.get_latent_representation(make_cells())
    )


def test_set_up_data_can_be_written_and_read(tmp_path, model):
    cells = make_cells()
    model.get_latent_representation(cells)
    XTrimoGene.setup_anndata(cells, batch_key="batch")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert list(again.obs) == ["cell_type", "batch"]
    assert again.uns[COVERAGE_KEY]["n_matched"] == 60
