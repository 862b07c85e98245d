"""The training plan: masks a batch, takes the loss, and steps the optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from scvi.module.base import LossOutput
from scvi.train._logger import SimpleLogger
from torch import Tensor, nn

from .._validation import Fraction, Probability, Validated
from ..nn.masking import MaskingConfig, mask_batch
from ..nn.thinning import thin_batch
from .finetuning import FinetuningConfig, layer_of
from .module import XTrimoGeneModule

PROGRESS_METRIC = "loss"  # shown in the progress bar, not kept
VALIDATION_EPOCH = -1  # validation masks are the same in every epoch


@dataclass(frozen=True)
class OptimizerConfig(Validated):
    """AdamW with linear warm-up and cosine decay.

    Parameters
    ----------
    lr
        Peak learning rate.
    weight_decay
        Decay of weight matrices. Biases, norms, embeddings and other vectors have none.
    warmup_steps
        Steps of linear warm-up, at most a tenth of all steps.
    final_lr_fraction
        Learning rate at the last step as a fraction of the peak.
    betas
        Exponential decay rates of the moment estimates.

    Examples
    --------
    >>> from scxtrimo.train import OptimizerConfig
    >>> optimizer = OptimizerConfig(lr=3e-4)
    >>> optimizer.lr_fraction(step=50, n_steps=800), optimizer.lr_fraction(800, 800)
    (1.0, 0.0)
    """

    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    warmup_steps: NonNegativeInt = 50
    final_lr_fraction: Probability = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)

    def lr_fraction(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step.

        Parameters
        ----------
        step
            The step, from 0.
        n_steps
            Number of all steps.

        Returns
        -------
        Fraction of the peak, from 0 to 1.
        """
        warmup = min(self.warmup_steps, n_steps // 10)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / max(n_steps - warmup, 1), 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.final_lr_fraction + (1 - self.final_lr_fraction) * cosine


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    lr: float = 1e-3,
    layer_decay: float = 1.0,
    n_layers: int = 0,
) -> list[dict[str, Any]]:
    """Split trainable parameters by weight decay and learning rate.

    Parameters
    ----------
    module
        What is trained.
    weight_decay
        Decay of weight matrices; everything else has none.
    lr, layer_decay
        Learning rate of the heads, and that of a layer as a fraction of the layer's above, see
        :class:`FinetuningConfig`.
    n_layers
        Layers of the encoder.
    """
    matrices = {
        f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Linear)
    }
    # Without covariates their loadings have no elements, which cannot be sharded.
    trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad and p.numel()]
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable:
        below_head = n_layers + 1 - layer_of(name, n_layers) if layer_decay < 1 else 0
        groups.setdefault((below_head, name not in matrices), []).append(parameter)
    return [
        {
            "params": groups[below_head, is_plain],
            "lr": lr * layer_decay**below_head,
            "weight_decay": 0.0 if is_plain else weight_decay,
        }
        for below_head, is_plain in sorted(groups)
    ]


