"""The encoder: a transformer over the expressed, unmasked genes of each cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .attention import SelfAttention

Activation = Literal["gelu", "relu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class FeedForward(nn.Module):
    """Two linear layers with an activation between them.

    Parameters
    ----------
    n_hidden
        Width of input and output.
    multiplier
        Width of the inner layer in units of ``n_hidden``.
    activation
        Name of the activation.
    """

    def __init__(
        self, n_hidden: int, multiplier: int = 4, activation: Activation = "gelu"
    ) -> None:
        super().__init__()
        self.inner = nn.Linear(n_hidden, multiplier * n_hidden)
        self.outer = nn.Linear(multiplier * n_hidden, n_hidden)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_td: Tensor) -> Tensor:
        """Transform every token on its own; the shape stays."""
        return self.outer(self.activation(self.inner(x_td)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual path and a layer norm.

    Parameters
    ----------
    n_hidden, n_heads
        Width and number of heads.
    activation
        Activation of the feed-forward part.
    norm_first
        Normalise before each part (pre-norm) instead of after it (post-norm, as published).
    dropout
        Dropout on the output of each part. Attention weights are never dropped: that would
        force the slow attention kernels.
    """

    def __init__(
        self,
        n_hidden: int,
        n_heads: int,
        activation: Activation = "gelu",
        norm_first: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = SelfAttention(n_hidden, n_heads)
        self.feed_forward = FeedForward(n_hidden, activation=activation)
        self.attention_norm = nn.LayerNorm(n_hidden)
        self.feed_forward_norm = nn.LayerNorm(n_hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_td: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Return the tokens after one layer, shape ``(n_tokens, n_hidden)``."""
        if self.norm_first:
            x_td = x_td + self.dropout(self.attention(self.attention_norm(x_td), cu_seqlens))
            return x_td + self.dropout(self.feed_forward(self.feed_forward_norm(x_td)))
        x_td = self.attention_norm(x_td + self.dropout(self.attention(x_td, cu_seqlens)))
        return self.feed_forward_norm(x_td + self.dropout(self.feed_forward(x_td)))


class Encoder(nn.Module):
    """A stack of :class:`EncoderLayer` and a final layer norm.

    Parameters
    ----------
    n_layers
        Number of layers.
    n_hidden, n_heads, activation, norm_first, dropout
        See :class:`EncoderLayer`.

    Notes
    -----
    Gong et al. 2023, section 3.3: the encoder "only focuses on the non-zero and non-masked"
    genes, so its cost does not depend on the number of genes in the panel.
    """

    def __init__(
        self,
        n_layers: int,
        n_hidden: int,
        n_heads: int,
        activation: Activation = "gelu",
        norm_first: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(n_hidden, n_heads, activation, norm_first, dropout)
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(n_hidden)

    def forward(self, x_td: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Encode the tokens of all cells; the shape stays ``(n_tokens, n_hidden)``."""
        for layer in self.layers:
            x_td = layer(x_td, cu_seqlens)
        return self.norm(x_td)
