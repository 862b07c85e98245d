"""xTrimoPGLM on one page: configuration and network.

A transformer over the residues of a protein (Chen et al. 2024). One network understands and
generates: which residues may look at which decides what it is. Every part adds to its normalised
input, weighted (DeepNorm; Wang et al. 2022), feed-forward parts are gated (GeGLU; Shazeer 2020),
and queries and keys are rotated by the positions of their residues (RoPE; Su et al. 2021), of one
kind or of two: the place in the text, and the place within a span that is filled in.

    residues -> embedding -> n x (attention, feed-forward) -> norm -> output

Proteins of a batch lie one after the other without padding, as cells do in :mod:`scxtrimo.nn`;
suffixes of shapes are those of :mod:`scxtrimo.nn.ragged`, with ``c`` for proteins. Parts have the
names of the published checkpoints, whose tensors fit as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .._validation import Validated
from ..nn.layers import ragged_attention
from ..nn.ragged import CellBoundaries

ROTARY_BASE = 10_000.0
Layer = int | Literal["pre_norm"]
Objective = Literal["unified", "masked", "causal"]
Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class XTrimoPGLMConfig(Validated):
    """Hyper-parameters of an :class:`~scxtrimo.model.XTrimoPGLM`.

    Examples
    --------
    >>> config = scxtrimo.model.XTrimoPGLMConfig(n_layers=2, n_hidden=32, n_heads=4)
    >>> config.head_width, config.n_axes, config.n_inner
    (8, 2, 85)
    """

    n_layers: PositiveInt = 6
    """Depth of the network."""
    n_hidden: PositiveInt = 128
    """Width of the network."""
    n_heads: PositiveInt = 4
    """Heads of the attention; must divide ``n_hidden``."""
    n_feed_forward: PositiveInt | None = None
    """Inner width of the feed-forward parts, by default 8/3 of ``n_hidden``."""
    rotary_2d: bool = True
    """Two kinds of positions, as filling in blanks needs."""
    objective: Objective = "unified"
    """What the network was trained for: masked residues, the next residue, or both."""
    n_tokens: PositiveInt = 128
    """Rows of the embedding, of which the tokenizer uses 36."""
    max_length: PositiveInt = 1024
    """Length of the sequences it was trained on."""
    epsilon: PositiveFloat = 1e-5
    """Added to variances by layer norms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_hidden % (2 * self.n_axes * self.n_heads):
            raise ValueError(
                f"n_hidden={self.n_hidden} must be a multiple of {2 * self.n_axes} times "
                f"n_heads={self.n_heads}: a head is rotated in pairs of numbers."
            )

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.n_hidden // self.n_heads

    @property
    def n_axes(self) -> int:
        """How many kinds of positions there are."""
        return 2 if self.rotary_2d else 1

    @property
    def n_inner(self) -> int:
        """Inner width of the feed-forward parts."""
        return self.n_feed_forward or int(8 * self.n_hidden / 3)


def published(n_layers: int, n_hidden: int, n_heads: int, n_inner: int) -> XTrimoPGLMConfig:
    """Return the configuration of a published masked model."""
    return XTrimoPGLMConfig(n_layers, n_hidden, n_heads, n_inner, False, "masked")


SIZES: dict[str, XTrimoPGLMConfig] = {
    "tiny": XTrimoPGLMConfig(2, 64, 4),
    "small": XTrimoPGLMConfig(6, 128, 4),
    "base": XTrimoPGLMConfig(12, 256, 8),
    "1b": published(24, 2048, 32, 5461),
    "3b": published(36, 2560, 40, 6832),
    "7b": published(36, 4096, 32, 10922),
    "10b": published(47, 4352, 32, 11606),
    "100b": XTrimoPGLMConfig(72, 10240, 80, 31744, max_length=2048),
}
"""Named sizes. Those up to ``base`` train on a CPU; the others are published."""


