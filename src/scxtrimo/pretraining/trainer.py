"""Lightning's trainer for a run: strategy, loggers, progress bar, checkpoints."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from ..train.trainer import quiet_lightning
from .checkpoints import AtomicCheckpointIO, step_checkpoints
from .config import PretrainConfig
from .plan import StepMeter


def make_trainer(config: PretrainConfig, checkpoints: Path, meter: StepMeter) -> pl.Trainer:
    """Return Lightning's trainer for a run; how long it trains is set later.

    Parameters
    ----------
    config
        The run.
    checkpoints
        Directory for checkpoints.
    meter
        What measures metrics and speed.
    """
    engine, record = config.engine, config.record
    callbacks: list[Any] = [meter]
    if record.progress_bar:
        callbacks.append(_Bar())
    callbacks.append(step_checkpoints(checkpoints, record.checkpoint_every_n_steps, record.keep))
    with quiet_lightning():
        on_gpu = engine.accelerator != "cpu" and torch.cuda.is_available()
        return pl.Trainer(
            accelerator=engine.accelerator,
            devices=engine.devices,
            num_nodes=engine.num_nodes,
            strategy=_strategy(config),
            precision=engine.precision or ("bf16-mixed" if on_gpu else "32-true"),
            plugins=[AtomicCheckpointIO()],
            callbacks=callbacks,
            logger=[_logger(name, Path(config.out)) for name in record.loggers],
            max_epochs=-1,
            default_root_dir=config.out,  # where Lightning looks when SLURM starts it again
            gradient_clip_val=engine.gradient_clip_val,
            log_every_n_steps=record.log_every_n_steps,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=record.progress_bar,
            enable_model_summary=False,
        )


def _strategy(config: PretrainConfig) -> str | Strategy:
    engine = config.engine
    if engine.strategy == "ddp":
        return DDPStrategy(find_unused_parameters=False)
    if engine.strategy != "fsdp2":
        return engine.strategy
    devices = engine.devices
    if devices in ("auto", -1, "-1"):
        devices = max(1, torch.cuda.device_count()) if engine.accelerator != "cpu" else 1
    n_devices = len(devices) if isinstance(devices, list) else int(devices)
    # By default the devices of a node would share one batch, each with a part of every matrix.
    return ModelParallelStrategy(
        data_parallel_size=n_devices * engine.num_nodes,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
    )


def _logger(name: str, out: Path) -> Any:
    if name == "csv":
        return CSVLogger(out, name="logs")
    if name == "tensorboard":
        if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
            raise ImportError('loggers: "tensorboard" needs `pip install tensorboard`.')
        return TensorBoardLogger(out, name="tensorboard", version="")
    if find_spec("wandb") is None:
        raise ImportError('loggers: "wandb" needs `pip install wandb`.')
    out.mkdir(parents=True, exist_ok=True)
    run_id = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]  # a run goes on in it
    return WandbLogger(save_dir=out, project="scxtrimo", name=out.name, id=run_id, resume="allow")


class _Bar(TQDMProgressBar):
    """Lightning's progress bar over all steps; there are no epochs of its own."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Show what is done, not an epoch."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("Pretraining")

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        """Show metrics alone."""
        metrics = super().get_metrics(*args)
        return {name: value for name, value in metrics.items() if name != "v_num"}

    @property
    def total_train_batches(self) -> int:
        """Batches of the whole run, not steps."""
        return int(self.trainer.num_training_batches)
