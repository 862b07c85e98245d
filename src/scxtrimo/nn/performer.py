"""Performer: attention that is linear in the number of genes, by positive random features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .encoder import FeedForward

EPSILON = 1e-4


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


def positive_features(x_hte: Tensor, features_me: Tensor, is_query: bool) -> Tensor:
    r"""Map queries or keys to features whose products estimate the softmax kernel.

    .. math::
        \phi(x) = m^{-1/2}
        \left(\exp(\omega^\top \tilde x - \|\tilde x\|^2 / 2 - s) + \epsilon\right),
        \quad \tilde x = x / e^{1/4}

    The stabiliser :math:`s` is the maximum per query, and for keys one per cell over all heads,
    so that a cell does not depend on the others of its batch.

    Parameters
    ----------
    x_hte
        Queries or keys of one cell, shape ``(n_heads, n_genes, head_width)``.
    features_me
        Random features, shape ``(n_features, head_width)``.
    is_query
        Which of the two.

    Returns
    -------
    Tensor of shape ``(n_heads, n_genes, n_features)``.

    Notes
    -----
    Choromanski et al. 2021, equation 7 (FAVOR+).
    """
    x_hte = x_hte * x_hte.shape[-1] ** -0.25
    projected = x_hte @ features_me.t()
    half_norm = x_hte.square().sum(-1, keepdim=True) / 2
    highest = projected.amax(-1, keepdim=True) if is_query else projected.amax()
    scale = features_me.shape[0] ** -0.5
    return scale * (torch.exp(projected - half_norm - highest.detach()) + EPSILON)


class FavorAttention(nn.Module):
    """Linear attention among all genes of one cell.

    Parameters
    ----------
    n_hidden
        Width of input and output.
    n_heads, head_width
        Number and width of the heads.
    seed
        Seed of the random features.
    """

    features: Tensor

    def __init__(self, n_hidden: int, n_heads: int, head_width: int, seed: int = 0) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(n_hidden, 3 * n_heads * head_width)
        self.out = nn.Linear(n_heads * head_width, n_hidden)
        n_features = int(head_width * math.log(head_width))
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("features", orthogonal_features(n_features, head_width, generator))

    def forward(self, x_gd: Tensor) -> Tensor:
        """Attend among the genes of one cell; the shape ``(n_genes, n_hidden)`` stays."""
        n_genes = x_gd.shape[0]
        q, k, v = self.qkv(x_gd).view(n_genes, 3, self.n_heads, -1).permute(1, 2, 0, 3)
        q_hgm = positive_features(q, self.features, is_query=True)
        k_hgm = positive_features(k, self.features, is_query=False)
        context_hme = k_hgm.transpose(1, 2) @ v
        normalizer = q_hgm @ k_hgm.sum(1)[..., None]
        attended = (q_hgm @ context_hme) / normalizer
        return self.out(attended.transpose(0, 1).reshape(n_genes, -1))


class Performer(nn.Module):
    """A stack of pre-norm layers of linear attention and feed-forward, and a final norm.

    Parameters
    ----------
    n_layers
        Number of layers.
    n_hidden, n_heads, head_width, seed
        See :class:`FavorAttention`.
    """

    def __init__(
        self, n_layers: int, n_hidden: int, n_heads: int, head_width: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PerformerLayer(n_hidden, n_heads, head_width, seed + i) for i in range(n_layers)
        )
        self.norm = nn.LayerNorm(n_hidden)

    def forward(self, x_gd: Tensor) -> Tensor:
        """Transform the genes of one cell; the shape ``(n_genes, n_hidden)`` stays."""
        for layer in self.layers:
            x_gd = layer(x_gd)
        return self.norm(x_gd)


class PerformerLayer(nn.Module):
    """Linear attention and feed-forward, pre-norm.

    Parameters
    ----------
    n_hidden, n_heads, head_width, seed
        See :class:`FavorAttention`.
    """

    def __init__(self, n_hidden: int, n_heads: int, head_width: int, seed: int = 0) -> None:
        super().__init__()
        self.attention = FavorAttention(n_hidden, n_heads, head_width, seed)
        self.feed_forward = FeedForward(n_hidden)
        self.attention_norm = nn.LayerNorm(n_hidden)
        self.feed_forward_norm = nn.LayerNorm(n_hidden)

    def forward(self, x_gd: Tensor) -> Tensor:
        """Return the genes of one cell after one layer."""
        x_gd = x_gd + self.attention(self.attention_norm(x_gd))
        return x_gd + self.feed_forward(self.feed_forward_norm(x_gd))
