import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_cells, train_tiny
from numpy.testing import assert_array_equal

from scxtrimo.model import XTrimoGene


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "m")
    return tmp_path / "m"


def test_a_loaded_model_gives_equal_results_without_the_data(model, saved):
    loaded = XTrimoGene.load(saved)
    assert loaded.adata is None
    cells = make_cells()
    assert_array_equal(
        loaded.get_latent_representation(cells), model.get_latent_representation(cells)
    )
    pd.testing.assert_frame_equal(
        loaded.get_normalized_expression(cells), model.get_normalized_expression(cells)
    )
    pd.testing.assert_frame_equal(loaded.get_gene_embeddings(), model.get_gene_embeddings())
    with pytest.raises(ValueError, match="loaded without data; pass `adata"):
        loaded.get_latent_representation()
    with pytest.raises(ValueError, match="no data to train on"):
        loaded.train(1)


def test_everything_else_survives_too(model, saved):
    loaded = XTrimoGene.load(saved)
    assert str(loaded) == str(model)
    assert loaded.config == model.config
    assert loaded.vocabulary == model.vocabulary
    assert_array_equal(loaded.train_indices, model.train_indices)
    assert_array_equal(loaded.validation_indices, model.validation_indices)
    assert loaded.history.keys() == model.history.keys()
    for name, frame in model.history.items():
        pd.testing.assert_frame_equal(loaded.history[name], frame, check_index_type=False)


def test_data_can_be_attached_saved_along_and_trained_on(model, tmp_path):
    model.save(tmp_path / "m", save_anndata=True)
    expected = model.get_latent_representation()
    with_saved = XTrimoGene.load(tmp_path / "m")
    assert_array_equal(with_saved.get_latent_representation(), expected)
    permuted = make_cells()[:, ::-1].copy()
    attached = XTrimoGene.load(tmp_path / "m", adata=permuted)
    np.testing.assert_allclose(attached.get_latent_representation(), expected, atol=1e-5)
    assert XTrimoGene.load(tmp_path / "m", adata=False).adata is None
    attached.train(1, accelerator="cpu", enable_progress_bar=False)
    assert len(attached.history["train_loss"]) == 3


def test_a_model_saved_again_after_loading_is_the_same(model, saved, tmp_path):
    XTrimoGene.load(saved).save(tmp_path / "again")
    cells = make_cells()
    assert_array_equal(
        XTrimoGene.load(tmp_path / "again").get_latent_representation(cells),
        model.get_latent_representation(cells),
    )


def test_integer_categories_survive_json(tmp_path):
    cells = make_cells()
    cells.obs["lane"] = np.arange(cells.n_obs) % 3
    model = train_tiny(cells, max_epochs=1, setup={"batch_key": "lane"})
    model.save(tmp_path / "m")
    loaded = XTrimoGene.load(tmp_path / "m")
    again = make_cells()
    again.obs["lane"] = np.arange(again.n_obs) % 3
    pd.testing.assert_frame_equal(
        loaded.get_normalized_expression(again), model.get_normalized_expression()
    )


def test_nothing_is_unpickled(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, name, refuse)
    XTrimoGene.load(saved)


def test_an_existing_model_is_not_overwritten_unasked(model, saved):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save(saved)
    model.save(saved, overwrite=True)


def edit(directory, change):
    header = directory / "model.json"
    metadata = json.loads(header.read_text())
    change(metadata)
    header.write_text(json.dumps(metadata))


def test_a_model_of_another_class(saved):
    edit(saved, lambda m: m.update(model_class="Other"))
    with pytest.raises(ValueError, match="model of class Other, not XTrimoGene"):
        XTrimoGene.load(saved)


def test_weights_that_do_not_fit_are_named(saved):
    edit(saved, lambda m: m["config"].update(n_latent=16))
    with pytest.raises(ValueError, match=r"of another shape.*pooling\.mlp\.2\.weight"):
        XTrimoGene.load(saved)


def test_prefixes_keep_models_apart(model, tmp_path):
    other = train_tiny(make_cells(), max_epochs=1)
    model.save(tmp_path, prefix="first_")
    other.save(tmp_path, prefix="second_")
    model.save(tmp_path, prefix="first_", overwrite=True)
    cells = make_cells()
    for prefix, expected in (("first_", model), ("second_", other)):
        loaded = XTrimoGene.load(tmp_path, prefix=prefix)
        assert_array_equal(
            loaded.get_latent_representation(cells), expected.get_latent_representation(cells)
        )


def test_data_of_a_replaced_model_are_not_attached(model, tmp_path):
    model.save(tmp_path, save_anndata=True)
    model.save(tmp_path, overwrite=True)
    assert XTrimoGene.load(tmp_path).adata is None
    with pytest.raises(FileExistsError, match="adata.h5ad exists"):
        model.save(tmp_path, prefix="", save_anndata=True)


def test_the_old_data_survive_a_full_disk(model, tmp_path, monkeypatch):
    model.save(tmp_path, save_anndata=True)

    def full_disk(path, adata, **kwargs):
        path.write_bytes(b"x")
        raise OSError("No space left on device")

    monkeypatch.setattr("anndata.io.write_h5ad", full_disk)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path, save_anndata=True, overwrite=True)
    monkeypatch.undo()
    assert XTrimoGene.load(tmp_path).adata.n_obs == 150
    assert not list(tmp_path.glob("*.partial"))


def test_validation_cells_are_forgotten_when_other_data_are_attached(model, saved):
    assert XTrimoGene.load(saved, adata=make_cells()).validation_indices is not None
    other = make_cells(n_cells=200)
    other.obs_names = [f"other{i}" for i in range(200)]
    assert XTrimoGene.load(saved, adata=other).validation_indices is None


def test_headers_that_lack_something_or_know_more(saved):
    edit(saved, lambda m: m["config"].update(n_experts=4))
    with pytest.raises(ValueError, match=r"does not know: \['n_experts'\].*--upgrade"):
        XTrimoGene.load(saved)
    edit(saved, lambda m: m.pop("registry"))
    with pytest.raises(ValueError, match=r"lacks \['registry'\]"):
        XTrimoGene.load(saved)


def test_prefixes_that_are_no_file_names_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="prefix='run 1/' may hold letters"):
        model.save(tmp_path, prefix="run 1/")
