"""Pretraining runs: interrupted and resumed, on one process or two, with what can go wrong."""

import errno
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_cells

import scxtrimo
from scxtrimo.nn import XTrimoGeneNet
from scxtrimo.pretraining.config import DataConfig, EngineConfig, PretrainConfig, RecordConfig
from scxtrimo.pretraining.plan import PretrainingPlan
from scxtrimo.pretraining.run import checkpoints_in
from scxtrimo.pretraining.store import CellStore
from scxtrimo.pretraining.store_writer import write_store

pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")
N_STEPS = 24


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store")
    make_cells(400).write_h5ad(directory / "cells.h5ad")
    out = directory / "store.zarr"
    write_store([directory / "cells.h5ad"], out, min_genes=1, validation_size=0.1, memory=60_000)
    return str(out)


def configure(store, out, **changes):
    config = PretrainConfig(
        DataConfig(store, batch_size=8, batches_per_step=4, window_size=100),
        out=str(out),
        size="tiny",
        model={"dropout": 0.1},
        steps=N_STEPS,
        engine=EngineConfig(accelerator="cpu", devices=1),
        record=RecordConfig(
            log_every_n_steps=2,
            validate_every_n_steps=6,
            checkpoint_every_n_steps=4,
            loggers=(),
            progress_bar=False,
        ),
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """A run that nothing interrupted."""
    return scxtrimo.pretrain(configure(store, tmp_path_factory.mktemp("whole") / "run"))


def losses(model):
    return model.history["train_loss"]["train_loss"].to_numpy()


def assert_same(model, whole):
    np.testing.assert_array_equal(losses(model), losses(whole))
    assert model.history["train_loss"].index.tolist() == list(range(2, N_STEPS + 1, 2))
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(model.module.state_dict()[name], tensor), name


def test_a_run_learns_and_gives_a_model(whole, cells):
    assert losses(whole)[-1] < losses(whole)[0]
    assert whole.is_trained_
    latent = whole.get_latent_representation(cells)
    assert latent.shape == (150, 32)
    assert np.isfinite(latent).all()
    assert whole.provenance["cells"] == "358"


class Interrupted(Exception):
    """Stands for a process that is gone."""


@pytest.mark.parametrize("moments", [(1,), (6,), (11, 13), (23,)])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    moments, store, whole, tmp_path, monkeypatch
):
    config = configure(store, tmp_path / "run")
    step = PretrainingPlan.training_step

    for moment in moments:

        def interrupted(self, batch, batch_idx, moment=moment):
            if self.global_step == moment:
                raise Interrupted
            return step(self, batch, batch_idx)

        monkeypatch.setattr(PretrainingPlan, "training_step", interrupted)
        with pytest.raises(Interrupted):
            scxtrimo.pretrain(config)
    monkeypatch.setattr(PretrainingPlan, "training_step", step)
    assert_same(scxtrimo.pretrain(config), whole)


def command(config, path):
    path.write_text(config.to_yaml())
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "scxtrimo.cli", "pretrain", str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_and_started_again_on_two_processes(store, whole, tmp_path):
    config = configure(store, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    killed = command(config, tmp_path / "run.yaml")
    deadline = time.monotonic() + 240
    while not checkpoints_in(checkpoints) and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "run" / "model").exists()
    engine = replace(config.engine, devices=2, strategy="ddp")
    again = command(replace(config, engine=engine), tmp_path / "again.yaml")
    output = again.communicate(timeout=240)[0]
    assert again.returncode == 0, output
    assert "Resuming from" in output
    model = scxtrimo.model.XTrimoGene.load(tmp_path / "run" / "model", adata=False)
    np.testing.assert_allclose(losses(model), losses(whole), rtol=0, atol=1e-4)


def test_parameters_can_be_sharded(store, whole, tmp_path):
    engine = EngineConfig(accelerator="cpu", devices=2, strategy="fsdp2")
    run = command(configure(store, tmp_path / "run", engine=engine), tmp_path / "run.yaml")
    output = run.communicate(timeout=240)[0]
    assert run.returncode == 0, output
    model = scxtrimo.model.XTrimoGene.load(tmp_path / "run" / "model", adata=False)
    np.testing.assert_allclose(losses(model), losses(whole), rtol=0, atol=1e-4)


def test_recomputing_changes_nothing(store, whole, tmp_path):
    engine = EngineConfig(accelerator="cpu", devices=1, recompute=True)
    model = scxtrimo.pretrain(configure(store, tmp_path / "run", engine=engine))
    np.testing.assert_allclose(losses(model), losses(whole), rtol=1e-5)


