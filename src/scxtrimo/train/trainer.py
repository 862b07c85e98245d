"""Running a training: scvi-tools' trainer, the history, and checkpoints that run no code."""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from scvi.train import Trainer, TrainRunner
from scvi.train._logger import SimpleLogger
from torch import Tensor

from .._logging import logger


class ResumeCheckpoint(Callback):
    """Write ``last.ckpt`` after every epoch, to resume from; it is replaced as a whole."""

    def __init__(self, directory: str | os.PathLike) -> None:
        self.path = Path(directory).expanduser() / "last.ckpt"
        if self.path.parent.exists() and not self.path.parent.is_dir():
            raise FileExistsError(f"checkpoint_dir={str(directory)!r} is a file, not a directory.")
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint."""
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial, weights_only=False)  # the optimiser as well
        if trainer.is_global_zero:
            os.replace(partial, self.path)


def read_checkpoint(ckpt_path: str | os.PathLike) -> dict[str, Any]:
    """Read a ``last.ckpt`` without its tensors; nothing in it is executed."""
    path, given = Path(ckpt_path).expanduser(), f"ckpt_path={str(ckpt_path)!r}"
    if path.is_dir():
        file = str(path / "last.ckpt")
        raise IsADirectoryError(f"{given} is a directory. Name the file in it: {file!r}.")
    if not path.is_file():
        raise FileNotFoundError(f"{given} does not exist.")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="meta")
    except Exception as error:  # of any kind, for a file of any kind
        first_line = [*str(error).splitlines(), type(error).__name__][0]
        raise ValueError(
            f"{given} cannot be read, it may be truncated or not a checkpoint: {first_line}"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{given} is not a checkpoint of a training.")
    return checkpoint


def objective_of(ckpt_path: str | os.PathLike) -> str:
    """Return the name of the training plan that wrote a checkpoint."""
    return str(read_checkpoint(ckpt_path).get("scxtrimo_plan", "XTrimoGenePlan"))


def check_resumed(ckpt_path: str | os.PathLike, trained_on: Mapping[str, str]) -> None:
    """Make sure that a training goes on with the data (hashes ``trained_on``) it began with."""
    before = read_checkpoint(ckpt_path).get("scxtrimo_data")
    if not before:
        logger.warning(
            f"ckpt_path={str(ckpt_path)!r} was written by an earlier version, which did not note "
            "what it was trained on. Make sure that cells, genes and columns are the same, in the "
            "same order."
        )
        return
    names = dict.fromkeys([*before, *trained_on])
    if other := [name for name in names if before.get(name) != trained_on.get(name)]:
        raise ValueError(
            f"ckpt_path={str(ckpt_path)!r} belongs to another training: {', '.join(other)} "
            "differ, or are in another order. Restore the model and the data of that training, "
            "or start a new one."
        )


class KeepBest(Callback):
    """End with the weights of the epoch whose ``monitor`` was highest on the validation cells."""

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


class AverageWeights(WeightAveraging):
    """Validate, and end, with weights that are averaged over about as many steps.

    Only every fifth step is averaged, which saves time.
    """

    every = 5

    def __init__(self, n_steps: int) -> None:
        def average(averaged: list[Tensor], present: list[Tensor], n_averaged: Any) -> None:
            n = float(n_averaged) + 1  # the first steps, which go far, are soon forgotten
            weight = 1 - min(1 - self.every / n_steps, n / (n + 9))
            torch._foreach_lerp_(averaged, present, weight)

        super().__init__(use_buffers=False, multi_avg_fn=average)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether the weights after a step are taken."""
        return step_idx is not None and step_idx % self.every == 0


