"""Multi-head attention within the cells of a ragged batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .ragged import CellBoundaries
from .varlen import can_use_varlen, plain_attention, varlen_attention

MAX_WEIGHTS = 2**24
"""How many attention weights of single heads are held at a time to be averaged."""


def ragged_attention(
    q_the: Tensor, k_she: Tensor, v_she: Tensor, queries: CellBoundaries, keys: CellBoundaries
) -> Tensor:
    """Let the queries of every cell attend to the keys of the same cell.

    No padding and no mask: the cost is the sum over cells of queries x keys, and a cell's result
    does not depend on its neighbours. On a GPU in half precision all cells go through one
    variable-length flash attention; elsewhere one cell follows the other.

    Parameters
    ----------
    q_the
        Queries of all cells, shape ``(n_queries, n_heads, head_width)``.
    k_she, v_she
        Keys and values of all cells, shape ``(n_keys, n_heads, head_width)``.
    queries, keys
        Cell boundaries of queries and keys. A cell with queries needs at least one key.

    Returns
    -------
    Tensor of the shape of ``q_the``.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import CellBoundaries, ragged_attention
    >>> cells = CellBoundaries.of(torch.tensor([0, 2, 5], dtype=torch.int32))
    >>> q, k, v = torch.randn(3, 5, 4, 8).unbind()
    >>> ragged_attention(q, k, v, cells, cells).shape
    torch.Size([5, 4, 8])
    """
    if can_use_varlen(q_the):
        return varlen_attention(q_the, k_she, v_she, queries, keys)
    return plain_attention(q_the, k_she, v_she, queries, keys)


def attention_among(q_the: Tensor, k_the: Tensor, chosen_n: Tensor) -> Tensor:
    """Return the attention of some tokens of one cell to each other, averaged over the heads.

    Parameters
    ----------
    q_the, k_the
        Queries and keys of all tokens of the cell, shape ``(n_tokens, n_heads, head_width)``.
    chosen_n
        Positions of these tokens.

    Returns
    -------
    float32 tensor of shape ``(n_chosen, n_chosen)``, queries in rows. A row sums to the part of
    the attention that stays among the chosen tokens.
    """
    n_tokens, n_heads, width = k_the.shape
    keys = k_the.float()
    rows = []
    for q_nhe in q_the[chosen_n].float().split(max(1, MAX_WEIGHTS // (n_heads * n_tokens))):
        scores_hns = torch.einsum("nhe,she->hns", q_nhe, keys) * width**-0.5
        rows.append(scores_hns.softmax(dim=-1)[..., chosen_n].mean(dim=0))
    return torch.cat(rows) if rows else keys.new_zeros(0, 0)


class SelfAttention(nn.Module):
    """Multi-head self-attention among the tokens of each cell.

    :func:`ragged_attention` has its place between :meth:`project` and :meth:`merge`, which work on
    single tokens and can be compiled; see :class:`~scxtrimo.nn.EncoderLayer`.

    Parameters
    ----------
    n_hidden
        Width of a token.
    n_heads
        Number of heads; divides ``n_hidden``.
    """

    def __init__(self, n_hidden: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(n_hidden, 3 * n_hidden)
        self.out = nn.Linear(n_hidden, n_hidden)

    def project(self, x_td: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, each ``(n_tokens, n_heads, head_width)``."""
        return self.qkv(x_td).unflatten(-1, (3, self.n_heads, -1)).unbind(1)

    def merge(self, attended_the: Tensor) -> Tensor:
        """Return what the heads attended to as ``(n_tokens, n_hidden)``."""
        return self.out(attended_the.flatten(1))


class CrossAttention(nn.Module):
    """Multi-head attention of queries to the encoded tokens of their own cell.

    Parameters
    ----------
    n_hidden
        Width of queries and output.
    n_context
        Width of the encoded tokens.
    n_heads
        Number of heads; divides ``n_hidden``.
    """

    def __init__(self, n_hidden: int, n_context: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(n_hidden, n_hidden)
        self.kv = nn.Linear(n_context, 2 * n_hidden)
        self.out = nn.Linear(n_hidden, n_hidden)

    def forward(
        self,
        x_td: Tensor,
        context_sd: Tensor,
        queries: CellBoundaries,
        context: CellBoundaries,
    ) -> Tensor:
        """Return the attended context, shape ``(n_queries, n_hidden)``."""
        n_queries, n_keys = x_td.shape[0], context_sd.shape[0]
        q = self.q(x_td).view(n_queries, self.n_heads, -1)
        k, v = self.kv(context_sd).view(n_keys, 2, self.n_heads, -1).unbind(1)
        return self.out(ragged_attention(q, k, v, queries, context).reshape(n_queries, -1))
