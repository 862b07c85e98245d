"""Performer: attention that is linear in the number of genes, by positive random features.

Choromanski et al. 2021 (FAVOR+); as the decoder, Gong et al. 2023, section 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import FeedForward, in_chunks, recomputed
from .ragged import EncodedCells, lengths_of, select_tokens

EPSILON = 1e-4
CHUNK = 2048  # genes at a time: bounds the memory whatever the size of the vocabulary


def orthogonal_features(n_features: int, n_inputs: int, generator: torch.Generator) -> Tensor:
    """Draw features, orthogonal within blocks, whose rows are as long as Gaussian vectors."""
    blocks = []
    for _ in range(-(-n_features // n_inputs)):
        q, r = torch.linalg.qr(torch.randn(n_inputs, n_inputs, generator=generator))
        # With the signs of R's diagonal Q is uniform among rotations; without them its first
        # directions avoid half of the space, and the estimate of the kernel is biased.
        blocks.append((q * r.diagonal().sign()).t())
    lengths = torch.randn(n_features, n_inputs, generator=generator).norm(dim=1)
    return lengths[:, None] * torch.cat(blocks)[:n_features]


def exponential_features(
    x_hte: Tensor, features_me: Tensor, is_query: bool
) -> tuple[Tensor, Tensor]:
    """Map queries or keys to features whose products estimate the softmax kernel.

    Equation 7 of Choromanski et al. without the factor that cancels in attention. Also returns
    the stabiliser, a maximum per query, and for keys one over all heads and genes.
    """
    x_hte = x_hte * x_hte.shape[-1] ** -0.25
    projected = x_hte @ features_me.t()
    half_norm = x_hte.square().sum(-1, keepdim=True) / 2
    highest = (projected.amax(-1, keepdim=True) if is_query else projected.amax()).detach()
    return torch.exp(projected - half_norm - highest), highest


class FavorAttention(nn.Module):
    r"""Linear attention among all genes of one cell.

    .. math::
        \mathrm{out}(q) = \frac{\phi_\epsilon(q)^\top \sum_g \phi_\epsilon(k_g) v_g^\top}
            {\phi_\epsilon(q)^\top \sum_g \phi_\epsilon(k_g)},
        \quad \phi_\epsilon = \phi + \epsilon

    with :math:`\phi` the positive random features; :meth:`summarize` has the sums over keys.
    """

    features: Tensor

    def __init__(self, n_hidden: int, n_heads: int, head_width: int, seed: int = 0) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(n_hidden, 3 * n_heads * head_width)
        self.out = nn.Linear(n_heads * head_width, n_hidden)
        n_features = int(head_width * math.log(head_width))
        self.register_buffer("features", torch.empty(n_features, head_width))
        self.redraw(seed)

    def redraw(self, seed: int) -> None:
        """Draw other random features."""
        generator = torch.Generator().manual_seed(seed)
        n_features, head_width = self.features.shape
        self.features.copy_(orthogonal_features(n_features, head_width, generator))

    def _project(self, x_gd: Tensor, first: int, n: int) -> Tensor:
        """Return ``n`` of query, key and value, shape ``(n, n_heads, n_genes, head_width)``."""
        width = self.out.in_features
        part = slice(first * width, (first + n) * width)
        projected = F.linear(x_gd, self.qkv.weight[part], self.qkv.bias[part])
        return projected.view(len(x_gd), n, self.n_heads, -1).permute(1, 2, 0, 3)

    def sum_keys(self, x_gd: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return sums per head of keys times values, keys, and values; and the stabiliser."""
        k, v = self._project(x_gd, 1, 2)
        # Exponentials of scores in bfloat16 would be off by several per cent.
        with torch.autocast(x_gd.device.type, enabled=False):
            v_hge = v.to(self.features.dtype)
            k_hge = k.to(self.features.dtype)
            k_hgm, highest = exponential_features(k_hge, self.features, is_query=False)
            return k_hgm.transpose(1, 2) @ v_hge, k_hgm.sum(1), v_hge.sum(1), highest

    def summarize(self, chunks: list[tuple[Tensor, Tensor, Tensor, Tensor]], n_genes: int) -> Any:
        """Return the sums over all keys of a cell from those over parts of them."""
        # One stabiliser for the cell, so that it depends neither on others nor on the parts.
        contexts, normalizers, values, highest = zip(*chunks, strict=True)
        weights = [torch.exp(h - torch.stack(highest).amax()) for h in highest]
        context_hme = sum(w * c for w, c in zip(weights, contexts, strict=True))
        normalizer_hm = sum(w * n for w, n in zip(weights, normalizers, strict=True))
        context_hme = context_hme + EPSILON * torch.stack(values).sum(0)[:, None]
        return context_hme, (normalizer_hm + EPSILON * n_genes)[..., None]

    def forward(self, x_qd: Tensor, context_hme: Tensor, normalizer_hm1: Tensor) -> Tensor:
        """Let genes attend to a cell's summary, shape ``(n_queries, n_hidden)``."""
        (q,) = self._project(x_qd, 0, 1)
        with torch.autocast(x_qd.device.type, enabled=False):
            q_hge = q.to(self.features.dtype)
            q_hgm = exponential_features(q_hge, self.features, is_query=True)[0] + EPSILON
            attended = (q_hgm @ context_hme) / (q_hgm @ normalizer_hm1)
        return self.out(attended.transpose(0, 1).reshape(len(x_qd), -1))


