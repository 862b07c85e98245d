"""An interrupted training that is resumed equals one that was not interrupted."""

import pandas as pd
import pytest
import torch
from helpers import make_cells, train_tiny
from lightning.pytorch.callbacks import Callback

from scxtrimo.model.xtrimogene import XTrimoGene

ARGS = {"accelerator": "cpu", "enable_progress_bar": False}


class Interrupt(Callback):
    """Stop as a killed process would: in the middle of the third epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 1:
            raise RuntimeError("interrupted")


def new_model(**kwargs) -> XTrimoGene:
    cells = make_cells()
    XTrimoGene.setup_anndata(cells, batch_key="batch")
    return XTrimoGene(cells, **({"size": "tiny", "dropout": 0.1} | kwargs))


PUBLISHED = {"size": "published-tiny", "redraw_features_every": 4}


@pytest.mark.parametrize("kwargs", [{}, PUBLISHED], ids=["ours", "published"])
def test_resumed_training_equals_uninterrupted_training(tmp_path, kwargs):
    whole = new_model(**kwargs)
    whole.train(4, **ARGS)

    killed = new_model(**kwargs)
    with pytest.raises(RuntimeError, match="interrupted"):
        killed.train(4, checkpoint_dir=tmp_path, callbacks=[Interrupt()], **ARGS)

    resumed = new_model(**kwargs)
    resumed.train(4, ckpt_path=tmp_path / "last.ckpt", **ARGS)
    for (name, a), b in zip(
        whole.module.state_dict().items(), resumed.module.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert whole.history.keys() == resumed.history.keys()
    for name, frame in whole.history.items():
        pd.testing.assert_frame_equal(frame, resumed.history[name], check_index_type=False)


def test_checkpoints_are_loaded_without_running_their_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    train_tiny(make_cells(), max_epochs=1, checkpoint_dir=tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.save(checkpoint | {"bomb": Bomb()}, tmp_path / "bomb.ckpt")
    model = new_model()
    with pytest.raises(Exception, match="[Ww]eights.?only"):
        model.train(2, ckpt_path=tmp_path / "bomb.ckpt", **ARGS)
    assert not (tmp_path / "ran").exists()


def test_training_again_goes_on_from_the_present_weights():
    model = train_tiny(make_cells(), max_epochs=2)
    before = model.get_gene_embeddings()
    model.train(1, plan_kwargs={"lr": 1e-12}, **ARGS)
    pd.testing.assert_frame_equal(model.get_gene_embeddings(), before)
    assert len(model.history["train_loss"]) == 3
