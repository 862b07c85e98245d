"""Training: examples of a step, the optimiser, and how a network begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..train.splitter import divide_evenly
from .network import Block, XTrimoPGLMConfig, XTrimoPGLMNet
from .objective import TASKS, Example, ProteinObjective, losses, make_example
from .tokenizer import PROMPT

BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.1
WARMUP, FINAL_LR = 0.03, 0.1  # as parts of the steps, and of the learning rate
INITIAL_STD = 0.02
VALIDATION_EPOCH = 2**31 - 1
STEPS, MAX_EPOCHS = 2000, 200  # by default


def initialize(net: XTrimoPGLMNet) -> None:
    """Begin as DeepNorm asks for (Wang et al. 2022, table 1, encoders)."""
    config, beta = net.config, (8 * net.config.n_layers) ** -0.25
    nn.init.normal_(net.embedding.word_embeddings.weight, std=INITIAL_STD)
    nn.init.normal_(net.output_layer.weight, std=INITIAL_STD)
    for module in net.encoder.layers.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight, gain=beta)
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        for block in net.encoder.layers:
            assert isinstance(block, Block)
            per_head = block.self_attention.query_key_value.weight.view(
                config.n_heads, 3, config.head_width, config.n_hidden
            )
            per_head[:, :2] /= beta  # queries and keys


class Examples(Dataset):
    """Batches of examples of about as many tokens each; an epoch has every protein once."""

    def __init__(
        self,
        ids: Sequence[np.ndarray],
        objective: ProteinObjective,
        tokens_per_batch: int,
        max_residues: int,
        seed: int,
        is_validation: bool = False,
    ) -> None:
        self.ids, self.objective, self.seed = ids, objective, seed
        self.max_residues, self.is_validation = max_residues, is_validation
        lengths = np.array([min(len(one), max_residues) for one in ids], dtype=np.int64)
        self.lengths = lengths + len(PROMPT)
        self.n_batches = min(len(ids), -(-int(self.lengths.sum()) // tokens_per_batch))
        self.start_epoch(VALIDATION_EPOCH if is_validation else 0)

    def start_epoch(self, epoch: int) -> None:
        """Deal the proteins to batches anew."""
        self.epoch = epoch
        order = np.arange(len(self.ids))
        if not self.is_validation:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        self.groups: list[np.ndarray] = []
        if self.n_batches:
            ends = divide_evenly(self.lengths[order], self.n_batches)
            self.groups = np.split(order, ends)

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, number: int) -> list[Example]:
        group = self.groups[number].tolist()
        return [self.example(i, task) for i in group for task in self.tasks(i)]

    def tasks(self, i: int) -> list[int]:
        """Return the task of a protein in this epoch; held-out proteins have all that count."""
        mix = self.objective.mix
        if self.is_validation:
            return np.flatnonzero(mix).tolist()
        return [int(np.random.default_rng((self.seed, self.epoch, i)).choice(len(mix), p=mix))]

    def example(self, i: int, task: int) -> Example:
        """Return the example of a protein, which is cut at random if it is too long."""
        rng = np.random.default_rng((self.seed, self.epoch, i, task))
        ids = self.ids[i]
        if (n_over := len(ids) - self.max_residues) > 0:
            start = int(rng.integers(0, n_over + 1))
            ids = ids[start : start + self.max_residues]
        return make_example(ids, self.objective, task, rng)


class ProteinPlan(pl.LightningModule):
    """The steps: the loss of each task, weighted by the mix, under a warmed-up cosine."""

    mix: Tensor

    def __init__(
        self, net: XTrimoPGLMNet, objective: ProteinObjective, lr: float, n_steps: int
    ) -> None:
        super().__init__()
        self.net, self.objective, self.lr, self.n_steps = net, objective, lr, n_steps
        self.register_buffer("mix", torch.from_numpy(objective.mix).float(), persistent=False)

    def loss(self, batch: list[Example], stage: str) -> Tensor:
        """Return the weighted loss, and log its parts."""
        parts = losses(self.net, batch, self.device)
        tasks = sorted({example.task for example in batch})
        loss = (parts[tasks] * self.mix[tasks]).sum() / self.mix[tasks].sum()
        n = len(batch)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": n}
        self.log(f"{stage}_loss", loss, prog_bar=True, **options)
        for task in tasks:
            self.log(f"{TASKS[task]}_loss_{stage}", parts[task], **options)
        return loss

    def on_train_epoch_start(self) -> None:
        """Deal the proteins to batches anew."""
        loader: Any = self.trainer.train_dataloader
        loader.dataset.start_epoch(self.current_epoch)

    def training_step(self, batch: list[Example], batch_idx: int) -> Tensor:
        """Return the loss of a step."""
        loss = self.loss(batch, "train")
        if not bool(loss.isfinite()):
            raise FloatingPointError(
                f"The loss is NaN or infinite in step {self.global_step}. Train with a lower "
                f"learning rate than lr={self.lr:g}."
            )
        return loss

    def validation_step(self, batch: list[Example], batch_idx: int) -> None:
        """Log the loss of held-out proteins, whose examples are the same each time."""
        self.loss(batch, "validation")

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule; norms and biases do not decay."""
        trained = [p for p in self.net.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, self.lr, betas=BETAS, weight_decay=WEIGHT_DECAY)
        n_warm = max(1, round(WARMUP * self.n_steps))

        def fraction(step: int) -> float:
            if step < n_warm:
                return (step + 1) / n_warm
            done = min(1.0, (step - n_warm) / max(1, self.n_steps - n_warm))
            return FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * done)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, fraction)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def loader(examples: Examples) -> DataLoader:
    """Return batches that the trainer iterates over."""
    return DataLoader(examples, batch_size=None, shuffle=False)


def default_lr(config: XTrimoPGLMConfig) -> float:
    """Return the default learning rate: 0.002 at width 64, and inversely with the width."""
    return 2e-3 * min(1.0, 64 / config.n_hidden)


def choose_size(n_residues: int) -> str:
    """Choose a size for training from scratch."""
    return "tiny" if n_residues < 2_000_000 else "small"
