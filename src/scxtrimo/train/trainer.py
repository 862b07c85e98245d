"""scvi-tools' trainer with safe checkpoints."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from scvi.train import Trainer, TrainRunner
from torch import Tensor

from .plan import XTrimoGenePlan, join_histories


class ResumeCheckpoint(Callback):
    """Keep everything needed to go on with an interrupted training, after every epoch.

    Parameters
    ----------
    directory
        Where to write ``last.ckpt``. It is replaced atomically: a training that is killed while
        writing leaves the previous file.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self.path = Path(directory) / "last.ckpt"

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint."""
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial, weights_only=False)  # the optimiser as well
        if trainer.is_global_zero:
            os.replace(partial, self.path)


def objective_of(ckpt_path: str | os.PathLike) -> str:
    """Return the name of the training plan that wrote a checkpoint.

    Parameters
    ----------
    ckpt_path
        A ``last.ckpt``. Nothing in it is executed.
    """
    if not Path(ckpt_path).is_file():
        raise FileNotFoundError(f"ckpt_path={str(ckpt_path)!r} does not exist.")
    checkpoint = torch.load(ckpt_path, weights_only=True, map_location="meta")
    return checkpoint.get("scxtrimo_plan", XTrimoGenePlan.__name__)


class KeepBest(Callback):
    """End with the weights of the epoch that was best on the validation cells.

    Parameters
    ----------
    monitor
        Name of a metric of which more is better.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.best = -float("inf")
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        value = float(trainer.callback_metrics.get(self.monitor, self.best))
        if value > self.best:
            self.best = value
            state = pl_module.state_dict()
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go back to the best weights."""
        if self.weights:
            pl_module.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"best": self.best, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.best, self.weights = state_dict["best"], state_dict["weights"]


class SafeTrainer(Trainer):
    """:class:`scvi.train.Trainer` that loads checkpoints without running code in them."""

    def fit(self, *args: Any, ckpt_path: str | os.PathLike | None = None, **kwargs: Any) -> None:
        """Train, or go on training from ``ckpt_path``."""
        if ckpt_path is not None:
            kwargs["weights_only"] = True
        super().fit(*args, ckpt_path=ckpt_path, **kwargs)


class XTrimoGeneRunner(TrainRunner):
    """:class:`scvi.train.TrainRunner` with :class:`SafeTrainer` and one history per training."""

    _trainer_cls = SafeTrainer
    training_plan: XTrimoGenePlan

    def _update_history(self) -> None:
        # Weights that come from elsewhere have no history; scvi-tools would not start one.
        was_trained = self.model.is_trained_
        self.model.is_trained_ = was_trained and bool(self.model.history_)
        n_before = max((len(f) for f in (self.model.history_ or {}).values()), default=0)
        super()._update_history()
        self.model.is_trained_ = was_trained  # also if this training fails
        for name, frame in self.trainer.logger.history.items():
            if name not in self.model.history_:  # scvi-tools drops what is new
                self.model.history_[name] = frame.set_axis(frame.index + n_before)
        history = {
            name: frame.astype(float) for name, frame in (self.model.history_ or {}).items()
        }
        self.model.history_ = join_histories(self.training_plan.earlier_history, history)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence advice that does not apply: on workers, logging intervals, products to try."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
            warnings.filterwarnings("ignore", message="Total length of `list`.*is zero")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            # a run that goes on has checkpoints
            warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")
            # what the network returns is not changed in place
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* view tensor")
            yield
    finally:
        log.setLevel(level)