class PerformerLayer(nn.Module):
    """Linear attention and feed-forward, pre-norm."""

    def __init__(self, n_hidden: int, n_heads: int, head_width: int, seed: int = 0) -> None:
        super().__init__()
        self.attention = FavorAttention(n_hidden, n_heads, head_width, seed)
        self.feed_forward = FeedForward(n_hidden)
        self.attention_norm = nn.LayerNorm(n_hidden)
        self.feed_forward_norm = nn.LayerNorm(n_hidden)

    def forward(self, x_gd: Tensor, rows_q: Tensor | None = None) -> Tensor:
        """Return the genes of one cell; at ``rows_q`` alone, which attend to all genes."""
        sums = [recomputed(self._sum_keys, chunk) for chunk in x_gd.split(CHUNK)]
        summary = self.attention.summarize(sums, len(x_gd))
        queries = x_gd if rows_q is None else x_gd.index_select(0, rows_q)
        return in_chunks(self._update, CHUNK, queries, *summary)

    def _sum_keys(self, x_gd: Tensor) -> tuple[Tensor, ...]:
        return self.attention.sum_keys(self.attention_norm(x_gd))

    def _update(self, x_qd: Tensor, context_hme: Tensor, normalizer_hm1: Tensor) -> Tensor:
        x_qd = x_qd + self.attention(self.attention_norm(x_qd), context_hme, normalizer_hm1)
        return x_qd + self.feed_forward(self.feed_forward_norm(x_qd))


class Performer(nn.Module):
    """A stack of ``PerformerLayer`` and a final layer norm."""

    def __init__(
        self, n_layers: int, n_hidden: int, n_heads: int, head_width: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PerformerLayer(n_hidden, n_heads, head_width, seed + i) for i in range(n_layers)
        )
        self.norm = nn.LayerNorm(n_hidden)

    def redraw(self, seed: int) -> None:
        """Draw other random features, different in every layer."""
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, PerformerLayer)
            layer.attention.redraw(seed + i)

    def forward(self, x_gd: Tensor, rows_q: Tensor | None = None) -> Tensor:
        """Transform the genes of one cell; ``rows_q`` says where the last layer is evaluated."""
        for layer in self.layers[:-1]:
            x_gd = layer(x_gd)
        return self.norm(self.layers[-1](x_gd, rows_q))


class PerformerDecoder(nn.Module):
    """All genes of a cell attend to each other, as published.

    Encoded genes stand where they are in the vocabulary, all others as zeros or masks. Linear in
    the number of genes, and by far the most expensive decoder.
    """

    max_queries: int | None = None

    def __init__(
        self,
        n_hidden: int,
        n_context: int,
        n_layers: int,
        n_heads: int,
        head_width: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.randn(n_context))  # in place of a value that is hidden
        self.to_hidden = nn.Linear(n_context, n_hidden)
        self.performer = Performer(n_layers, n_hidden, n_heads, head_width, seed)
        self.norm = nn.LayerNorm(n_hidden)
        self.to_value = nn.Linear(n_hidden, 1)

    def embed(
        self, cells: EncodedCells, genes_gd: Tensor, gene_ids_t: Tensor, cu_queries: Tensor
    ) -> Iterator[Tensor]:
        """Yield embeddings of the queried genes of each cell, shape ``(n_queries, n_hidden)``."""
        # Most genes of most cells are zeros, which are all the same before the first layer.
        zeros_gd = self.to_hidden(genes_gd + cells.zero_d)
        known = [(cells.tokens_td, cells.gene_ids_t, cells.cu_seqlens)]
        if cells.hidden is not None:
            known.append(cells.hidden)
        inputs = [self._split(genes_gd, *part) for part in known]
        queries = gene_ids_t.split(lengths_of(cu_queries).tolist())
        for rows_q, *parts in zip(queries, *inputs, strict=True):
            if not len(rows_q):
                yield zeros_gd[:0]
                continue
            x_gd = zeros_gd
            for x_td, ids_t in parts:
                x_gd = x_gd.index_copy(0, ids_t, x_td.to(x_gd.dtype))
            yield self.norm(self.performer(x_gd, rows_q))

    def _split(
        self, genes_gd: Tensor, tokens_td: Tensor, ids_t: Tensor, cu_seqlens: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Bring tokens to the width of the decoder, one entry per cell."""
        is_gene = ids_t >= 0  # the cell token has no place among the genes
        cu_genes = select_tokens(is_gene, cu_seqlens)
        ids_t = ids_t[is_gene]
        x_td = self.to_hidden(tokens_td[is_gene] + F.embedding(ids_t, genes_gd))
        n = lengths_of(cu_genes).tolist()
        return list(zip(x_td.split(n), ids_t.split(n), strict=True))

    def forward(
        self, cells: EncodedCells, genes_gd: Tensor, gene_ids_t: Tensor, cu_queries: Tensor
    ) -> Tensor:
        """Predict the queried genes; arguments as in :class:`CrossAttentionDecoder`."""
        embedded = self.embed(cells, genes_gd, gene_ids_t, cu_queries)
        return torch.cat([self.to_value(x_qd).squeeze(-1) for x_qd in embedded])