def test_only_the_last_checkpoints_are_kept(store, tmp_path):
    record = replace(configure(store, "").record, keep=2)
    scxtrimo.pretrain(configure(store, tmp_path / "run", record=record))
    names = [path.name for path in checkpoints_in(tmp_path / "run" / "checkpoints")]
    assert names == ["step-000000024.ckpt", "step-000000020.ckpt"]


def test_a_damaged_checkpoint_is_left_for_the_one_before(store, whole, tmp_path):
    config = configure(store, tmp_path / "run")
    scxtrimo.pretrain(config)
    (tmp_path / "run" / "model" / "model.json").unlink()
    last = checkpoints_in(tmp_path / "run" / "checkpoints")[0]
    last.write_bytes(last.read_bytes()[:1000])
    assert_same(scxtrimo.pretrain(config), whole)


def test_a_full_disk_leaves_earlier_checkpoints(store, whole, tmp_path, monkeypatch):
    config = configure(store, tmp_path / "run")
    save = torch.save
    written = []

    def full(checkpoint, file, *args, **kwargs):
        if len(written) == 2:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file)
        return save(checkpoint, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="could not be written.*step-000000008.ckpt") as error:
        scxtrimo.pretrain(config)
    assert error.value.errno == errno.ENOSPC
    monkeypatch.setattr(torch, "save", save)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000000004.ckpt", "step-000000008.ckpt"]
    assert_same(scxtrimo.pretrain(config), whole)


def make_nan(monkeypatch, steps):
    forward = XTrimoGeneNet.forward
    calls = []

    def sometimes_nan(self, batch):
        result = forward(self, batch)
        if self.training:
            calls.append(0)
            if (len(calls) - 2) // 4 in steps:  # four batches a step, after one that is counted
                result = result._replace(loss=result.loss * float("nan"))
        return result

    monkeypatch.setattr(XTrimoGeneNet, "forward", sometimes_nan)


def test_a_loss_that_is_not_finite_stops_with_its_cells(store, tmp_path, monkeypatch):
    make_nan(monkeypatch, {9})
    with pytest.raises(FloatingPointError, match=r"Step 9: the loss is nan .*cells\.h5ad"):
        scxtrimo.pretrain(configure(store, tmp_path / "run"))
    assert checkpoints_in(tmp_path / "run" / "checkpoints")


def test_or_is_left_out_and_counted(store, tmp_path, monkeypatch):
    make_nan(monkeypatch, {9, 10})
    engine = EngineConfig(accelerator="cpu", devices=1, on_non_finite="skip")
    model = scxtrimo.pretrain(configure(store, tmp_path / "run", engine=engine))
    assert model.provenance["steps_left_out"] == "2"
    assert all(torch.isfinite(p).all() for p in model.module.parameters())
    assert np.isfinite(losses(model)).all()


def test_another_configuration_needs_another_directory(store, tmp_path):
    config = configure(store, tmp_path / "run", steps=4)
    scxtrimo.pretrain(config)
    with pytest.raises(ValueError, match="another configuration: config: size: tiny there, 1m"):
        scxtrimo.pretrain(replace(config, size="1m"))


def test_sharded_runs_stay_so(store, tmp_path):
    config = configure(store, tmp_path / "run", steps=4)
    scxtrimo.pretrain(config)
    (tmp_path / "run" / "model" / "model.json").unlink()
    engine = EngineConfig(accelerator="cpu", devices=1, strategy="fsdp2")
    with pytest.raises(ValueError, match="sharded: False there, True here"):
        scxtrimo.pretrain(replace(config, engine=engine))


def test_a_store_with_other_cells_is_another_run(store, tmp_path):
    config = configure(store, tmp_path / "run", steps=4)
    scxtrimo.pretrain(config)
    cells = [str(tmp_path / "cells.h5ad")]
    make_cells(400).write_h5ad(cells[0])
    other = write_store(
        cells, tmp_path / "other.zarr", min_genes=1, validation_size=0.1, memory=60_000, seed=7
    )
    with pytest.raises(ValueError, match="store: "):
        scxtrimo.pretrain(replace(config, data=replace(config.data, store=other.path)))


def test_a_header_that_was_cut_is_named(store, tmp_path):
    config = configure(store, tmp_path / "run", steps=4)
    scxtrimo.pretrain(config)
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is damaged"):
        scxtrimo.pretrain(config)


def test_single_fields_leave_the_other_defaults(store, tmp_path, caplog):
    model = {"n_hidden": 128}
    config = configure(
        store, tmp_path / "run", steps=2, model=model, optimizer={"weight_decay": 0.1}
    )
    scxtrimo.pretrain(config)
    assert "learning rate 0.0005" in caplog.text  # that of the width, not of OptimizerConfig


