import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_cells, make_perturbed_cells, train_tiny
from numpy.testing import assert_array_equal

from scxtrimo.annotation.model import XTrimoGeneAnnotator
from scxtrimo.drugs.model import XTrimoGeneDrugResponse, XTrimoGeneSynergy
from scxtrimo.model.xtrimogene import XTrimoGene
from scxtrimo.perturbation.model import XTrimoGenePerturbation

FIXTURES = Path(__file__).parents[1] / "fixtures" / "models"


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
    with pytest.raises(ValueError, match="prefix='run 1/' may have letters"):
        model.save(tmp_path, prefix="run 1/")


def test_saving_again_leaves_models_of_other_prefixes_alone(model, tmp_path):
    for prefix in (None, "model-", "model-v2-", "v2."):
        model.save(tmp_path, prefix=prefix)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    model.save(tmp_path, overwrite=True)
    changed = {p for p in before if not p.exists() or p.stat().st_mtime_ns != before[p]}
    assert len(changed) == 2  # the header and the weights it named
    assert len(list(tmp_path.iterdir())) == len(before)
    for prefix in (None, "model-", "model-v2-", "v2."):
        XTrimoGene.load(tmp_path, prefix=prefix)


def test_several_saves_at_a_time_leave_the_last_one(tmp_path):
    models = [train_tiny(make_cells(40), 1, seed=seed) for seed in (0, 1)]
    results = [m.get_latent_representation(make_cells(40)) for m in models]
    models[0].save(tmp_path)

    def save(i):
        models[i % 2].save(tmp_path, overwrite=True)
        return XTrimoGene.load(tmp_path).seed_

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(save, range(24))) <= {0, 1}
    loaded = XTrimoGene.load(tmp_path)
    found = loaded.get_latent_representation(make_cells(40))
    np.testing.assert_allclose(found, results[loaded.seed_], rtol=1e-5, atol=1e-5)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("place", ["model", "model/below"])
def test_a_file_where_the_model_should_go_is_named(model, tmp_path, place):
    (tmp_path / "model").write_text("")
    with pytest.raises(FileExistsError, match="model is a file, not a directory"):
        model.save(tmp_path / place, save_anndata=True)
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        XTrimoGene.load(tmp_path / place)


def test_backed_data_are_saved_and_stay_where_they_are(tmp_path):
    make_cells(60).write_h5ad(tmp_path / "cells.h5ad")
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    model = train_tiny(cells, 1)
    model.save(tmp_path / "model", save_anndata=True)
    assert cells.filename == tmp_path / "cells.h5ad"
    loaded = XTrimoGene.load(tmp_path / "model")
    np.testing.assert_allclose(
        loaded.get_latent_representation(), model.get_latent_representation(), atol=1e-5
    )


def test_data_that_no_file_can_hold_are_named(model, tmp_path):
    model = copy.deepcopy(model)
    model.adata.uns["what"] = object()
    with pytest.raises(ValueError, match=r"cannot be written as \.h5ad.*save_anndata=False"):
        model.save(tmp_path / "model", save_anndata=True)
    model.save(tmp_path / "model")


@pytest.mark.parametrize("make_copy", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_a_model_goes_to_other_processes(model, make_copy):
    other = make_copy(model)
    assert other.adata is not model.adata
    assert other.adata_manager.adata is other.adata
    for adata in (None, make_cells(50, seed=4)):
        assert_array_equal(
            other.get_latent_representation(adata), model.get_latent_representation(adata)
        )
    assert_array_equal(other.validation_indices, model.validation_indices)
    other.train(1, accelerator="cpu", enable_progress_bar=False)


def test_models_of_the_version_before_load_and_give_equal_results():
    """Saved before categories were text and before a decoder without a loss was left out."""
    expected = np.load(FIXTURES / "expected.npz")
    cells = make_cells(80, 30)
    cells.obs["batch"] = (cells.obs["batch"] == "b").astype(int)
    model = XTrimoGene.load(FIXTURES / "cells", adata=cells)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(
        model.get_latent_representation(), expected["cells_latent"], **close
    )
    np.testing.assert_allclose(
        model.get_normalized_expression(return_numpy=True), expected["cells_expression"], **close
    )
    counts_only = XTrimoGene.load(FIXTURES / "counts_only", adata=make_cells(80, 30))
    assert list(counts_only.module.net.decoders) == ["bottleneck"]
    np.testing.assert_allclose(
        counts_only.get_latent_representation(), expected["counts_only_latent"], **close
    )
    numbers = make_cells(80, 30)
    numbers.obs["cell_type"] = numbers.obs["cell_type"].str[-1].astype(int)
    annotator = XTrimoGeneAnnotator.load(FIXTURES / "annotator", adata=numbers)
    assert annotator.labels.tolist() == [0, 1, 2]
    np.testing.assert_allclose(annotator.predict(soft=True), expected["annotator_soft"], **close)
    perturbation = XTrimoGenePerturbation.load(
        FIXTURES / "perturbation", adata=make_perturbed_cells(15, 20)
    )
    effects = perturbation.predict(["GENE1", "GENE2+GENE3"]).layers["effect"]
    np.testing.assert_allclose(effects, expected["perturbation_effect"], rtol=1e-3, atol=1e-4)
    published = XTrimoGene.load(FIXTURES / "published", adata=make_cells(80, 30))
    np.testing.assert_allclose(
        published.get_latent_representation(), expected["published_latent"], **close
    )
    np.testing.assert_allclose(
        published.get_normalized_expression(indices=range(10), return_numpy=True),
        expected["published_expression"],
        **close,
    )


def test_drug_models_of_the_version_before_load_and_give_equal_results():
    pytest.importorskip("rdkit")
    pytest.importorskip("torch_geometric")
    from drug_screens import make_lines, make_responses, make_screen

    screen = make_screen(make_lines(), n_drugs=4).head(10)
    synergy = XTrimoGeneSynergy.load(FIXTURES / "synergy")
    np.testing.assert_allclose(
        synergy.predict(screen)["probability"],
        np.load(FIXTURES / "expected.npz")["synergy"],
        rtol=1e-4,
        atol=1e-5,
    )
    response = XTrimoGeneDrugResponse.load(FIXTURES / "response")
    screen = make_responses(make_lines())
    screen = screen[screen["name"].isin(["ethanol", "phenol", "aspirin", "urea"])]
    np.testing.assert_allclose(
        response.predict(screen)["predicted_response"],
        np.load(FIXTURES / "expected.npz")["response"],
        rtol=1e-4,
        atol=1e-5,
    )
