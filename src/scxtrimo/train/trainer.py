"""scvi-tools' trainer with safe checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from scvi.train import Trainer, TrainRunner

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
        self.model.is_trained_ = self.model.is_trained_ and bool(self.model.history_)
        super()._update_history()
        history = {
            name: frame.astype(float) for name, frame in (self.model.history_ or {}).items()
        }
        self.model.history_ = join_histories(self.training_plan.earlier_history, history)
