"""What is interrupted leaves a model as it was, and what goes on must find its data as they were."""

import numpy as np
import pytest
import torch
from helpers import make_cells, train_tiny
from lightning.pytorch.callbacks import Callback

from scxtrimo.annotation.model import XTrimoGeneAnnotator
from scxtrimo.model.xtrimogene import XTrimoGene

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


class Stop(Callback):
    """The stop button, in an epoch."""

    def __init__(self, epoch: int = 0, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.epoch, self.error = epoch, error

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch >= self.epoch:
            raise self.error("stop")


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_second_training_that_is_interrupted_changes_nothing(error, caplog):
    model = train_tiny(make_cells(60), 1)
    before, latent = state_of(model), model.get_latent_representation()
    history = model.history["train_loss"].copy()
    with pytest.raises(BaseException, match=r"stop|^1"):  # Lightning makes it an exit
        model.train(9, callbacks=[Stop(3, error)], plan_kwargs={"lr": 0.1}, **QUIET)
    assert all(tensor.equal(before[name]) for name, tensor in model.module.state_dict().items())
    assert np.array_equal(model.get_latent_representation(), latent)
    assert model.history["train_loss"].equals(history)
    assert "as it was before" in caplog.text


def test_a_first_training_that_is_interrupted_starts_again_like_a_new_one():
    cells = make_cells(60)
    expected = train_tiny(make_cells(60), 2)
    XTrimoGene.setup_anndata(cells)
    model = XTrimoGene(cells, size="tiny")
    with pytest.raises(BaseException, match=r"stop|^1"):
        model.train(9, callbacks=[Stop(1)], **QUIET)
    assert not model.is_trained
    with pytest.warns(UserWarning, match="not trained"):
        model.get_latent_representation()
    model.train(2, **QUIET)
    assert torch.equal(model.module.net.gene_embeddings, expected.module.net.gene_embeddings)


def annotator_of(cells) -> XTrimoGeneAnnotator:
    XTrimoGeneAnnotator.setup_anndata(cells, labels_key="cell_type")
    model = XTrimoGeneAnnotator(cells, size="tiny")
    model.train(pretrain_epochs=1, **QUIET)
    return model


def test_a_fine_tuning_that_is_interrupted_changes_nothing():
    model = annotator_of(make_cells(90))
    before, held_out = model.predict(soft=True), model.held_out
    model.adata.obs["cell_type"] = model.adata.obs["cell_type"].replace("type0", "renamed")
    with pytest.raises(BaseException, match=r"stop|^1"):
        model.train(9, callbacks=[Stop(1)], **QUIET)
    after = model.predict(soft=True)
    assert after.equals(before)
    assert list(after.columns) == ["type0", "type1", "type2"]
    assert model.held_out is held_out


@pytest.mark.parametrize("change", ["corrected", "renamed", "merged", "a new one"])
def test_a_second_training_learns_the_present_labels(change):
    cells = make_cells(120)
    truth = cells.obs["cell_type"].copy()
    cells.obs["cell_type"] = truth.map({"type0": "type1", "type1": "type2", "type2": "type0"})
    model = annotator_of(cells)
    new = {
        "corrected": truth,
        "renamed": truth.map({"type0": "B", "type1": "T", "type2": "NK"}),
        "merged": truth.replace("type2", "type1"),
        "a new one": truth.where(np.arange(len(truth)) % 4 != 0, truth + "+"),
    }[change]
    cells.obs["cell_type"] = new
    model.train(recipe="linear")
    assert list(model.labels) == sorted(new.unique())
    assert (model.predict() == new).mean() > (0.5 if change == "a new one" else 0.9)


def test_a_second_training_is_that_of_a_model_which_never_knew_other_labels():
    cells, others = make_cells(90), make_cells(90)
    others.obs["cell_type"] = "only" + others.obs["cell_type"].str[-1]
    expected, model = annotator_of(cells), annotator_of(others)
    others.obs["cell_type"] = cells.obs["cell_type"]
    model.train(recipe="linear")
    np.testing.assert_allclose(model.predict(soft=True), expected.predict(soft=True), atol=1e-6)


def change_genes(cells):
    return cells[:, ::-1].copy()


def change_cells(cells):
    return cells[::-1].copy()


def change_batches(cells):
    cells.obs["batch"] = cells.obs["batch"].map({"a": "b", "b": "a"})
    return cells


@pytest.mark.parametrize(
    ("change", "named"),
    [(change_genes, "genes"), (change_cells, "cells"), (change_batches, "categories of 'batch'")],
)
def test_a_training_goes_on_with_the_data_that_it_began_with(tmp_path, change, named):
    setup = {"batch_key": "batch"}
    train_tiny(make_cells(60), 1, setup, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=f"belongs to another training: .*{named}.*differ"):
        train_tiny(change(make_cells(60)), 2, setup, ckpt_path=tmp_path / "last.ckpt")
    train_tiny(make_cells(60), 2, setup, ckpt_path=tmp_path / "last.ckpt")


def test_a_checkpoint_that_says_nothing_of_its_data_is_pointed_out(tmp_path, caplog):
    train_tiny(make_cells(60), 1, checkpoint_dir=tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del checkpoint["scxtrimo_data"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    train_tiny(make_cells(60), 2, ckpt_path=tmp_path / "old.ckpt")
    assert "earlier version" in caplog.text


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "tensor"])
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "x.ckpt"
    if content == "tensor":
        torch.save(torch.ones(2), path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ckpt_path=.*x\.ckpt"):
        train_tiny(make_cells(60), 2, ckpt_path=path)
