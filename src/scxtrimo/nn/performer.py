"""Performer: attention that is linear in the number of genes, by positive random features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .chunks import in_chunks, recomputed
from .layers import FeedForward

EPSILON = 1e-4
CHUNK = 2048
"""Genes that are worked on at a time: bounds the memory whatever the size of the vocabulary."""


def orthogonal_features(n_features: int, n_inputs: int, generator: torch.Generator) -> Tensor:
    """Draw random features whose directions are orthogonal within blocks.

    Parameters
    ----------
    n_features, n_inputs
        Number of features and width of a head.
    generator
        Where the numbers come from.

    Returns
    -------
    Tensor of shape ``(n_features, n_inputs)``, rows with the lengths of Gaussian vectors.
    """
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
    r"""Map queries or keys to features whose products estimate the softmax kernel.

    .. math::
        \phi(x) = \exp(\omega^\top \tilde x - \|\tilde x\|^2 / 2 - s),
        \quad \tilde x = x / e^{1/4}

    Parameters
    ----------
    x_hte
        Queries or keys of one cell, shape ``(n_heads, n_genes, head_width)``.
    features_me
        Random features, shape ``(n_features, head_width)``.
    is_query
        Which of the two: the stabiliser :math:`s` is the maximum per query, and for keys one over
        all heads and genes given.

    Returns
    -------
    Tensor of shape ``(n_heads, n_genes, n_features)``, and the stabiliser.

    Notes
    -----
    Choromanski et al. 2021, equation 7 (FAVOR+), without the factor :math:`m^{-1/2}`, which
    cancels in attention.
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

    with :math:`\phi` the positive random features of Choromanski et al. 2021; the sums over keys
    are :meth:`summarize`.

    Parameters
    ----------
    n_hidden
        Width of input and output.
    n_heads, head_width
        Number and width of the heads.
    seed
        Seed of the random features.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import FavorAttention
    >>> attention = FavorAttention(n_hidden=8, n_heads=2, head_width=4)
    >>> genes = torch.randn(100, 8)
    >>> sums = [attention.sum_keys(part) for part in genes.split(50)]
    >>> attention(genes[:5], *attention.summarize(sums, n_genes=100)).shape
    torch.Size([5, 8])
    >>> attention.redraw(seed=1)
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
        """Draw other random features.

        Parameters
        ----------
        seed
            Their seed.
        """
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
        """Sum keys and values over some genes of a cell.

        Parameters
        ----------
        x_gd
            Some genes of a cell, shape ``(n_genes, n_hidden)``.

        Returns
        -------
        Sums over the genes: of keys times values, of keys and of values, each for every head; and
        the stabiliser.
        """
        k, v = self._project(x_gd, 1, 2)
        # Exponentials of scores in bfloat16 would be off by several per cent.
        with torch.autocast(x_gd.device.type, enabled=False):
            v_hge = v.to(self.features.dtype)
            k_hgm, highest = exponential_features(
                k.to(self.features.dtype), self.features, is_query=False
            )
            return k_hgm.transpose(1, 2) @ v_hge, k_hgm.sum(1), v_hge.sum(1), highest

    def summarize(self, chunks: list[tuple[Tensor, Tensor, Tensor, Tensor]], n_genes: int) -> Any:
        r"""Return :math:`\sum_g \phi_\epsilon(k_g) [v_g^\top, 1]` from sums over parts of a cell.

        Parameters
        ----------
        chunks
            Results of :meth:`sum_keys`, each with a stabiliser of its own. The result has one for
            the cell, so that it depends neither on other cells nor on the parts.
        n_genes
            Number of genes that were summed over.

        Returns
        -------
        Tensors of shape ``(n_heads, n_features, head_width)`` and ``(n_heads, n_features, 1)``.
        """
        contexts, normalizers, values, highest = zip(*chunks, strict=True)
        weights = [torch.exp(h - torch.stack(highest).amax()) for h in highest]
        context_hme = sum(w * c for w, c in zip(weights, contexts, strict=True))
        normalizer_hm = sum(w * n for w, n in zip(weights, normalizers, strict=True))
        context_hme = context_hme + EPSILON * torch.stack(values).sum(0)[:, None]
        return context_hme, (normalizer_hm + EPSILON * n_genes)[..., None]

    def forward(self, x_qd: Tensor, context_hme: Tensor, normalizer_hm1: Tensor) -> Tensor:
        """Let genes attend to a cell's summary.

        Parameters
        ----------
        x_qd
            The genes, shape ``(n_queries, n_hidden)``.
        context_hme, normalizer_hm1
            What :meth:`summarize` returned for the cell.

        Returns
        -------
        Tensor of shape ``(n_queries, n_hidden)``.
        """
        (q,) = self._project(x_qd, 0, 1)
        with torch.autocast(x_qd.device.type, enabled=False):
            q_hgm = (
                exponential_features(q.to(self.features.dtype), self.features, is_query=True)[0]
                + EPSILON
            )
            attended = (q_hgm @ context_hme) / (q_hgm @ normalizer_hm1)
        return self.out(attended.transpose(0, 1).reshape(len(x_qd), -1))