class Attention(nn.Module):
    """Projections of the attention; queries, keys and values alternate head by head."""

    def __init__(self, config: XTrimoPGLMConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.query_key_value = nn.Linear(config.n_hidden, 3 * config.n_hidden)
        self.dense = nn.Linear(config.n_hidden, config.n_hidden)

    def project(self, x_td: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, each ``(n_tokens, n_heads, head_width)``."""
        return self.query_key_value(x_td).unflatten(-1, (self.n_heads, -1)).chunk(3, dim=-1)

    def merge(self, attended_the: Tensor) -> Tensor:
        """Return what the heads attended to as ``(n_tokens, n_hidden)``."""
        return self.dense(attended_the.flatten(1))


class GatedFeedForward(nn.Module):
    """One half of the inner layer, times the other half through a GELU."""

    def __init__(self, config: XTrimoPGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.n_hidden, 2 * config.n_inner)
        self.dense_4h_to_h = nn.Linear(config.n_inner, config.n_hidden)

    def forward(self, x_td: Tensor) -> Tensor:
        """Transform every token on its own; the shape stays."""
        value_tf, gate_tf = self.dense_h_to_4h(x_td).chunk(2, dim=-1)
        return self.dense_4h_to_h(value_tf * F.gelu(gate_tf))


class Block(nn.Module):
    """Attention and feed-forward, each added to ``sqrt(2 n_layers)`` times what it was given."""

    def __init__(self, config: XTrimoPGLMConfig, number: int) -> None:
        super().__init__()
        self.number, self.alpha = number, (2 * config.n_layers) ** 0.5
        self.input_layernorm = nn.LayerNorm(config.n_hidden, config.epsilon)
        self.self_attention = Attention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.n_hidden, config.epsilon)
        self.mlp = GatedFeedForward(config)

    def forward(self, x_td: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """Transform the tokens, which ``attend`` lets look at each other; the shape stays."""
        x_td = self.input_layernorm(x_td)
        q, k, v = self.self_attention.project(x_td)
        attended_the = attend(rotation(q), rotation(k), v, self.number)
        x_td = self.alpha * x_td + self.self_attention.merge(attended_the)
        x_td = self.post_attention_layernorm(x_td)
        return self.alpha * x_td + self.mlp(x_td)


class Rotation:
    """Rotates queries and keys by positions, shape ``(n_tokens, n_axes)``.

    With two axes, each rotates one half of every head. Angles are in single precision always.
    """

    def __init__(self, positions_ta: Tensor, head_width: int) -> None:
        width = head_width // positions_ta.shape[1]  # that an axis rotates
        powers = torch.arange(0, width, 2, device=positions_ta.device).float() / width
        angles = positions_ta.float()[:, None, :, None] * ROTARY_BASE**-powers
        self.cos, self.sin = angles.cos(), angles.sin()

    def __call__(self, x_the: Tensor) -> Tensor:
        """Rotate, pairing the first with the second half of what an axis rotates."""
        x = x_the.unflatten(-1, (self.cos.shape[2], -1))
        first, second = x.float().chunk(2, dim=-1)
        rotated = first * self.cos - second * self.sin, second * self.cos + first * self.sin
        return torch.cat(rotated, dim=-1).flatten(-2).to(x_the.dtype)


class Embedding(nn.Module):
    """A row of numbers for every token."""

    def __init__(self, config: XTrimoPGLMConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.n_tokens, config.n_hidden)


class Stack(nn.Module):
    """The blocks, and the norm after the last of them."""

    def __init__(self, config: XTrimoPGLMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.final_layernorm = nn.LayerNorm(config.n_hidden, config.epsilon)


class XTrimoPGLMNet(nn.Module):
    """The network.

    With ``recompute``, only the input of every block is kept for the backward pass.
    """

    def __init__(self, config: XTrimoPGLMConfig) -> None:
        super().__init__()
        self.config, self.recompute = config, False
        self.stored_rotary: dict[str, Tensor] = {}  # of the file that was read, to write it again
        self.embedding = Embedding(config)
        self.encoder = Stack(config)
        self.output_layer = nn.Linear(config.n_hidden, config.n_tokens, bias=False)

    def forward(
        self,
        ids_t: Tensor,
        proteins: CellBoundaries,
        positions_ta: Tensor | None = None,
        n_prefix: list[int] | None = None,
        layer: Layer = -1,
    ) -> Tensor:
        """Encode the tokens of all proteins, shape ``(n_tokens, n_hidden)``.

        The first ``n_prefix`` tokens of a protein look at each other, each later one at all before
        it; by default all look at all, or in a causal network each at those before it. ``layer``
        asks for the output of a block, counted from 1, of the embedding, 0, of the last block
        before its norm, or after it, -1.
        """
        if n_prefix is None:
            is_causal = self.config.objective == "causal"
            n_prefix = [0] * len(proteins.lengths) if is_causal else proteins.lengths
        if positions_ta is None:
            positions_ta = self.positions(proteins, is_causal=not any(n_prefix))
        attend = Reach(proteins, n_prefix)
        return self.run(ids_t, positions_ta, attend, layer)

    def run(
        self, ids_t: Tensor, positions_ta: Tensor, attend: Attend, layer: Layer = -1
    ) -> Tensor:
        """Encode tokens that ``attend`` lets look at each other."""
        x_td = self.embedding.word_embeddings(ids_t)
        rotation = Rotation(positions_ta, self.config.head_width)
        n_blocks = self.config.n_layers if layer in (-1, "pre_norm") else int(layer)
        for block in list(self.encoder.layers)[:n_blocks]:
            if self.recompute and torch.is_grad_enabled():
                x_td = checkpoint(block, x_td, rotation, attend, use_reentrant=False)
            else:
                x_td = block(x_td, rotation, attend)
        return self.encoder.final_layernorm(x_td) if layer in (-1, self.last) else x_td

    @property
    def last(self) -> int:
        """Number of the last layer, whose output is normalised."""
        return self.config.n_layers

    def positions(self, proteins: CellBoundaries, is_causal: bool) -> Tensor:
        """Return places in the text; of two axes the second is 0, or the first in generation."""
        places = [torch.arange(length) for length in proteins.lengths]
        place_t = torch.cat([torch.arange(0), *places]).to(proteins.cu_seqlens.device)
        if self.config.n_axes == 1:
            return place_t[:, None]
        nothing_t = torch.zeros_like(place_t)
        axes = (nothing_t, place_t) if is_causal else (place_t, nothing_t)
        return torch.stack(axes, dim=1)


class Reach:
    """Attention within proteins: a prefix that sees all of itself, and what sees all before it."""

    def __init__(self, proteins: CellBoundaries, n_prefix: list[int]) -> None:
        self.proteins, self.n_prefix = proteins, n_prefix
        self.is_full = n_prefix == proteins.lengths
        self.is_causal = all(n <= 1 for n in n_prefix)

    def __call__(self, q_the: Tensor, k_the: Tensor, v_the: Tensor, number: int) -> Tensor:
        """Attend in a block; shape ``(n_tokens, n_heads, head_width)``."""
        if self.is_full or self.is_causal:
            proteins = self.proteins, self.proteins
            return ragged_attention(q_the, k_the, v_the, *proteins, causal=not self.is_full)
        parts = (x.split(self.proteins.lengths) for x in (q_the, k_the, v_the))
        attended = []
        for q, k, v, n in zip(*parts, self.n_prefix, strict=True):
            q, k, v = (x[None].transpose(1, 2) for x in (q, k, v))
            mask = self.mask(q.shape[2], n, q.device)
            attended.append(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)[0])
        return torch.cat(attended)

    @staticmethod
    def mask(length: int, n_prefix: int, device: torch.device) -> Tensor:
        """Return who (rows) may look at whom."""
        place = torch.arange(length, device=device)
        return (place <= place[:, None]) | (place < n_prefix)
