"""Data that change, and several models on the same data: never a silent shift."""

import copy
import gc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scvi
from helpers import make_cells, train_tiny
from numpy.testing import assert_allclose, assert_array_equal

from scxtrimo.data.vocabulary import COVERAGE_KEY
from scxtrimo.model.xtrimogene import XTrimoGene


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


def test_missing_identifiers_match_nothing(model, caplog):
    cells = make_cells()
    expected = model.get_latent_representation(make_cells())
    cells.var["note"] = ["a"] * 59 + [None]
    assert_array_equal(model.get_latent_representation(cells), expected)
    cells.var["ids"] = [*cells.var_names[:58], None, np.nan]
    model.prepare_query_anndata(cells, gene_id_key="ids")
    assert cells.uns[COVERAGE_KEY]["n_matched"] == 58
    XTrimoGene.setup_anndata(cells, gene_id_key="ids")
    assert len(XTrimoGene(cells, size="tiny").vocabulary) == 58
    assert "adata.var['ids'] lacks the identifier of 2 of 60 genes" in caplog.text


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


def test_a_query_may_lack_labels_that_the_training_cells_had(cells):
    model = train_tiny(cells, max_epochs=1, setup={"labels_key": "cell_type"})
    expected = model.get_latent_representation(make_cells())
    query = make_cells()
    query.obs.loc[query.obs_names[:5], "cell_type"] = None
    assert_array_equal(model.get_latent_representation(query), expected)


def test_set_up_data_can_be_written_and_read(tmp_path, model):
    cells = make_cells()
    model.get_latent_representation(cells)
    XTrimoGene.setup_anndata(cells, batch_key="batch")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert list(again.obs) == ["cell_type", "batch"]
    assert again.uns[COVERAGE_KEY]["n_matched"] == 60


def batches_of(model) -> list[str]:
    state = model.registry_["field_registries"]["batch"]["state_registry"]
    return list(state["categorical_mapping"])


@pytest.mark.parametrize(
    ("trained", "asked"),
    [
        ([0, 1], ["0", "1"]),
        ([0, 1], [0.0, 1.0]),
        (["0", "1"], [0, 1]),
        ([True, False], ["True", "False"]),
        ([1, "b0"], ["1", "b0"]),
        (["a", "b"], pd.Categorical(["a", "b"], ["b", "z", "a"])),
    ],
    ids=str,
)
def test_batches_are_the_same_in_every_form(tmp_path, trained, asked):
    cells = make_cells(60)
    is_first = (cells.obs["batch"] == "a").to_numpy()
    trained = pd.Series(trained, dtype=object)
    cells.obs["batch"] = trained.iloc[np.where(is_first, 0, 1)].to_numpy()
    model = train_tiny(cells, 1, {"batch_key": "batch"})
    expected = model.get_latent_representation()
    model.save(tmp_path / "model")
    query = cells.copy()
    query.obs["batch"] = pd.Series(asked).iloc[np.where(is_first, 0, 1)].to_numpy()
    close(model.get_latent_representation(query), expected)
    loaded = XTrimoGene.load(tmp_path / "model", adata=query)
    close(loaded.get_latent_representation(), expected)
    assert batches_of(loaded) == batches_of(model) == sorted({str(b) for b in trained})
    one = trained.iloc[1]
    close(
        model.get_normalized_expression(transform_batch=one, return_numpy=True),
        model.get_normalized_expression(transform_batch=str(one), return_numpy=True),
    )


def test_a_query_of_unknown_batches_warns_and_one_without_batches_is_possible(model, caplog):
    query = make_cells()
    query.obs["batch"] = "elsewhere"
    unknown = model.get_latent_representation(query)
    assert "All categories of adata.obs['batch'] are unknown to the model" in caplog.text
    without = make_cells()
    model.prepare_query_anndata(without, batch_key=None)
    close(model.get_latent_representation(without), unknown)


def test_a_column_for_which_the_model_has_no_role_is_refused():
    plain = train_tiny(make_cells(60), 1)
    with pytest.raises(ValueError, match="batch_key='batch': the model was set up without one"):
        plain.prepare_query_anndata(make_cells(60), batch_key="batch")


@pytest.mark.parametrize("key", [["batch"], 3])
def test_keys_are_text(key):
    with pytest.raises(ValueError, match="batch_key=.* must be text"):
        XTrimoGene.setup_anndata(make_cells(60), batch_key=key)


def test_covariates_may_come_as_an_index(tmp_path):
    cells = make_cells(60)
    keys = cells.obs.columns[cells.obs.columns == "batch"]
    model = train_tiny(cells, 1, {"categorical_covariate_keys": keys})
    model.save(tmp_path / "model")
    assert model.registry["setup_args"]["categorical_covariate_keys"] == ["batch"]


def test_data_that_changed_between_set_up_and_model_are_set_up_again():
    cells = make_cells(60)
    XTrimoGene.setup_anndata(cells, batch_key="batch")
    cells.obs["batch"] = cells.obs["batch"].replace({"a": "x", "b": "y"})
    cells._inplace_subset_obs(np.arange(10, 60))
    model = XTrimoGene(cells, size="tiny")
    assert batches_of(model) == ["x", "y"]
    assert model.summary_stats.n_cells == 50


