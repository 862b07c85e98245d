"""Which part of a trained network is trained further, and how."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import nn

from .._validation import Fraction, PositiveProbability, Validated
from ..nn.xtrimogene import XTrimoGeneNet

ADAPTED = ("qkv", "out", "inner", "outer")  # the linear maps of an encoder layer
ALL_BUT_LAST = re.compile(r"all_but_last_(\d+)")


@dataclass(frozen=True)
class FinetuningConfig(Validated):
    """How a network that was trained before is trained further.

    Parameters
    ----------
    freeze
        ``"encoder"`` keeps gene and value embeddings and the encoder as they are;
        ``"all_but_last_1"`` the same except for the last layer of the encoder (or the last 2, 3,
        and so on); ``None`` trains everything.
    layer_decay
        Learning rate of a layer as a fraction of that of the layer above. The heads have the full
        rate, the last layer of the encoder this fraction of it, the embeddings the least.
    lora_rank
        Rank of low-rank adapters on all linear maps of the encoder, which is frozen otherwise
        :cite:p:`Hu2022`; 0 for none. They are merged into the weights when training ends. Needs
        the extra ``lora``.
    lora_alpha
        Scale of the adapters times their rank; by default twice the rank.
    lora_dropout
        Dropout on the input of the adapters.

    Examples
    --------
    >>> from scxtrimo.train import FinetuningConfig
    >>> finetuning = FinetuningConfig(freeze="all_but_last_1", layer_decay=0.8)
    >>> finetuning.check(n_layers=4)
    >>> finetuning.n_trained_layers(4)
    1
    """

    freeze: str | None = None
    layer_decay: PositiveProbability = 1.0
    lora_rank: NonNegativeInt = 0
    lora_alpha: PositiveInt | None = None
    lora_dropout: Fraction = 0.0

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
        """Make sure that a network of so many layers can be trained in this way.

        Parameters
        ----------
        n_layers
            Layers of the encoder.

        Raises
        ------
        ValueError
            If there are fewer layers than are to be trained.
        ImportError
            If adapters are asked for and peft is not installed.
        """
        self.n_trained_layers(n_layers)
        if self.lora_rank and find_spec("peft") is None:
            raise ImportError(
                f"lora_rank={self.lora_rank} needs the package peft: "
                "`pip install 'scxtrimo[lora]'`."
            )

    def n_trained_layers(self, n_layers: int) -> int:
        """Count the layers of the encoder that are trained, from the last.

        Parameters
        ----------
        n_layers
            Layers of the encoder.

        Returns
        -------
        Their number.

        Raises
        ------
        ValueError
            If there are fewer layers than are to be trained.
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


@contextmanager
def finetuned(net: XTrimoGeneNet, config: FinetuningConfig, seed: int = 0) -> Iterator[None]:
    """Freeze a part of a network and add adapters for as long as it is trained.

    Afterwards adapters are merged and everything can be trained again, also if training failed.

    Parameters
    ----------
    net
        The network.
    config
        What to freeze, and the adapters.
    seed
        Seed of the adapters.
    """
    could_be_trained = {name: p.requires_grad for name, p in net.named_parameters()}
    adapters = None
    try:
        layers = list(net.encoder.layers)
        n_frozen = len(layers) - config.n_trained_layers(len(layers))
        if config.freeze is not None or config.lora_rank:
            net.embedding.requires_grad_(False)
            if hasattr(net, "cell_token"):
                net.cell_token.requires_grad_(False)
            if n_frozen == len(layers) or config.lora_rank:
                net.encoder.requires_grad_(False)
            for layer in layers[:n_frozen]:
                layer.requires_grad_(False)
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
    from peft import LoraConfig, LoraModel  # checked by `FinetuningConfig.check`

    alpha = 2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(ADAPTED),
    )
    return LoraModel(encoder, lora, "default")


def layer_of(name: str, n_layers: int) -> int:
    """Return how many layers of the encoder lie below a parameter, from its name.

    Examples
    --------
    >>> layer_of("net.embedding.gene.weight", 2), layer_of("net.encoder.layers.0.norm.bias", 2)
    (0, 1)
    >>> layer_of("net.encoder.norm.bias", 2), layer_of("classifier.linear.weight", 2)
    (2, 3)
    """
    if name.startswith(("net.embedding.", "net.cell_token")):
        return 0
    if match := re.match(r"net\.encoder\.layers\.(\d+)\.", name):
        return int(match[1]) + 1
    return n_layers if name.startswith("net.encoder.") else n_layers + 1
