"""What a run will take, from a few measured steps."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch

from ..train.plan import parameter_groups
from .flops import activation_bytes, peak_flops, training_flops
from .plan import PretrainingPlan
from .stream import StoreDataModule

MEASURED_STEPS = 3
BYTES_PER_PARAMETER = 16  # weight, gradient and two moments, in single precision


@dataclass(frozen=True)
class DryRun:
    """What a pretraining run will take, measured on one device.

    Parameters
    ----------
    size
        Name of the size.
    n_parameters
        Parameters, those of the gene embeddings among them.
    n_cells, n_genes, tokens_per_cell
        Cells of the store to train on, genes of its vocabulary, expressed genes of a cell.
    flops_per_cell
        Floating-point operations of a training step per cell.
    state_bytes
        Weights, gradients and moments of a device, before anything is sharded.
    activation_bytes
        What is kept of a batch for the backward pass.
    seconds_per_step
        Median of the measured steps of the optimiser, reading included.
    cells_per_step
        Cells of a step, over all devices.
    n_steps, epochs
        Length of the run.
    device, n_devices, precision
        What was measured, and how many will train.
    mfu
        Part of what the device can do at best.

    Examples
    --------
    >>> import scxtrimo
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
        speed = self.cells_per_step / self.seconds_per_step
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
            f"{self.mfu:.0%} of what the device can do",
            "length": f"{self.n_steps:,} steps = {self.epochs:.2f} epochs = {tokens:.3g} tokens",
            "time": _duration(self.hours),
        }
        return "\n".join(f"{name:<11} {text}" for name, text in rows.items())


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


def estimate(
    plan: PretrainingPlan, data: StoreDataModule, n_steps: int, trainer: pl.Trainer, size: str
) -> DryRun:
    """Train a few steps on one device, and say what the run will take.

    Parameters
    ----------
    plan, data, trainer
        Those of the run. The trainer is asked for its devices and precision only.
    n_steps
        Steps of the run.
    size
        Name of the size.

    Notes
    -----
    What several devices lose by waiting for each other is not in the estimate.
    """
    module, device = plan.module, trainer.strategy.root_device
    is_half = "16" in str(trainer.precision)
    dtype = torch.bfloat16 if is_half else torch.float32
    module.to(device).train()
    n_parameters = sum(p.numel() for p in module.parameters())
    optimizer = torch.optim.AdamW(parameter_groups(module, 0.01, 1e-6), lr=1e-6)
    loader = data._loader(data.store, data.plan, None)
    per_process = max(1, data.n_lanes // trainer.world_size)
    batches = islice(_endless(loader), (1 + MEASURED_STEPS) * per_process)

    def loss_of(batch: dict[str, Any]) -> Any:
        moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
        masked = plan.prepare(moved)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
            return module(masked)[2].loss

    seconds, kept, flops, n_cells = [], 0, 0.0, 0
    for step in range(1 + MEASURED_STEPS):
        start = time.perf_counter()
        for _ in range(per_process):
            batch = next(batches)
            if step == 0 and not kept:
                kept = activation_bytes(lambda b=batch: loss_of(b))
                flops = training_flops(module, plan.prepare(batch))
                n_cells = len(batch["cell_ids"])
            loss_of(batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    step_seconds = statistics.median(seconds[1:])
    per_device = data.plan.cells_per_step / trainer.world_size
    rate = flops / n_cells * per_device / step_seconds
    n_tokens = float(data.store.n_tokens.sum(dtype="int64"))
    return DryRun(
        size=size,
        n_parameters=n_parameters,
        n_cells=data.store.n_cells,
        n_genes=len(data.store.vocabulary),
        tokens_per_cell=n_tokens / data.store.n_cells,
        flops_per_cell=flops / n_cells,
        state_bytes=BYTES_PER_PARAMETER * n_parameters,
        activation_bytes=kept,
        seconds_per_step=step_seconds,
        cells_per_step=data.plan.cells_per_step,
        n_steps=n_steps,
        epochs=n_steps / data.plan.n_steps,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        n_devices=trainer.world_size,
        precision=str(trainer.precision),
        mfu=rate / peak_flops(device, dtype),
    )


def _endless(loader: Any) -> Any:
    while True:
        yield from loader