def test_held_out_cells_are_in_the_history(whole):
    validation = whole.history["validation_loss"]["validation_loss"]
    assert validation.index.tolist() == [6, 12, 18, 24]
    assert validation.iloc[-1] < validation.iloc[0]
    assert float(whole.provenance["last validation_loss"]) == validation.iloc[-1]


def test_the_last_step_has_a_checkpoint(store, tmp_path):
    scxtrimo.pretrain(configure(store, tmp_path / "run", steps=5))
    last = checkpoints_in(tmp_path / "run" / "checkpoints")[0]
    assert last.name == "step-000000005.ckpt"


def test_cells_that_cannot_be_read_are_counted_across_interruptions(store, tmp_path, monkeypatch):
    copied = tmp_path / "store.zarr"
    shutil.copytree(store, copied)
    shard = sorted(p for p in (copied / "train").rglob("data/c/*") if p.is_file())[0]
    shard.write_bytes(shard.read_bytes()[:200])
    data = replace(configure(store, "").data, store=str(copied), on_damage="skip")
    config = configure(store, tmp_path / "run", data=data, steps=12)
    step = PretrainingPlan.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 7:
            raise Interrupted
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PretrainingPlan, "training_step", interrupted)
    with pytest.raises(Interrupted):
        scxtrimo.pretrain(config)
    monkeypatch.setattr(PretrainingPlan, "training_step", step)
    n_damaged = int(CellStore(copied).ends[0])  # some runs of cells reach into the next data set
    left_out = int(scxtrimo.pretrain(config).provenance["cells_left_out"])
    assert n_damaged <= left_out <= 2 * (n_damaged + 64)


def test_a_complete_run_gives_its_model_again(store, tmp_path):
    config = configure(store, tmp_path / "run", steps=4)
    first = scxtrimo.pretrain(config)
    started = time.monotonic()
    again = scxtrimo.pretrain(config)
    assert time.monotonic() - started < 30
    np.testing.assert_array_equal(losses(first), losses(again))


def test_dry_run_writes_nothing(store, tmp_path):
    found = scxtrimo.pretrain(configure(store, tmp_path / "run"), dry_run=True)
    assert not (tmp_path / "run").exists()
    assert found.n_parameters > 10_000
    assert found.flops_per_cell > 0
    assert found.n_cells == 358
    assert found.epochs == pytest.approx(N_STEPS * found.cells_per_step / 358)
    assert "GFLOP per cell" in str(found)


def test_lengths_in_epochs_and_tokens_agree(store, tmp_path):
    epochs = configure(store, tmp_path / "a", steps=None, epochs=2.0)
    found = scxtrimo.pretrain(epochs, dry_run=True)
    tokens = 2 * found.n_cells * found.tokens_per_cell
    same = scxtrimo.pretrain(replace(epochs, epochs=None, tokens=tokens), dry_run=True)
    assert found.n_steps == same.n_steps == 24


def test_published_architecture_can_be_pretrained(store, tmp_path):
    config = configure(store, tmp_path / "run", size="published-tiny", model={}, steps=4)
    assert scxtrimo.pretrain(config).config.imputation_decoder == "performer"


def test_batches_must_be_shared_evenly(store, tmp_path):
    engine = EngineConfig(accelerator="cpu", devices=2, strategy="ddp")
    data = replace(configure(store, "").data, batches_per_step=3)
    with pytest.raises(ValueError, match="batches_per_step=3 cannot be shared by 2 devices"):
        scxtrimo.pretrain(configure(store, tmp_path / "run", engine=engine, data=data))


def test_a_missing_store_and_logger_are_named(store, tmp_path):
    data = DataConfig(str(tmp_path / "nothing.zarr"))
    with pytest.raises(FileNotFoundError, match="no store at"):
        scxtrimo.pretrain(configure(store, tmp_path / "run", data=data))
    record = replace(configure(store, "").record, loggers=("wandb",))
    with pytest.raises(ImportError, match="pip install wandb"):
        scxtrimo.pretrain(configure(store, tmp_path / "run", record=record))


def test_logs_can_be_read(store, tmp_path):
    record = replace(configure(store, "").record, loggers=("csv", "tensorboard"))
    scxtrimo.pretrain(configure(store, tmp_path / "run", record=record, steps=6))
    log = (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").read_text()
    assert "train_loss" in log.splitlines()[0]
    assert "validation_loss" in log.splitlines()[0]
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