def test_rows_of_the_split_follow_their_cells(tmp_path):
    cells = make_cells(60)
    model = train_tiny(cells, 1)
    held_out = set(cells.obs_names[model.validation_indices])
    cells._inplace_subset_obs(np.random.default_rng(0).permutation(60)[:40])
    now = cells.obs_names[model.validation_indices]
    assert set(now) == held_out & set(cells.obs_names)
    assert set(model.get_masked_predictions()["cell"]) == set(now)
    model.save(tmp_path / "model", save_anndata=True)
    assert set(XTrimoGene.load(tmp_path / "model").validation_indices) == set(
        model.validation_indices
    )
    cells.obs_names = [f"other{i}" for i in range(40)]
    assert model.validation_indices is None


def test_other_data_put_in_place_have_no_rows_of_the_split():
    model = train_tiny(make_cells(60), 1)
    model.adata = make_cells(60, seed=3)[:, ::-1].copy()
    assert len(model.validation_indices) == 6  # the same names of cells
    other = make_cells(60)
    other.obs_names = [f"other{i}" for i in range(60)]
    model.adata = other
    assert model.validation_indices is None
    close(model.get_latent_representation(), model.get_latent_representation(other.copy()))


def test_a_corrected_batch_column_counts_at_once(model):
    query = make_cells()
    query.obs["batch"] = "a"
    model.get_latent_representation(query)
    query.obs["batch"] = make_cells().obs["batch"]
    close(model.get_latent_representation(query), model.get_latent_representation(make_cells()))
    query.obs.iloc[:9, query.obs.columns.get_loc("batch")] = "b"
    close(model.get_latent_representation(query), model.get_latent_representation(query.copy()))


def test_every_query_has_its_own_coverage_report(model):
    few, many = make_cells()[:, :30].copy(), make_cells()
    for query in (few, many, few):
        model.get_latent_representation(query)
        assert query.uns[COVERAGE_KEY]["n_missing"] == 60 - query.n_vars
    other = train_tiny(make_cells(60, 40), 1)
    other.get_latent_representation(few)
    model.get_latent_representation(few)
    assert few.uns[COVERAGE_KEY]["n_missing"] == 30


def test_columns_of_a_mudata_are_followed_until_the_modality_changes_them():
    cells = make_cells(60)
    batch = cells.obs.pop("batch")
    data = mudata.MuData({"rna": cells})
    data.obs["batch"] = ["x"] * 30 + ["y"] * 30
    XTrimoGene.setup_anndata(data, batch_key="batch", modality="rna")
    data.obs["batch"] = batch.to_numpy()
    model = XTrimoGene(data, size="tiny")
    assert batches_of(model) == ["a", "b"]
    model.train(1, accelerator="cpu", enable_progress_bar=False)
    data.obs["batch"] = "a"
    expected = model.get_latent_representation(data["rna"].copy())
    data["rna"].obs["batch"] = "a"
    close(model.get_latent_representation(), model.get_latent_representation(data["rna"].copy()))
    data["rna"].obs["batch"] = "b"  # from now on its own
    changed = model.get_latent_representation()
    close(changed, model.get_latent_representation(data["rna"].copy()))
    assert np.abs(changed - expected).max() > 1e-3


def test_a_query_in_a_mudata_of_a_model_of_cells(model):
    data = mudata.MuData({"rna": make_cells()})
    with pytest.raises(ValueError, match="prepare_query_anndata"):
        model.get_latent_representation(data)
    model.prepare_query_anndata(data, modality="rna")
    close(model.get_latent_representation(data), model.get_latent_representation(make_cells()))


def test_a_column_that_is_there_twice_matters_only_where_it_is_asked_for(model):
    query = make_cells()
    query.var["symbol"] = query.var_names
    query.var = pd.concat([query.var, query.var[["symbol"]]], axis=1)
    close(model.get_latent_representation(query), model.get_latent_representation(make_cells()))
    with pytest.raises(ValueError, match="2 columns called 'symbol'"):
        model.prepare_query_anndata(query, gene_id_key="symbol")


def test_two_threads_with_two_queries_get_what_each_would_get_alone(model):
    rng = np.random.default_rng(0)
    queries = [make_cells(60, seed=i)[:, rng.permutation(60)].copy() for i in range(4)]
    alone = [model.get_latent_representation(query.copy()) for query in queries]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = pool.map(model.get_latent_representation, queries)
            for found, expected in zip(together, alone, strict=True):
                close(found, expected)


def test_rows_of_a_torch_data_set_may_be_a_mask(model):
    mask = np.arange(150) % 50 == 7
    dataset = model.adata_manager.create_torch_dataset(indices=mask)
    assert [int(dataset[i]["cell_ids"][0]) for i in range(len(dataset))] == [7, 57, 107]


def test_counts_that_became_empty_in_place_are_refused(model):
    query = make_cells()
    model.get_latent_representation(query)
    query.X.data[query.X.indptr[3] : query.X.indptr[4]] = 0
    with pytest.raises(ValueError, match="1 cells no longer have counts"):
        model.get_latent_representation(query)


def test_a_copy_of_a_model_knows_what_was_prepared(model):
    query = make_cells()
    query.layers["counts"] = query.X.copy()
    query.X = query.X * 3
    model.prepare_query_anndata(query, layer="counts")
    close(
        copy.deepcopy(model).get_latent_representation(query),
        model.get_latent_representation(make_cells()),
    )