class XTrimoGenePlan(pl.LightningModule):
    """Lightning module that trains an ``XTrimoGeneModule``.

    Parameters
    ----------
    module
        What is trained.
    optimizer
        Optimiser and schedule.
    masking
        How genes are masked.
    seed
        Seed of masks and dropout.
    finetuning
        Learning rates by layer; what is frozen is so already.
    """

    def __init__(
        self,
        module: XTrimoGeneModule,
        optimizer: OptimizerConfig,
        masking: MaskingConfig,
        seed: int,
        finetuning: FinetuningConfig | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.optimizer_config = optimizer
        self.masking = masking
        self.seed = seed
        self.finetuning = finetuning or FinetuningConfig()
        self.earlier_history: dict[str, pd.DataFrame] = {}
        self.trained_on: dict[str, str] = {}  # hashes of genes, cells, categories and labels

    def prepare(self, batch: dict[str, Tensor], epoch: int = 0) -> dict[str, Tensor]:
        """Return a batch as the network is trained on: thinned, if it knows depths, and masked.

        Parameters
        ----------
        batch
            A ragged batch.
        epoch
            Other epochs have other masks.
        """
        n_genes = self.module.n_genes
        if self.module.config.read_depth_aware:
            batch = thin_batch(batch, self.masking.thinning_probability, n_genes, self.seed, epoch)
        tell_hidden = self.module.sees_all_genes
        return mask_batch(batch, self.masking, n_genes, self.seed, epoch, tell_hidden)

    def _loss(self, batch: dict[str, Tensor], epoch: int) -> LossOutput:
        return self.module(self.prepare(batch, epoch))[2]

    def _log(self, losses: LossOutput, mode: str) -> None:
        self.log_dict(
            metrics_of(losses, mode),
            on_step=False,
            on_epoch=True,
            batch_size=losses.n_obs_minibatch,
            sync_dist=self.trainer.world_size > 1,
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        self.module.redraw_features(self.global_step)
        # Dropout draws from a generator of this step, so that a resumed training repeats it.
        with torch.random.fork_rng(devices=self._cuda_devices()):
            # Which of the batches of this step it is; those of a store say so themselves.
            lane = batch.get("lane", batch_idx % self.trainer.accumulate_grad_batches)
            torch.manual_seed(self.seed + self.global_step + 1_000_003 * int(lane))
            losses = self._loss(batch, int(batch.get("epoch", self.current_epoch)))
        self._log_training(losses, batch)
        return losses.loss

    def _log_training(self, losses: LossOutput, batch: dict[str, Tensor]) -> None:
        self._log(losses, "train")
        self.log(PROGRESS_METRIC, losses.loss.detach(), prog_bar=True, logger=False)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss of one validation batch."""
        self._log(self._loss(batch, VALIDATION_EPOCH), "validation")

    def configure_optimizers(self) -> Any:
        """AdamW with decay groups, and a schedule that is advanced every step."""
        config = self.optimizer_config
        groups = parameter_groups(
            self.module,
            config.weight_decay,
            config.lr,
            self.finetuning.layer_decay,
            self.module.config.n_layers,
        )
        # Lightning does not clip gradients of a fused optimiser in mixed precision.
        fused = self.trainer.precision == "32-true"
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
        n_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(config.lr_fraction, n_steps=n_steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history so far, for a training that is resumed."""
        # Metrics of the epoch that ends here reach the logger only after the checkpoint.
        epoch = pd.Index([self.current_epoch], name="epoch")
        current = {
            name: pd.DataFrame({name: [value.item()]}, index=epoch)
            for name, value in self.trainer.callback_metrics.items()
            if name != PROGRESS_METRIC
        }
        logged = logged_history(self.trainer)
        history = join_histories(join_histories(self.earlier_history, logged), current)
        checkpoint["scxtrimo_plan"] = type(self).__name__
        checkpoint["scxtrimo_data"] = self.trained_on
        checkpoint["scxtrimo_history"] = history_to_dict(history)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the history of the training that is resumed."""
        self.earlier_history = history_from_dict(checkpoint.get("scxtrimo_history", {}))

    def _cuda_devices(self) -> list[int]:
        return [self.device.index] if self.device.type == "cuda" else []


def metrics_of(losses: LossOutput, mode: str) -> dict[str, Tensor]:
    """Return the loss and what it is made of, by name."""
    values = {
        f"{mode}_loss": losses.loss,
        f"reconstruction_loss_{mode}": losses.reconstruction_loss_sum / losses.n_obs_minibatch,
    } | {f"{name}_{mode}": value for name, value in losses.extra_metrics.items()}
    return {name: value.detach() for name, value in values.items()}


def logged_history(trainer: pl.Trainer) -> dict[str, pd.DataFrame]:
    """Return what the logger that keeps a history has, whatever other loggers there are."""
    return next((x.history for x in trainer.loggers if isinstance(x, SimpleLogger)), {})


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
        index = pd.Index(part[unit], name=unit)
        history[name] = pd.DataFrame({name: part["value"]}, index=index)
    return history


def join_histories(
    earlier: dict[str, pd.DataFrame], later: dict[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Append the epochs of a resumed training to those before."""
    joined = dict(earlier)
    for name, frame in later.items():
        if name in earlier:
            frame = pd.concat([earlier[name], frame[~frame.index.isin(earlier[name].index)]])
        joined[name] = frame
    return joined
