"""The encoder: a transformer over the expressed, unmasked genes of each cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention import SelfAttention, ragged_attention
from .chunks import in_chunks
from .ragged import CellBoundaries

Activation = Literal["gelu", "relu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}

# How many numbers an array may have. Large arrays come fresh from the system each time, and the
# zeroing of their pages takes about as long as the arithmetic; small ones stay in the caches.
MAX_ENTRIES = 2**21
"""Tokens encoded at a time without gradients, times their width, on a processor."""
MAX_ENTRIES_ON_GPU = 2**26
"""The same on a GPU: enough to fill it, and not its memory."""
MAX_INNER = 2**22
"""The inner layer of a feed-forward part without gradients, on a processor."""
MAX_INNER_TRAINED = 2**19
"""The same in training, where several such arrays are held at a time."""
RECOMPUTED_FROM = 128
"""Width of a layer from which memory is scarcer than time."""


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
    recompute
        On a processor, compute the inner layer again for the backward pass instead of keeping
        it, which takes half of the memory of a training step and up to a tenth more time.
    """

    def __init__(
        self,
        n_hidden: int,
        multiplier: int = 4,
        activation: Activation = "gelu",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.inner = nn.Linear(n_hidden, multiplier * n_hidden)
        self.outer = nn.Linear(multiplier * n_hidden, n_hidden)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_td: Tensor) -> Tensor:
        """Transform every token on its own; the shape stays."""
        is_trained = torch.is_grad_enabled()
        is_whole = x_td.device.type != "cpu" or torch.compiler.is_compiling()
        if is_whole or (is_trained and not self.recompute):
            return self._transform(x_td)
        n_at_a_time = (MAX_INNER_TRAINED if is_trained else MAX_INNER) // self.inner.out_features
        return in_chunks(self._transform, n_at_a_time, x_td)

    def _transform(self, x_td: Tensor) -> Tensor:
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

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import CellBoundaries, EncoderLayer
    >>> layer = EncoderLayer(n_hidden=8, n_heads=2)
    >>> cells = CellBoundaries.of(torch.tensor([0, 2, 5], dtype=torch.int32))
    >>> layer(torch.randn(5, 8), cells).shape
    torch.Size([5, 8])
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
        self._compiled: dict[str, Callable[..., Any]] = {}
        self.attention = SelfAttention(n_hidden, n_heads)
        self.feed_forward = FeedForward(
            n_hidden, activation=activation, recompute=n_hidden >= RECOMPUTED_FROM
        )
        self.attention_norm = nn.LayerNorm(n_hidden)
        self.feed_forward_norm = nn.LayerNorm(n_hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_td: Tensor, cells: CellBoundaries) -> Tensor:
        """Let the tokens of every cell attend to each other.

        Parameters
        ----------
        x_td
            Tokens of all cells, shape ``(n_tokens, n_hidden)``.
        cells
            Boundaries of the cells.

        Returns
        -------
        Tokens after the layer, of the same shape.
        """
        before = self._compiled.get("before", self._before_attention)
        after = self._compiled.get("after", self._after_attention)
        q, k, v = before(x_td)
        return after(x_td, ragged_attention(q, k, v, cells, cells))

    def compile(self, **kwargs: Any) -> None:
        """Compile what is done token by token, that is all but the attention, in place.

        Parameters
        ----------
        **kwargs
            Passed to :func:`torch.compile`.
        """
        kwargs = {"dynamic": True} | kwargs
        self._compiled = {
            "before": torch.compile(self._before_attention, **kwargs),
            "after": torch.compile(self._after_attention, **kwargs),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is compiled: a copy is not."""
        return self.__dict__ | {"_compiled": {}}

    def _before_attention(self, x_td: Tensor) -> tuple[Tensor, ...]:
        return self.attention.project(self.attention_norm(x_td) if self.norm_first else x_td)

    def _after_attention(self, x_td: Tensor, attended_the: Tensor) -> Tensor:
        x_td = x_td + self.dropout(self.attention.merge(attended_the))
        if self.norm_first:
            return x_td + self.dropout(self.feed_forward(self.feed_forward_norm(x_td)))
        x_td = self.attention_norm(x_td)
        return self.feed_forward_norm(x_td + self.dropout(self.feed_forward(x_td)))


class Encoder(nn.Module):
    """A stack of :class:`~scxtrimo.nn.EncoderLayer` and a final layer norm.

    Parameters
    ----------
    n_layers
        Number of layers.
    n_hidden, n_heads, activation, norm_first, dropout
        See :class:`EncoderLayer`.

    Attributes
    ----------
    recompute
        Keep only the input of every layer for the backward pass and compute the rest again, which
        takes a third more time and a fraction of the memory (Chen et al. 2016).

    Notes
    -----
    Gong et al. 2023, section 3.3: the encoder "only focuses on the non-zero and non-masked"
    genes, so its cost does not depend on the number of genes in the panel.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import Encoder
    >>> encoder = Encoder(n_layers=2, n_hidden=8, n_heads=2)
    >>> encoder(torch.randn(5, 8), torch.tensor([0, 2, 5], dtype=torch.int32)).shape
    torch.Size([5, 8])
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
        self.recompute = False

    def forward(self, x_td: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Encode the tokens of all cells.

        Parameters
        ----------
        x_td
            Tokens, shape ``(n_tokens, n_hidden)``.
        cu_seqlens
            Cell boundaries, int32, shape ``(n_cells + 1,)``.

        Returns
        -------
        Encoded tokens, of the same shape.
        """
        cells = CellBoundaries.of(cu_seqlens)
        if torch.is_grad_enabled() and self._has_gradients(x_td):
            return self._encode(x_td, cells)
        with torch.no_grad():
            return self._encode_in_groups(x_td, cells)

    def queries_and_keys(
        self, x_td: Tensor, cu_seqlens: Tensor, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Return queries and keys of a layer.

        Parameters
        ----------
        x_td, cu_seqlens
            See :meth:`forward`.
        layer
            Which layer; -1 is the last.

        Returns
        -------
        Queries and keys, each of shape ``(n_tokens, n_heads, head_width)``.

        Examples
        --------
        >>> import torch
        >>> from scxtrimo.nn import Encoder
        >>> encoder = Encoder(n_layers=2, n_hidden=8, n_heads=2)
        >>> cu_seqlens = torch.tensor([0, 2, 5], dtype=torch.int32)
        >>> queries, keys = encoder.queries_and_keys(torch.randn(5, 8), cu_seqlens, layer=-1)
        >>> queries.shape
        torch.Size([5, 2, 4])
        """
        cells = CellBoundaries.of(cu_seqlens)
        for earlier in list(self.layers)[:layer]:
            x_td = earlier(x_td, cells)
        asked = self.layers[layer]
        assert isinstance(asked, EncoderLayer)
        q_the, k_the, _ = asked._before_attention(x_td)
        return q_the, k_the

    def _has_gradients(self, x_td: Tensor) -> bool:
        """Whether anything here is trained; a frozen encoder needs no memory for it."""
        return x_td.requires_grad or any(p.requires_grad for p in self.parameters())

    def _encode_in_groups(self, x_td: Tensor, cells: CellBoundaries) -> Tensor:
        on_gpu = x_td.device.type != "cpu"
        max_tokens = (MAX_ENTRIES_ON_GPU if on_gpu else MAX_ENTRIES) // x_td.shape[1]
        groups = cells.groups(max_tokens)
        parts = x_td.split([sum(group.lengths) for group in groups])
        return torch.cat([self._encode(*part) for part in zip(parts, groups, strict=True)])

    def _encode(self, x_td: Tensor, cells: CellBoundaries) -> Tensor:
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x_td = checkpoint(layer, x_td, cells, use_reentrant=False)
            else:
                x_td = layer(x_td, cells)
        return self.norm(x_td)
