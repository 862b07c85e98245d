"""A pretraining run: from a store to a saved model, resumable at any time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from anndata import AnnData
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import nn

from .._files import replacing
from .._logging import logger
from ..config import choose_size
from ..data.gene_table import hash_genes
from ..latent import MAX_CELLS
from ..model.registration import registry_of_genes
from ..model.training import default_lr
from ..model.xtrimogene import XTrimoGene
from ..nn.ragged import RaggedBatch
from ..train.plan import MaskingConfig, OptimizerConfig, parameter_groups
from ..train.trainer import quiet_lightning
from .config import EngineConfig, PretrainConfig, from_dict
from .plan import PretrainingPlan, StepMeter, activation_bytes, peak_flops, training_flops
from .store import CellStore, require_annbatch
from .stream import StoreDataModule, ragged_batch

MAX_SAMPLE_TOKENS = 5_000_000
WARMUP_STEPS = 1000
FEW_CELLS = 8  # to count floating-point operations
MEASURED_STEPS = 3  # of a dry run
BYTES_PER_PARAMETER = 16  # weight, gradient and two moments, in single precision
# A run may be resumed with other values of these fields.
FREE = {"out", "engine", "record"}
FREE_DATA = {"store", "on_damage", "batches_per_step"}
HEADER, MODEL, CHECKPOINTS, SUMMARY = "run.json", "model", "checkpoints", "summary.json"
CHECKPOINT_NAME = "step-{step:09d}"
SETUP_ARGUMENTS = (
    *("layer", "batch_key", "labels_key", "categorical_covariate_keys", "gene_id_key"),
    "modality",
)


def pretrain(
    config: PretrainConfig | str | os.PathLike, dry_run: bool = False
) -> XTrimoGene | DryRun:
    """Pretrain a model on a store of any size, or resume a run that was interrupted.

    Started again with the same configuration, a run continues from its last checkpoint; on a CPU
    the losses are those of an uninterrupted run, bit for bit. The encoder reads all genes that a
    cell expresses, unless ``n_input_genes`` is given in ``model``.

    Parameters
    ----------
    config
        The run, or the path of a YAML file with it.
    dry_run
        Train a few steps without writing anything, and estimate what the run will take.

    Returns
    -------
    The trained model, which is also saved in ``<out>/model``; in a dry run, the estimate.

    Raises
    ------
    scxtrimo.pretraining.DamagedStoreError, FloatingPointError
        If cells cannot be read, or a loss or gradient is not finite; the message names the cells.
    OSError
        If there is no store, or a checkpoint cannot be written. Earlier ones stay.

    Examples
    --------
    >>> data = scxtrimo.DataConfig("cells.zarr")
    >>> record = scxtrimo.RecordConfig(progress_bar=False)
    >>> config = scxtrimo.PretrainConfig(data, out="run", size="tiny", epochs=1, record=record)
    >>> model = scxtrimo.pretrain(config)
    >>> adata.obsm["X_xtrimo"] = model.get_latent_representation(adata)
    """
    require_annbatch()
    if not isinstance(config, PretrainConfig):
        config = PretrainConfig.from_yaml(config)
    if dry_run:
        config = replace(config, record=replace(config.record, loggers=()))
        return _Run(config).dry_run()
    return _Run(config).train()


@dataclass(frozen=True)
class DryRun:
    """What a pretraining run will take, measured on one device.

    Parameters
    ----------
    size, n_parameters
        Name of the size, and number of parameters, including the gene embeddings.
    n_cells, n_genes, tokens_per_cell
        Cells of the store to train on, genes of its vocabulary, expressed genes of a cell.
    flops_per_cell
        Floating-point operations of a training step per cell.
    state_bytes, activation_bytes
        Weights, gradients and moments of a device, without sharding; what is kept of a batch for
        the backward pass.
    seconds_per_step
        Median of the measured steps of the optimiser, including reading.
    cells_per_step, n_steps, epochs
        Cells of a step, over all devices, and length of the run.
    device, n_devices, precision, mfu
        The device that was measured, how many will train, and the part of its peak operations.

    Examples
    --------
    >>> data = scxtrimo.DataConfig("cells.zarr")
    >>> config = scxtrimo.PretrainConfig(data, out="run", size="tiny", epochs=1)
    >>> estimate = scxtrimo.pretrain(config, dry_run=True)
    >>> estimate.n_cells, estimate.n_genes, estimate.hours > 0
    (671, 765, True)
    """

    size: str
    n_parameters: int
    n_cells: int
    n_genes: int
    tokens_per_cell: float
    flops_per_cell: float
    state_bytes: int
    activation_bytes: int
    seconds_per_step: float
    cells_per_step: float
    n_steps: int
    epochs: float
    device: str
    n_devices: int
    precision: str
    mfu: float

    @property
    def hours(self) -> float:
        """How long the run will take, in hours."""
        return self.n_steps * self.seconds_per_step / 3600

    def __str__(self) -> str:
        speed, hours = self.cells_per_step / self.seconds_per_step, self.hours
        longer = f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
        tokens = self.n_steps * self.cells_per_step * self.tokens_per_cell
        rows = {
            "model": f"{self.size}, {self.n_parameters:,} parameters",
            "cells": f"{self.n_cells:,} x {self.n_genes:,} genes, of which "
            f"{self.tokens_per_cell:,.0f} expressed",
            "arithmetic": f"{self.flops_per_cell / 1e9:,.2f} GFLOP per cell and step",
            "memory": f"{self.state_bytes / 1e9:.2f} GB of weights and optimiser + "
            f"{self.activation_bytes / 1e9:.2f} GB of activations per batch",
            "step": f"{self.seconds_per_step:.3f} s for {self.cells_per_step:,.0f} cells on "
            f"{self.n_devices} x {self.device}, {self.precision}",
            "speed": f"{speed:,.0f} cells/s, {speed * self.tokens_per_cell:,.0f} tokens/s, "
            f"{self.mfu:.0%} of the peak of the device",
            "length": f"{self.n_steps:,} steps = {self.epochs:.2f} epochs = {tokens:.3g} tokens",
            "time": f"{60 * hours:.1f} minutes" if hours < 1 else longer,
        }
        return "\n".join(f"{name:<11} {text}" for name, text in rows.items())


class _Run:
    """One run, in one of its processes."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config, self.out = config, Path(config.out)
        CellStore(config.data.store)  # raises before a trainer is made
        self.meter = StepMeter(config.record.log_every_n_steps)
        self.trainer = _make_trainer(config, self.meter)
        self.device = self.trainer.strategy.root_device
        if isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher):
            raise ValueError(
                "Several devices cannot be used from a notebook: start the run on the command "
                "line, `scxtrimo pretrain`, or set `engine: {devices: 1}`."
            )
        world_size = self.trainer.world_size
        self.n_lanes = config.data.batches_per_step or world_size
        if self.n_lanes % world_size:
            raise ValueError(
                f"batches_per_step={self.n_lanes} cannot be shared by {world_size} devices: "
                "choose a multiple of their number."
            )
        fields = asdict(config.data)
        for name in ("batches_per_step", "thinning", "panels"):
            del fields[name]
        self.data = StoreDataModule(**fields, n_lanes=self.n_lanes, seed=config.seed)
        self.store, self.plan = self.data.store, self.data.plan
        self.n_tokens = int(self.store.n_tokens.sum(dtype="int64"))
        epochs = config.epochs if config.tokens is None else config.tokens / self.n_tokens
        self.n_steps = config.steps or math.ceil((epochs or 0) * self.plan.n_steps)
        self.data.n_steps = self.n_steps
        self.trainer.fit_loop.epoch_loop.max_steps = self.n_steps
        self.trainer.accumulate_grad_batches = self.n_lanes // world_size
        self.dtype = torch.bfloat16 if "16" in str(self.trainer.precision) else torch.float32
        self.model = self._make_model(self.data.studies)

    def _make_model(self, studies: Sequence[str] = ()) -> XTrimoGene:
        size, hyperparameters = self.config.size, {"n_input_genes": None} | self.config.model
        if size == "auto":
            size = choose_size(self.store.n_cells, self.device.type == "cuda")
        genes = self.store.vocabulary.gene_ids
        setup_args = dict.fromkeys(SETUP_ARGUMENTS)
        if studies:
            setup_args["batch_key"] = self.config.data.study_key
        registry = registry_of_genes(XTrimoGene, genes, setup_args, studies)
        model = XTrimoGene(registry=registry, size=size, seed=self.config.seed, **hyperparameters)
        model.module.net.encoder.recompute = self.config.engine.recompute
        if self.config.engine.compile:
            model.compile()
        return model

    def _make_plan(self, checkpoint: Path | None = None) -> PretrainingPlan:
        config, module = self.config, self.model.module
        optimizer = {"lr": default_lr(module.config.n_hidden), "warmup_steps": WARMUP_STEPS}
        masking: dict[str, Any] = {"natural_weights": module.config.read_depth_aware}
        if not module.config.has_bottleneck:
            masking = asdict(MaskingConfig.published())
        return PretrainingPlan(
            module,
            from_dict(OptimizerConfig, optimizer | config.optimizer, "optimizer"),
            from_dict(MaskingConfig, masking | config.masking, "masking"),
            seed=config.seed,
            on_non_finite=config.engine.on_non_finite,
            resumed_from=None if checkpoint is None else str(checkpoint),
            thinning=config.data.thinning,
            panels=config.data.panels,
        )

    def train(self) -> XTrimoGene:
        """Train or resume, and save the model."""
        header = self._header()
        self._check_out(header)
        if (self.out / MODEL / "model.json").is_file():
            logger.info(f"The run in {self.out} is complete.")
            return XTrimoGene.load(self.out / MODEL, adata=False)
        checkpoint = _last_checkpoint(self.out / CHECKPOINTS)
        if self.trainer.is_global_zero:
            self.out.mkdir(parents=True, exist_ok=True)
            _write_text(self.out / "config.yaml", self.config.to_yaml())
            _write_text(self.out / HEADER, json.dumps(header, indent=1))
        if checkpoint is None:
            with self._sample() as rows:
                self.model._prepare_training(rows)
        elif self.trainer.is_global_zero:
            logger.info(f"Resuming from {checkpoint}.")
        plan = self._make_plan(checkpoint)
        self._set_up_meter(plan)
        record, trainer = self.config.record, self.trainer
        every = record.validate_every_n_steps * trainer.accumulate_grad_batches
        if every and self.data.validation_store.n_cells >= trainer.world_size:
            trainer.val_check_interval = every
        else:
            trainer.limit_val_batches = 0
        if trainer.is_global_zero:
            logger.info(self._plan_in_words(plan.optimizer_config.lr))
        self.model.module.train()
        with quiet_lightning():
            trainer.fit(plan, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        if trainer.global_step < self.n_steps:
            raise RuntimeError(
                f"Interrupted at step {trainer.global_step} of {self.n_steps}. Start the same "
                "command again to resume."
            )
        if self.n_steps % record.checkpoint_every_n_steps:
            last = self.out / CHECKPOINTS / f"{CHECKPOINT_NAME.format(step=self.n_steps)}.ckpt"
            trainer.save_checkpoint(last, weights_only=False)  # the optimiser as well
        return self._finish(plan)

    def _header(self) -> dict[str, Any]:
        """Return what must stay the same when a run is resumed."""
        stored = asdict(self.config) | {"size": self.model.size_}  # "auto" depends on the device
        engine = self.config.engine
        data = {k: v for k, v in stored.pop("data").items() if k not in FREE_DATA}
        return {
            "config": {k: v for k, v in stored.items() if k not in FREE} | {"data": data},
            "cells": self.store.n_cells,
            "genes": hash_genes(self.store.vocabulary.gene_ids),
            "tokens": self.n_tokens,
            "batches_per_step": self.n_lanes,
            "store": self.store.header["digest"],
            "sharded": engine.strategy == "fsdp2",
            "gradient_clip_val": engine.gradient_clip_val,
        }

    def _check_out(self, header: dict[str, Any]) -> None:
        path = self.out / HEADER
        if not path.is_file():
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}. Remove it to continue.") from error
        now = json.loads(json.dumps(header))
        if different := [*_differences(known, now)]:
            raise ValueError(
                f"{self.out} has a run of another configuration: {'; '.join(different)}. Choose "
                "another `out`, or remove it to start from scratch."
            )

    @contextmanager
    def _sample(self) -> Iterator[np.ndarray]:
        """Attach a sample of the cells to the model, and yield its rows."""
        per_cell = self.n_tokens / self.store.n_cells
        sample = self._draw(int(min(MAX_CELLS, max(1000, MAX_SAMPLE_TOKENS / per_cell))))
        self.model._attach(sample)
        yield np.arange(sample.n_obs)
        self.model._adata = self.model._adata_manager = None

    def _draw(self, n_cells: int, chunk: int = 64) -> AnnData:
        data = self.config.data
        skip = data.on_damage == "skip"
        return self.store.sample(n_cells, self.config.seed, chunk, skip, data.study_key)

    def _set_up_meter(self, plan: PretrainingPlan) -> None:
        few = self._draw(FEW_CELLS, FEW_CELLS)
        batch: Any = ragged_batch(few.X, np.arange(few.n_obs))
        n_covariates = int(self.data.codes is not None)
        batch["categories"] = torch.full((few.n_obs, n_covariates), -1)
        flops = training_flops(plan.module, plan.prepare(batch))
        self.meter.flops_per_token = flops / len(batch["counts"])
        self.meter.peak_flops = peak_flops(self.device, self.dtype) * self.trainer.world_size

    def _plan_in_words(self, lr: float) -> str:
        store, epochs = self.store, self.n_steps / self.plan.n_steps
        n_parameters = sum(p.numel() for p in self.model.module.parameters())
        return (
            f"Pretraining {self.model.size_!r} ({n_parameters:,} parameters) on {store.n_cells:,} "
            f"cells, {self.n_tokens:,} expressed genes, {len(store.vocabulary):,} genes in all: "
            f"{self.n_steps:,} steps ({epochs:.2f} epochs) of about "
            f"{self.plan.cells_per_step:,.0f} cells, learning rate {lr:g}, "
            f"{self.trainer.world_size} process(es) on {self.device.type}, "
            f"{self.trainer.precision}."
        )

    def _finish(self, plan: PretrainingPlan) -> XTrimoGene:
        """Fit the latent space and save the model, in the first process."""
        weights = self.trainer.strategy.lightning_module_state_dict()
        if self.trainer.is_global_zero:
            self.model = self._make_model()
            own = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
            self.model.module.load_state_dict(_for_average_study(own, self.model.module))
            self.model.is_trained_ = True
            self.model.history_ = plan.step_history
            self.model.to_device(self.device)
            with self._sample() as rows:
                self.model.module.eval()
                self.model._finish_training(rows, rows[:0])
            summary = self._summary(plan)
            self.model.provenance_ = {name: str(value) for name, value in summary.items()}
            self.model.save(self.out / MODEL)
            _write_text(self.out / SUMMARY, json.dumps(summary, indent=1))
            logger.info(f"Written to {self.out / MODEL}.")
        self.trainer.strategy.barrier("saved")
        return XTrimoGene.load(self.out / MODEL, adata=False)

    def _summary(self, plan: PretrainingPlan) -> dict[str, Any]:
        files = [Path(name).name for name in self.store.report["file"]]
        return {
            "source": "scxtrimo pretrain",
            "cells": self.store.n_cells,
            "genes": len(self.store.vocabulary),
            "files": len(files),
            "file names": ", ".join(files[:20]) + (", ..." if len(files) > 20 else ""),
            "steps": self.n_steps,
            "epochs": round(self.n_steps / self.plan.n_steps, 4),
            "cells_seen": round(self.n_steps * self.plan.cells_per_step),
            "steps_left_out": plan.n_skipped_steps,
            "cells_left_out": plan.n_skipped_cells,
        } | {
            f"last {name}": float(frame[name].iloc[-1])
            for name, frame in plan.step_history.items()
            if name not in ("cells_per_second", "tokens_per_second", "mfu", "gradient_norm")
        }

    def dry_run(self) -> DryRun:
        """Train a few steps on one device; communication between devices is not measured."""
        with self._sample() as rows:
            self.model._prepare_training(rows)
        plan, store, device = self._make_plan(), self.store, self.device
        module = plan.module.to(device).train()
        n_parameters = sum(p.numel() for p in module.parameters())
        optimizer = torch.optim.AdamW(parameter_groups(module, 0.01, 1e-6), lr=1e-6)
        world_size = self.trainer.world_size
        loader: Any = self.data._loader(store, self.plan, None, self.data.codes)
        batches = chain.from_iterable(repeat(loader))

        def loss_of(batch: RaggedBatch) -> Any:
            masked = plan.prepare(move_data_to_device(batch, device))
            with torch.autocast(device.type, self.dtype, enabled=self.dtype == torch.bfloat16):
                return module(masked).loss

        first = next(batches)
        kept = activation_bytes(lambda: loss_of(first))
        flops_per_cell = training_flops(module, plan.prepare(first)) / len(first["cell_ids"])
        seconds = []
        for _ in range(1 + MEASURED_STEPS):
            start = time.perf_counter()
            for _ in range(self.n_lanes // world_size):
                loss_of(next(batches)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        step_seconds = statistics.median(seconds[1:])
        rate = flops_per_cell * (self.plan.cells_per_step / world_size) / step_seconds
        return DryRun(
            size=self.model.size_,
            n_parameters=n_parameters,
            n_cells=store.n_cells,
            n_genes=len(store.vocabulary),
            tokens_per_cell=self.n_tokens / store.n_cells,
            flops_per_cell=flops_per_cell,
            state_bytes=BYTES_PER_PARAMETER * n_parameters,
            activation_bytes=kept,
            seconds_per_step=step_seconds,
            cells_per_step=self.plan.cells_per_step,
            n_steps=self.n_steps,
            epochs=self.n_steps / self.plan.n_steps,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            n_devices=world_size,
            precision=str(self.trainer.precision),
            mfu=rate / peak_flops(device, self.dtype),
        )


def _for_average_study(trained: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """Return weights for a network that is not told the study: the average one is part of it."""
    studies, baseline = "net.covariates.0.weight", "net.bottleneck.log_baseline"
    if studies not in trained:
        return trained
    own = module.state_dict()
    effect_g = trained["net.bottleneck.covariate_loadings"] @ trained[studies].mean(0)
    average = trained | {baseline: trained[baseline] + effect_g}
    fits = {name for name in own if name in average and average[name].shape == own[name].shape}
    return own | {name: average[name] for name in fits}


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:  # another process may be reading it
        partial.write_text(text, encoding="utf-8")


def _differences(known: Any, now: Any, place: str = "") -> Any:
    """Name what differs between two nested mappings."""
    if isinstance(known, dict) and isinstance(now, dict):
        for name in known.keys() | now.keys():
            yield from _differences(known.get(name), now.get(name), f"{place}{name}: ")
    elif known != now:
        yield f"{place}{known} there, {now} here"


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it when it is complete."""

    # Lightning writes to the temporary directory first, which may be on another file system:
    # moving it is then a copy that can be cut short.
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left_over in path.parent.glob("*.partial"):  # of a process that was killed
                left_over.unlink()
            with replacing(path) as partial, open(partial, "wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch wraps errors of the disk
            earlier = ", ".join(found.name for found in checkpoints_in(path.parent)) or "none"
            raise OSError(
                getattr(error, "errno", None) or 0,
                f"The checkpoint {path} could not be written: {error}. Earlier ones are intact "
                f"({earlier}). Free some space and start the same command again to resume from "
                "the last of them",
            ) from error


def checkpoints_in(directory: str | os.PathLike) -> list[Path]:
    """Return the checkpoints of a directory, the last one first."""
    return sorted(Path(directory).glob("step-*.ckpt"), reverse=True)


def _last_checkpoint(directory: Path) -> Path | None:
    """Return the last intact checkpoint, if any; loading it executes nothing."""
    for path in checkpoints_in(directory):
        try:
            torch.load(path, map_location="meta", mmap=True, weights_only=True)
        except Exception as error:  # noqa: BLE001 - truncated files fail in many ways
            logger.warning(f"{path} is damaged ({error}); using the one before.")
        else:
            return path
    return None


def _make_trainer(config: PretrainConfig, meter: StepMeter) -> pl.Trainer:
    """Return Lightning's trainer for a run; how long it trains is set later."""
    engine, record = config.engine, config.record
    bars: list[Any] = [_ProgressBar()] if record.progress_bar else []
    checkpoints = ModelCheckpoint(
        dirpath=Path(config.out) / CHECKPOINTS,
        filename=CHECKPOINT_NAME,
        auto_insert_metric_name=False,
        every_n_train_steps=record.checkpoint_every_n_steps,
        save_on_train_epoch_end=False,
        monitor="step",
        mode="max",
        save_top_k=record.keep,
        enable_version_counter=False,
    )
    with quiet_lightning():
        on_gpu = engine.accelerator != "cpu" and torch.cuda.is_available()
        return pl.Trainer(
            accelerator=engine.accelerator,
            devices=engine.devices,
            num_nodes=engine.num_nodes,
            strategy=_strategy(engine),
            precision=engine.precision or ("bf16-mixed" if on_gpu else "32-true"),
            plugins=[_AtomicCheckpointIO()],
            callbacks=[meter, *bars, checkpoints],
            logger=[_logger(name, Path(config.out)) for name in record.loggers],
            max_epochs=-1,
            default_root_dir=config.out,  # where Lightning looks when SLURM restarts it
            gradient_clip_val=engine.gradient_clip_val,
            log_every_n_steps=record.log_every_n_steps,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=record.progress_bar,
            enable_model_summary=False,
        )


def _strategy(engine: EngineConfig) -> str | Strategy:
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
    needs = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}.get(name)
    if needs and not any(map(find_spec, needs)):
        raise ImportError(f'loggers: "{name}" needs `pip install {name}`.')
    if name == "csv":
        return CSVLogger(out, name="logs")
    if name == "tensorboard":
        return TensorBoardLogger(out, name="tensorboard", version="")
    out.mkdir(parents=True, exist_ok=True)
    run_id = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]  # same when resumed
    return WandbLogger(save_dir=out, project="scxtrimo", name=out.name, id=run_id, resume="allow")


class _ProgressBar(TQDMProgressBar):
    """Lightning's progress bar over all steps of a run, without epochs."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("Pretraining")

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        metrics = super().get_metrics(*args)
        return {name: value for name, value in metrics.items() if name != "v_num"}

    @property
    def total_train_batches(self) -> int:
        return int(self.trainer.num_training_batches)
