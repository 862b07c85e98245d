"""What a training step does: masks, the loss, the optimiser; and which weights it may change."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from torch import Tensor, nn

from .._validation import Validated
from ..nn.masking import Masking, mask_batch, thin_batch
from ..nn.ragged import RaggedBatch
from ..nn.ranges import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveProbability,
    Probability,
)
from ..nn.xtrimogene import Losses, XTrimoGeneModule, XTrimoGeneNet
from .trainer import history_from_dict, history_to_dict, join_histories, logged_history

PROGRESS_METRIC = "loss"  # shown in the progress bar, not kept
VALIDATION_EPOCH = -1  # validation masks are the same in every epoch
MOST_EXPRESSED, OTHERS_SCORED = 1000, 1000  # genes of the likelihood beside those that are read
ALL_BUT_LAST = re.compile(r"all_but_last_(\d+)")


@dataclass(frozen=True)
class OptimizerConfig(Validated):
    """AdamW with linear warm-up and cosine decay.

    Examples
    --------
    >>> optimizer = scxtrimo.train.OptimizerConfig(lr=3e-4)
    >>> optimizer.lr_fraction(step=50, n_steps=800), optimizer.lr_fraction(800, 800)
    (1.0, 0.0)
    """

    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """Decay of weight matrices. Biases, norms, embeddings and other vectors have none."""
    warmup_steps: NonNegativeInt = 50
    """Steps of linear warm-up, at most a tenth of all steps."""
    final_lr_fraction: Probability = 0.0
    """Learning rate at the last step as a fraction of the peak."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Exponential decay rates of the moment estimates."""

    def lr_fraction(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step, from 0, as a fraction of the peak.

        Parameters
        ----------
        step, n_steps
            The step, from 0, and the number of all steps.

        Returns
        -------
        From 0 to 1.
        """
        warmup = min(self.warmup_steps, n_steps // 10)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / max(n_steps - warmup, 1), 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.final_lr_fraction + (1 - self.final_lr_fraction) * cosine


@dataclass(frozen=True)
class MaskingConfig(Validated, Masking):
    """How genes are masked in training: the fields of :class:`~scxtrimo.nn.Masking`, checked.

    Examples
    --------
    >>> masking = scxtrimo.train.MaskingConfig(min_rate=0.3, max_rate=0.3, max_targets=100)
    >>> masking.zero_rate, masking.published().zero_rate
    (None, 0.03)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_rate > self.max_rate:
            raise ValueError(f"min_rate={self.min_rate} must be at most max_rate={self.max_rate}.")
        if self.replace_rate + self.random_rate > 1:
            raise ValueError(
                f"replace_rate={self.replace_rate} and random_rate={self.random_rate} must be "
                "probabilities that add up to at most 1."
            )

    @classmethod
    def published(cls) -> MaskingConfig:
        """Return the masking of the published training :cite:p:`Gong2023`.

        Returns
        -------
        The configuration: 30% of the expressed and 3% of the unexpressed genes, all of them
        targets; 80% of them replaced by the mask and 10% by another value.
        """
        return cls(0.3, 0.3, None, zero_rate=0.03, replace_rate=0.8, random_rate=0.1)


@dataclass(frozen=True)
class FinetuningConfig(Validated):
    """How a network that was trained before is trained further.

    Examples
    --------
    >>> finetuning = scxtrimo.train.FinetuningConfig(freeze="all_but_last_1", layer_decay=0.8)
    >>> finetuning.check(n_layers=4)
    >>> finetuning.n_trained_layers(4)
    1
    """

    freeze: str | None = None
    """``"encoder"`` keeps gene and value embeddings and the encoder as they are;
    ``"all_but_last_1"`` the same except for the last layer of the encoder (or the last 2, 3, and
    so on); ``None`` trains everything."""
    layer_decay: PositiveProbability = 1.0
    """Learning rate of a layer as a fraction of that of the layer above; the heads have the full
    rate, the embeddings the least."""
    lora_rank: NonNegativeInt = 0
    """Rank of low-rank adapters on all linear maps of the encoder, which is frozen otherwise
    :cite:p:`Hu2022`; 0 for none. They are merged into the weights when training ends. Needs the
    extra ``lora``."""
    lora_alpha: PositiveInt | None = None
    """Scale of the adapters times their rank; by default twice the rank."""
    lora_dropout: Fraction = 0.0
    """Dropout on the input of the adapters."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze not in (None, "encoder") and not ALL_BUT_LAST.fullmatch(str(self.freeze)):
            raise ValueError(
                f"freeze={self.freeze!r} must be 'encoder', 'all_but_last_1' (or another number) "
                "or None."
            )
        if self.lora_rank and self.freeze is not None:
            raise ValueError(
                f"lora_rank={self.lora_rank} freezes the encoder by itself: leave "
                f"freeze={self.freeze!r} out."
            )

    def check(self, n_layers: int) -> None:
        """Raise if a network of so many layers, or without peft, cannot be trained in this way.

        Parameters
        ----------
        n_layers
            Layers of the encoder.
        """
        self.n_trained_layers(n_layers)
        if self.lora_rank and find_spec("peft") is None:
            raise ImportError(
                f"lora_rank={self.lora_rank} needs the package peft: "
                "`pip install 'scxtrimo[lora]'`."
            )

    def n_trained_layers(self, n_layers: int) -> int:
        """Return how many layers of the encoder are trained, counted from the last.

        Parameters
        ----------
        n_layers
            Layers of the encoder.

        Returns
        -------
        Their number.
        """
        if self.freeze is None:
            return n_layers
        match = ALL_BUT_LAST.fullmatch(self.freeze)
        n_trained = int(match[1]) if match else 0
        if n_trained > n_layers:
            raise ValueError(
                f"freeze={self.freeze!r}, but the encoder has {n_layers} layers only."
            )
        return n_trained


class XTrimoGenePlan(pl.LightningModule):
    """Lightning module that trains an ``XTrimoGeneModule``; what is frozen is so already."""

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
        self._sums: dict[str, Any] = {}
        self._n_seen = 0
        self.trained_on: dict[str, str] = {}  # hashes of genes, cells, categories and labels

    def prepare(self, batch: RaggedBatch, epoch: int = 0) -> RaggedBatch:
        """Return a batch as the network is trained on: thinned, if it knows depths, and masked."""
        n_genes = self.module.n_genes
        if self.module.config.read_depth_aware:
            batch = thin_batch(batch, self.masking.thinning_probability, n_genes, self.seed, epoch)
        if epoch != VALIDATION_EPOCH:
            batch = self._score_some_genes(batch)
        tell_hidden = self.module.sees_all_genes
        return mask_batch(batch, self.masking, n_genes, self.seed, epoch, tell_hidden)

    def _score_some_genes(self, batch: RaggedBatch) -> RaggedBatch:
        """Score the genes that say most of a cell, and a sample of the others."""
        is_read, mean = self.module.is_read, self.module.mean_expression
        always = is_read.clone()
        always[mean.topk(min(MOST_EXPRESSED, len(mean))).indices] = True
        others = torch.nonzero(~always)[:, 0]
        if len(others) < 2 * OTHERS_SCORED:
            return batch
        drawn = others[torch.randint(len(others), (OTHERS_SCORED,), device=others.device)].unique()
        scored = torch.cat([torch.nonzero(always)[:, 0], drawn])
        weights = torch.ones(len(scored), device=scored.device)
        weights[-len(drawn) :] = len(others) / len(drawn)
        return batch | RaggedBatch(scored_gene_ids=scored, scored_weights=weights)

    def _loss(self, batch: RaggedBatch, epoch: int) -> Losses:
        return self.module(self.prepare(batch, epoch))

    def _log(self, metrics: dict[str, Tensor], n_cells: int) -> None:
        self.log_dict(
            metrics,
            on_step=False,
            on_epoch=True,
            batch_size=n_cells,
            sync_dist=self.trainer.world_size > 1,
        )

    def training_step(self, batch: RaggedBatch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        self.module.redraw_features(self.global_step)
        # Dropout draws from a generator of this step, so that a resumed training repeats it.
        devices = [self.device.index] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            # Which of the batches of this step it is; those of a store say so themselves.
            lane = batch.get("lane", batch_idx % self.trainer.accumulate_grad_batches)
            torch.manual_seed(self.seed + self.global_step + 1_000_003 * int(lane))
            losses = self._loss(batch, int(batch.get("epoch", self.current_epoch)))
        self._log_training(losses, batch)
        return losses.loss

    def _log_training(self, losses: Losses, batch: RaggedBatch) -> None:
        """Add to the means of this epoch, which are logged with its last batch.

        Lightning's own means take 4 ms a step.
        """
        n_cells = len(losses.reconstruction_c)
        self._n_seen += n_cells
        for name, value in metrics_of(losses, "train").items():
            self._sums[name] = self._sums.get(name, 0.0) + n_cells * value
        if self.trainer.is_last_batch:  # so that a checkpoint of the epoch has them
            self._log_means()

    def on_train_epoch_end(self) -> None:
        """Log the means of an epoch that ended before its last batch."""
        self._log_means()

    def _log_means(self) -> None:
        if not self._n_seen:
            return
        means = {name: total / self._n_seen for name, total in self._sums.items()}
        self._log(means, self._n_seen)
        self._sums, self._n_seen = {}, 0

    def validation_step(self, batch: RaggedBatch, batch_idx: int) -> None:
        """Log the loss of one validation batch."""
        losses = self._loss(batch, VALIDATION_EPOCH)
        self._log(metrics_of(losses, "validation"), len(losses.reconstruction_c))

    def configure_optimizers(self) -> Any:
        """AdamW with decay groups, and a schedule that is advanced every step."""
        config = self.optimizer_config
        layer_decay, n_layers = self.finetuning.layer_decay, self.module.config.n_layers
        groups = parameter_groups(
            self.module, config.weight_decay, config.lr, layer_decay, n_layers
        )
        # Lightning does not clip gradients of a fused optimiser in mixed precision.
        fused = self.trainer.precision == "32-true"
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
        n_steps = int(self.trainer.estimated_stepping_batches)
        lr_fraction = partial(config.lr_fraction, n_steps=n_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_fraction)
        schedule = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history so far, for a training that is resumed."""
        # Metrics of the epoch that ends here reach the logger only after the checkpoint.
        epoch = pd.Index([self.current_epoch], name="epoch")
        current = {
            name: pd.DataFrame({name: [value.item()]}, index=epoch)
            for name, value in self.trainer.callback_metrics.items()
            if name != PROGRESS_METRIC
        }
        history = join_histories(self.earlier_history, logged_history(self.trainer), current)
        checkpoint["scxtrimo_plan"] = type(self).__name__
        checkpoint["scxtrimo_data"] = self.trained_on
        checkpoint["scxtrimo_history"] = history_to_dict(history)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the history of the training that is resumed; add what older files lack."""
        own = self.state_dict()
        for key in {"state_dict", "current_model_state"} & checkpoint.keys():
            for name in (f"module.{name}" for name in self.module.added_buffers):
                if name in own:
                    checkpoint[key].setdefault(name, own[name])
        self.earlier_history = history_from_dict(checkpoint.get("scxtrimo_history", {}))


def metrics_of(losses: Losses, mode: str) -> dict[str, Tensor]:
    """Return the loss and what it is made of, by name."""
    reconstruction = losses.reconstruction_c.sum() / len(losses.reconstruction_c)
    values = {f"{mode}_loss": losses.loss, f"reconstruction_loss_{mode}": reconstruction}
    values |= {f"{name}_{mode}": value for name, value in losses.metrics.items()}
    return {name: value.detach() for name, value in values.items()}


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    lr: float = 1e-3,
    layer_decay: float = 1.0,
    n_layers: int = 0,
) -> list[dict[str, Any]]:
    """Split trainable parameters by weight decay and by learning rate, see FinetuningConfig."""
    parts = module.named_modules()
    matrices = {f"{name}.weight" for name, part in parts if isinstance(part, nn.Linear)}
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


@contextmanager
def finetuned(net: XTrimoGeneNet, config: FinetuningConfig, seed: int = 0) -> Iterator[None]:
    """Freeze a part of a network and add adapters, which are merged in the end, for a training."""
    could_be_trained = {name: p.requires_grad for name, p in net.named_parameters()}
    adapters = None
    try:
        n_layers = len(net.encoder.layers)
        n_trained = 0 if config.lora_rank else config.n_trained_layers(n_layers)
        if config.freeze is not None or config.lora_rank:
            for name, parameter in net.named_parameters():
                if layer_of(f"net.{name}", n_layers) <= n_layers - n_trained:
                    parameter.requires_grad_(False)
        if config.lora_rank:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                adapters = _adapters(net.encoder, config)
        yield
    finally:
        if adapters is not None:
            adapters.merge_and_unload()
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(could_be_trained.get(name, True))


def _adapters(encoder: nn.Module, config: FinetuningConfig) -> Any:
    """Put low-rank adapters into the encoder."""
    from peft import LoraConfig, LoraModel  # FinetuningConfig.check says if it is missing

    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=config.lora_dropout,
        target_modules=["qkv", "out", "inner", "outer"],  # all linear maps
    )
    return LoraModel(encoder, lora, "default")


def layer_of(name: str, n_layers: int) -> int:
    """Return how many layers of the encoder lie below a parameter, from its name."""
    if name.startswith(("net.embedding.", "net.cell_token", "net.inducing.")):
        return 0
    if match := re.match(r"net\.encoder\.layers\.(\d+)\.", name):
        return int(match[1]) + 1
    return n_layers if name.startswith("net.encoder.") else n_layers + 1