class StopWhenLevel(Callback):
    """Stop when the validation loss falls no more.

    That is when it fell, over the last ``window`` validations, by less than ``part`` of all that
    it has fallen since the first.
    """

    def __init__(self, window: int, part: float = 0.12) -> None:
        self.window, self.part = window, part
        self.losses: list[float] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the loss with those before."""
        if trainer.sanity_checking:
            return
        self.losses.append(float(trainer.callback_metrics["validation_loss"]))
        if len(self.losses) > self.window + 1:
            first, before, now = (self.losses[i] for i in (0, -1 - self.window, -1))
            trainer.should_stop |= before - now < self.part * (first - now)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"losses": self.losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.losses = list(state_dict["losses"])


class ReturnMemory(Callback):
    """Return freed memory to the system after every epoch.

    Tensors of cells differ in size, and the allocator of glibc keeps the gaps between them: the
    process grows by 100 MB in an epoch without having more tensors.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Return it, where there is a function for that."""
        with suppress(AttributeError, OSError, TypeError):  # other systems than Linux
            ctypes.CDLL(None).malloc_trim(0)


class SafeTrainer(Trainer):
    """:class:`scvi.train.Trainer` that loads checkpoints without running code in them."""

    def fit(self, *args: Any, ckpt_path: str | os.PathLike | None = None, **kwargs: Any) -> None:
        """Train, or go on training from ``ckpt_path``."""
        if ckpt_path is not None:
            kwargs["weights_only"] = True
        super().fit(*args, ckpt_path=ckpt_path, **kwargs)


class XTrimoGeneRunner(TrainRunner):
    """:class:`scvi.train.TrainRunner` with :class:`SafeTrainer` and a history of all trainings."""

    _trainer_cls = SafeTrainer
    training_plan: Any  # an XTrimoGenePlan

    def __init__(
        self,
        model: Any,
        logger: Any = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        log_save_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        others = [] if logger in (None, True, False) else as_list(logger)
        loggers = [*others, SimpleLogger(save_dir=log_save_dir)]
        callbacks = [*as_list(callbacks), ReturnMemory()]
        super().__init__(model, logger=loggers, callbacks=callbacks, **kwargs)

    def _update_history(self) -> None:
        # A model with weights from elsewhere is trained and has no history.
        earlier = (self.model.history_ or {}) if self.model.is_trained_ else {}
        later = later_epochs(earlier, logged_history(self.trainer))
        before = self.training_plan.earlier_history
        self.model.history_ = join_histories(before, earlier, later)


def as_list(value: Any) -> list[Any]:
    """Return a list of its own of one thing, several or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) else [value]


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


def logged_history(trainer: pl.Trainer) -> dict[str, pd.DataFrame]:
    """Return what the logger that keeps a history has, whatever other loggers there are."""
    return next((x.history for x in trainer.loggers if isinstance(x, SimpleLogger)), {})


def later_epochs(
    earlier: Mapping[str, pd.DataFrame], history: Mapping[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Return a history whose epochs are counted from the end of an earlier one."""
    n_before = max(map(len, earlier.values()), default=0)
    return {
        name: frame.astype(float).set_axis((frame.index + n_before).rename("epoch"))
        for name, frame in history.items()
    }


def history_to_dict(history: dict[str, pd.DataFrame]) -> dict[str, dict[str, list]]:
    """Return a history as plain lists, for JSON and checkpoints."""
    return {
        name: {
            frame.index.name or "epoch": frame.index.tolist(),
            "value": frame[name].astype(float).tolist(),
        }
        for name, frame in history.items()
    }


def history_from_dict(stored: dict[str, dict[str, list]]) -> dict[str, pd.DataFrame]:
    """Undo :func:`history_to_dict`."""
    history = {}
    for name, part in stored.items():
        unit = next(key for key in part if key != "value")  # epoch or step
        history[name] = pd.DataFrame({name: part["value"]}, pd.Index(part[unit], name=unit))
    return history


def join_histories(*histories: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Append the epochs of later trainings to those before."""
    joined: dict[str, pd.DataFrame] = {}
    for history in histories:
        for name, frame in history.items():
            if name in joined:
                frame = pd.concat([joined[name], frame[~frame.index.isin(joined[name].index)]])
            joined[name] = frame
    return joined