class PerformerLayer(nn.Module):
    """Linear attention and feed-forward, pre-norm.

    Parameters
    ----------
    n_hidden, n_heads, head_width, seed
        See :class:`FavorAttention`.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import PerformerLayer
    >>> layer = PerformerLayer(n_hidden=8, n_heads=2, head_width=4)
    >>> layer(torch.randn(100, 8), rows_q=torch.tensor([3, 99])).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_hidden: int, n_heads: int, head_width: int, seed: int = 0) -> None:
        super().__init__()
        self.attention = FavorAttention(n_hidden, n_heads, head_width, seed)
        self.feed_forward = FeedForward(n_hidden)
        self.attention_norm = nn.LayerNorm(n_hidden)
        self.feed_forward_norm = nn.LayerNorm(n_hidden)

    def forward(self, x_gd: Tensor, rows_q: Tensor | None = None) -> Tensor:
        """Return the genes of one cell after one layer.

        Parameters
        ----------
        x_gd
            All genes of the cell, shape ``(n_genes, n_hidden)``.
        rows_q
            Where to evaluate the layer; all genes are attended to regardless.

        Returns
        -------
        Tensor of shape ``(n_genes, n_hidden)``, or ``(n_queries, n_hidden)``.
        """
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
    """A stack of :class:`~scxtrimo.nn.PerformerLayer` and a final layer norm.

    Parameters
    ----------
    n_layers
        Number of layers.
    n_hidden, n_heads, head_width, seed
        See :class:`FavorAttention`.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import Performer
    >>> performer = Performer(n_layers=2, n_hidden=8, n_heads=2, head_width=4)
    >>> performer(torch.randn(100, 8)).shape
    torch.Size([100, 8])
    >>> performer.redraw(seed=1)
    """

    def __init__(
        self, n_layers: int, n_hidden: int, n_heads: int, head_width: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PerformerLayer(n_hidden, n_heads, head_width, seed + i) for i in range(n_layers)
        )
        self.norm = nn.LayerNorm(n_hidden)

    def redraw(self, seed: int) -> None:
        """Draw other random features in every layer.

        Parameters
        ----------
        seed
            Their seed; layers differ.
        """
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, PerformerLayer)
            layer.attention.redraw(seed + i)

    def forward(self, x_gd: Tensor, rows_q: Tensor | None = None) -> Tensor:
        """Transform the genes of one cell.

        Parameters
        ----------
        x_gd
            All genes of the cell, shape ``(n_genes, n_hidden)``.
        rows_q
            Where to evaluate the last layer; by default everywhere.

        Returns
        -------
        Tensor of shape ``(n_genes, n_hidden)``, or ``(n_queries, n_hidden)``.
        """
        for layer in self.layers[:-1]:
            x_gd = layer(x_gd)
        return self.norm(self.layers[-1](x_gd, rows_q))
