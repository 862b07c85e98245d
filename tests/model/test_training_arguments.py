"""What users of scvi-tools pass to ``train``, and what is refused before anything is trained."""

import numpy as np
import pandas as pd
import pytest
from helpers import make_cells
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from scxtrimo.model.xtrimogene import XTrimoGene
from scxtrimo.train.plan import MaskingConfig, OptimizerConfig

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def make_model(**kwargs) -> XTrimoGene:
    adata = make_cells(60, 20)
    XTrimoGene.setup_anndata(adata)
    return XTrimoGene(adata, size="tiny", **kwargs)


@pytest.fixture(scope="module")
def expected():
    model = make_model()
    model.train(2, **QUIET)
    return model


def loggers(directory):
    csv = CSVLogger(directory)
    return {"none": None, "false": False, "true": True, "one": csv, "several": [csv]}


@pytest.mark.parametrize("kind", ["none", "false", "true", "one", "several"])
def test_history_is_kept_whatever_the_logger(expected, tmp_path, kind):
    model = make_model()
    model.train(2, logger=loggers(tmp_path)[kind], **QUIET)
    for name, frame in expected.history.items():
        pd.testing.assert_frame_equal(model.history[name], frame)
    wrote_csv = bool(list(tmp_path.rglob("metrics.csv")))
    assert wrote_csv == (kind in ("one", "several"))


class Counter(Callback):
    n_epochs = 0

    def on_train_epoch_end(self, trainer, pl_module):
        self.n_epochs += 1


@pytest.mark.parametrize("as_list", [True, False])
def test_callbacks_are_called_and_their_list_is_left_alone(as_list):
    counter = Counter()
    callbacks = [counter] if as_list else counter
    make_model().train(2, callbacks=callbacks, early_stopping=True, **QUIET)
    assert counter.n_epochs == 2
    assert not as_list or callbacks == [counter]


@pytest.mark.parametrize("max_epochs", [2.0, 1.6, np.int64(2), np.float32(2.4)])
def test_epochs_as_tutorials_compute_them(expected, max_epochs):
    model = make_model()
    model.train(
        max_epochs=max_epochs, batch_size=np.int64(64), train_size=np.float64(0.9), **QUIET
    )
    pd.testing.assert_frame_equal(model.history["train_loss"], expected.history["train_loss"])


def test_numbers_of_numpy_are_numbers(expected, tmp_path):
    plain = make_model(n_latent=16, seed=3)
    model = make_model(n_latent=np.int64(16), dropout=np.float32(0), seed=np.int64(3))
    assert model.config == plain.config
    model.save(tmp_path / "model")
    everything = expected.get_latent_representation(batch_size=np.int32(7))
    np.testing.assert_allclose(everything, expected.get_latent_representation(), atol=1e-5)


def test_external_indexing_as_rows_or_masks():
    rows = np.arange(60)
    mask = rows < 40
    by_rows, by_mask = make_model(), make_model()
    by_rows.train(1, datasplitter_kwargs={"external_indexing": [rows[mask], rows[~mask]]}, **QUIET)
    by_mask.train(1, datasplitter_kwargs={"external_indexing": [mask, ~mask]}, **QUIET)
    assert by_mask.validation_indices.tolist() == rows[~mask].tolist()
    assert by_rows.history["train_loss"].equals(by_mask.history["train_loss"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epochs": 0}, "max_epochs=0 must be positive"),
        ({"max_epochs": float("nan")}, "max_epochs=nan must be"),
        ({"max_epochs": "2"}, "max_epochs='2' must be a number"),
        ({"max_epochs": True}, "max_epochs=True must be a number"),
        ({"batch_size": 8.5}, "batch_size=8.5 must be a whole number"),
        ({"tokens_per_batch": -1}, "tokens_per_batch=-1 must be positive"),
        ({"train_size": 0}, "train_size=0 must be positive"),
        ({"train_size": 1.5}, "train_size=1.5 must be at most 1"),
        ({"validation_size": -0.1}, "validation_size=-0.1 must not be negative"),
        ({"plan_kwargs": {"lr": "0.1"}}, "lr='0.1' must be a number"),
        ({"plan_kwargs": {"warmup_steps": 1.5}}, "warmup_steps=1.5 must be a whole number"),
        ({"plan_kwargs": {"learning_rate": 1}}, "Unknown plan_kwargs"),
        ({"learning_rate": 1}, "learning_rate"),
        ({"datasplitter_kwargs": {"external_indexing": [[], np.arange(60)]}}, "left to train on"),
        ({"datasplitter_kwargs": {"external_indexing": [[0], [1], [2]]}}, "leaves out 57"),
        (
            {"datasplitter_kwargs": {"external_indexing": [[0], np.arange(60)]}},
            "lists 1 cells more than",
        ),
        ({"early_stopping": "yes"}, "early_stopping='yes' must be True or False"),
        ({"optimizer": {"lr": 1}}, "optimizer=.* must be of type scxtrimo.train.OptimizerConfig"),
        ({"ckpt_path": "nowhere.ckpt"}, "nowhere.ckpt"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused_before_anything_is_trained(arguments, message):
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        model.train(**({"max_epochs": 1} | QUIET | arguments))
    assert all(tensor.equal(before[name]) for name, tensor in model.module.state_dict().items())
    assert not model.is_trained


def test_a_checkpoint_directory_that_is_a_file_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    counter = Counter()
    with pytest.raises(FileExistsError, match="checkpoint_dir=.*is a file"):
        make_model().train(1, checkpoint_dir=tmp_path / "file", callbacks=[counter], **QUIET)
    assert counter.n_epochs == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_layers", 2.5, "n_layers=2.5 must be a whole number"),
        ("n_layers", 0, "n_layers=0 must be positive"),
        ("n_hidden", "64", "n_hidden='64' must be a whole number"),
        ("n_hidden", True, "n_hidden=True must be a whole number"),
        ("read_depth_aware", "no", "read_depth_aware='no' must be True or False"),
        ("read_depth_aware", 1, "read_depth_aware=1 must be True or False"),
        ("dropout", 1.0, "dropout=1.0 must be below 1"),
        ("dropout", float("nan"), "dropout=nan must be"),
        ("measured_weight", 1.1, "measured_weight=1.1 must be at most 1"),
        ("likelihood_weight", -1, "likelihood_weight=-1 must not be negative"),
        ("likelihood_weight", float("inf"), "likelihood_weight=inf must be finite"),
        ("activation", "tanh", "activation='tanh' must be one of 'gelu' or 'relu'"),
        ("n_input_genes", -5, "n_input_genes=-5 must be positive"),
    ],
    ids=str,
)
def test_hyperparameters_are_checked_by_type_and_range(field, value, message):
    with pytest.raises(ValueError, match=message):
        make_model(**{field: value})


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (OptimizerConfig, {"lr": -1.0}),
        (OptimizerConfig, {"lr": "fast"}),
        (OptimizerConfig, {"betas": (0.9, 1.0)}),
        (MaskingConfig, {"max_targets": 1.5}),
        (MaskingConfig, {"natural_weights": "yes"}),
    ],
)
def test_other_configurations_are_checked_in_the_same_way(config, values):
    name, value = next(iter(values.items()))
    with pytest.raises(ValueError, match=f"^{name}="):
        config(**values)
