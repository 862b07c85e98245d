"""A training without a number of epochs ends when nothing more is gained."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import make_cells

from scxtrimo.data.dataset import threads_for, torch_threads
from scxtrimo.model.training import MAX_STEPS, Rounds
from scxtrimo.model.xtrimogene import XTrimoGene
from scxtrimo.train.plan import MaskingConfig, OptimizerConfig
from scxtrimo.train.trainer import StopWhenLevel

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def stopped_after(losses: list[float], **kwargs) -> int:
    callback = StopWhenLevel(**kwargs)
    for n, loss in enumerate(losses, start=1):
        trainer = SimpleNamespace(
            sanity_checking=False, should_stop=False, callback_metrics={"validation_loss": loss}
        )
        callback.on_validation_end(trainer, None)
        if trainer.should_stop:
            return n
    return -1


def test_it_ends_when_the_loss_falls_no_more():
    falling = [10 * 0.7**n for n in range(40)]
    assert stopped_after(falling, window=2, part=0.05) == 10
    assert stopped_after([10.0 - n for n in range(20)], window=2, part=0.05) == -1
    assert stopped_after([1.0, 2.0, 3.0, 4.0], window=2) == 4


def test_a_resumed_training_remembers_the_losses():
    first = StopWhenLevel(2)
    first.losses = [3.0, 2.0, 1.99]
    second = StopWhenLevel(2)
    second.load_state_dict(first.state_dict())
    trainer = SimpleNamespace(
        sanity_checking=False, should_stop=False, callback_metrics={"validation_loss": 1.98}
    )
    second.on_validation_end(trainer, None)
    assert trainer.should_stop


@pytest.mark.parametrize("n_batches", [1, 7, 40, 300, 10_000])
def test_rounds_are_short_and_not_more_than_allowed(n_batches):
    rounds = Rounds.of(n_batches)
    assert rounds.steps_per_epoch <= min(n_batches, 50)
    assert 25 <= rounds.steps_per_epoch * rounds.epochs_per_validation <= 75
    assert MAX_STEPS <= rounds.max_epochs * rounds.steps_per_epoch < MAX_STEPS + 50


def test_the_default_ends_by_itself_and_repeats():
    cells = make_cells(300, 40)
    results = []
    for _ in range(2):
        XTrimoGene.setup_anndata(cells)
        model = XTrimoGene(cells, size="tiny", seed=0)
        model.train(**QUIET)
        results.append(model.get_latent_representation())
    np.testing.assert_array_equal(*results)
    losses = model.history["validation_loss"].iloc[:, 0]
    assert losses.iloc[-1] < losses.iloc[0]
    assert len(model.history["train_loss"]) < Rounds.of(5).max_epochs


def test_an_optimizer_or_masking_of_ones_own_goes_with_it():
    cells = make_cells(100, 40)
    XTrimoGene.setup_anndata(cells)
    for own in ({"optimizer": OptimizerConfig(lr=2e-3)}, {"masking": MaskingConfig(0.1, 0.2)}):
        model = XTrimoGene(cells, size="tiny", seed=0)
        model.train(**own, **QUIET)
        assert model.is_trained_


def test_threads_are_few_for_narrow_networks_and_as_asked_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_for(64) == 1
    assert 1 <= threads_for(512) <= torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_for(64) == 3
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_progress_is_shown_within_an_epoch_with_cells_per_second(capsys):
    cells = make_cells(200)
    XTrimoGene.setup_anndata(cells)
    model = XTrimoGene(cells, size="tiny")
    model.train(max_epochs=2, accelerator="cpu")
    shown = capsys.readouterr().err
    assert "Epoch 2/2" in shown
    assert "cells/s" in shown
    assert "360/360" in shown  # 180 training cells, twice
    model.train(max_epochs=1, **QUIET)
    assert "cells/s" not in capsys.readouterr().err
