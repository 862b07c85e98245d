"""The training plan for stores: non-finite steps, sharding, metrics by step, speed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .._logging import logger
from ..nn.masking import lighten_batch
from ..nn.ragged import RaggedBatch
from ..nn.xtrimogene import Losses
from ..train.plan import PROGRESS_METRIC, VALIDATION_EPOCH, XTrimoGenePlan, metrics_of
from ..train.trainer import history_from_dict, history_to_dict

MAX_SKIPPED_IN_A_ROW = 20
OnNonFinite = Literal["raise", "skip"]
FORWARD_AND_BACKWARD = 3  # the backward pass is twice the forward pass
# The counter of torch knows the attention kernels of GPUs only.
ATTENTION_ON_CPU: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)
    )
}


class PretrainingPlan(XTrimoGenePlan):
    """:class:`XTrimoGenePlan` for batches of a store, on any number of processes."""

    def __init__(
        self,
        *args: Any,
        on_non_finite: OnNonFinite = "raise",
        resumed_from: str | None = None,
        thinning: float = 0.0,
        panels: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.thinning, self.panels = thinning, panels
        self.on_non_finite, self.resumed_from = on_non_finite, resumed_from
        self.n_skipped_steps, self._n_in_a_row = 0, 0
        self.n_skipped_cells = 0  # of all processes
        self.sums: dict[str, Tensor | float] = defaultdict(float)  # since the last entry
        self._pending: dict[str, Tensor | float] = defaultdict(float)  # of this step
        self._losses: list[tuple[Tensor, Tensor]] = []  # of the batches of this step
        self.step_history: dict[str, pd.DataFrame] = {}

    def prepare(self, batch: RaggedBatch, epoch: int = 0) -> RaggedBatch:
        """Return a batch as the network is trained on, also with fewer counts and genes."""
        if (self.thinning or self.panels) and epoch != VALIDATION_EPOCH:
            n_genes = self.module.n_genes
            batch = lighten_batch(batch, self.thinning, self.panels, n_genes, self.seed, epoch)
        return super().prepare(batch, epoch)

    def configure_model(self) -> None:
        """Shard the parameters, if the strategy is FSDP2."""
        mesh = getattr(self, "_device_mesh", None)
        if mesh is None:
            return
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if isinstance(self.module, FSDPModule):
            return
        for layer in self.module.net.encoder.layers:
            fully_shard(layer, mesh=mesh["data_parallel"])
        empty = {p for p in self.module.parameters() if not p.numel()}
        fully_shard(self.module, mesh=mesh["data_parallel"], ignored_params=empty)

    def on_fit_start(self) -> None:
        """Make sure that all processes see the same checkpoints."""
        of_first = self.trainer.strategy.broadcast(self.resumed_from)
        if of_first != self.resumed_from:
            raise ValueError(
                f"The first process resumes from {of_first}, this one from {self.resumed_from}: "
                "`out` must be on a file system that all processes see."
            )

    def _log_training(self, losses: Losses, batch: RaggedBatch) -> None:
        n_cells = len(batch["cell_ids"])
        for name, value in metrics_of(losses, "train").items():
            self._pending[name] += n_cells * value.float()
        self._pending["cells"] += n_cells
        self._pending["tokens"] += len(batch["counts"])
        self._losses.append((losses.loss.detach(), batch["cell_ids"]))

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the norm of the gradient (equal in all processes), or skip a non-finite step."""
        parameters = [p for p in self.parameters() if p.grad is not None and p.numel()]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if torch.isfinite(norm):
            self._n_in_a_row = 0
            if gradient_clip_val:
                clip_grads_with_norm_(parameters, gradient_clip_val, norm)
            self._pending["gradient_norm"] += norm.detach()
            self._pending["steps"] += 1
            for name, value in self._pending.items():
                self.sums[name] += value
        else:
            self._skip_step(parameters)
        self._losses, self._pending = [], defaultdict(float)

    def _skip_step(self, parameters: list[nn.Parameter]) -> None:
        message = f"Step {self.global_step}: {self._non_finite_batch()}"
        self._n_in_a_row += 1
        if self.on_non_finite == "raise" or self._n_in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"{message} Lower the learning rate, or leave such steps out: "
                "`on_non_finite: skip`. Checkpoints written before are intact."
            )
        logger.warning(f"Left out: {message}")
        self.n_skipped_steps += 1
        for parameter in parameters:
            parameter.grad = None

    def _non_finite_batch(self) -> str:
        """Name the cells of the batch of this process whose loss is not finite."""
        wrong = [(loss, ids) for loss, ids in self._losses if not torch.isfinite(loss)]
        if not wrong:
            return "a gradient is not finite, although the losses of this process are."
        loss, rows = wrong[0][0].item(), wrong[0][1].cpu().numpy()
        origin = self.trainer.datamodule.store.origin(rows)  # type: ignore[attr-defined]
        first, files = origin.iloc[0], ", ".join(sorted(set(origin["source"]))[:3])
        return (
            f"the loss is {loss} for {len(rows)} cells, rows {rows.min()} to {rows.max()} of the "
            f"store (the first is cell {first['source_row']} of {first['source']}; "
            f"files: {files})."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history and the counters."""
        checkpoint["scxtrimo_plan"] = type(self).__name__
        checkpoint["scxtrimo_history"] = history_to_dict(self.step_history)
        checkpoint["scxtrimo_skipped"] = [self.n_skipped_steps, self.n_skipped_cells]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history, and count batches as this number of processes does."""
        self.step_history = history_from_dict(checkpoint.get("scxtrimo_history", {}))
        self.n_skipped_steps, self.n_skipped_cells = checkpoint.get("scxtrimo_skipped", [0, 0])
        n_batches = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        loop = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (loop["current"], loop["total"]):
            late = counts["ready"] - counts["completed"]  # saved before the batch is completed
            counts |= dict.fromkeys(("ready", "started", "processed"), n_batches)
            counts["completed"] = n_batches - late


class StepMeter(Callback):
    """Averages metrics over steps and processes, and measures the speed."""

    flops_per_token: float  # of a training step; set by the run
    peak_flops: float  # per second, of all devices; set by the run
    started: float
    last_step: int
    n_skipped = 0  # cells that the loader of this process left out

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.started, self.last_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Make an entry every so many steps."""
        step = trainer.global_step
        if step == self.last_step or step % self.every_n_steps or not pl_module.sums:
            return
        sums, pl_module.sums = pl_module.sums, defaultdict(float)
        loader = trainer.datamodule.train_loader
        sums["skipped"], self.n_skipped = loader.n_skipped - self.n_skipped, loader.n_skipped
        names = sorted(sums)
        total = torch.tensor([float(sums[name]) for name in names], dtype=torch.float64)
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(total.to(pl_module.device), reduce_op="sum")
        values = dict(zip(names, total.tolist(), strict=True))
        now = time.monotonic()
        seconds, self.started, self.last_step = now - self.started, now, step
        pl_module.n_skipped_cells += int(values.pop("skipped"))
        n_cells, tokens_per_second = values.pop("cells"), values.pop("tokens") / seconds
        norm = values.pop("gradient_norm") / values.pop("steps")
        entry = {name: value / n_cells for name, value in values.items()} | {
            "gradient_norm": norm,
            "cells_per_second": n_cells / seconds,
            "tokens_per_second": tokens_per_second,
            "mfu": tokens_per_second * self.flops_per_token / self.peak_flops,
        }
        _append(pl_module.step_history, step, entry)
        for name, value in entry.items():
            if name == "train_loss":
                pl_module.log(PROGRESS_METRIC, value, prog_bar=True, logger=False)
            in_bar = name in ("cells_per_second", "tokens_per_second", "mfu")
            pl_module.log(name, value, prog_bar=in_bar, on_step=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Make an entry of the held-out cells."""
        found = trainer.callback_metrics.items()
        metrics = {name: float(value) for name, value in found if "validation" in name}
        _append(pl_module.step_history, trainer.global_step, metrics)


def _append(history: dict[str, pd.DataFrame], step: int, entry: dict[str, float]) -> None:
    for name, value in entry.items():
        row = pd.DataFrame({name: [value]}, index=pd.Index([step], name="step"))
        history[name] = pd.concat([history.get(name), row])


def training_flops(module: nn.Module, batch: RaggedBatch) -> float:
    """Count the operations of a training step on a masked batch, without recomputation."""
    copied = deepcopy(module).cpu().train().requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU) as count:
        copied(move_data_to_device(batch, "cpu"))
    return FORWARD_AND_BACKWARD * float(count.get_total_flops())


def peak_flops(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Return the peak operations per second of a device: as specified, or else as measured."""
    if device.type == "cuda" and (known := get_available_flops(device, dtype)):
        return float(known)
    size = 1024 if device.type == "cpu" else 8192
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    timer = Timer("a @ a", globals={"a": matrix}, num_threads=torch.get_num_threads())
    return 2 * size**3 / min(timer.timeit(1).mean for _ in range(3))


def activation_bytes(loss: Callable[[], Tensor]) -> int:
    """Return the bytes that computing a loss keeps for the backward pass, on any device."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = loss()  # keeps the tensors alive, so that none shares its address with another
    del graph
    return sum(kept.values())
