"""Multi-head attention within the cells of a ragged batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .ragged import lengths_of


def ragged_attention(
    q_the: Tensor, k_she: Tensor, v_she: Tensor, cu_queries: Tensor, cu_keys: Tensor
) -> Tensor:
    """Let the queries of every cell attend to the keys of the same cell.

    No padding and no mask: the cost is the sum over cells of queries x keys, and a cell's result
    does not depend on its neighbours.

    Parameters
    ----------
    q_the
        Queries of all cells, shape ``(n_queries, n_heads, head_width)``.
    k_she, v_she
        Keys and values of all cells, shape ``(n_keys, n_heads, head_width)``.
    cu_queries, cu_keys
        Cell boundaries of queries and keys, each of shape ``(n_cells + 1,)``. A cell with queries
        needs at least one key.

    Returns
    -------
    Tensor of the shape of ``q_the``.
    """
    # `split` rather than slices: its backward is one concatenation, where every slice would
    # write a full-size gradient of its own.
    q_cells = q_the.split(lengths_of(cu_queries).tolist())
    kv_lengths = lengths_of(cu_keys).tolist()
    k_cells, v_cells = k_she.split(kv_lengths), v_she.split(kv_lengths)
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                q[None].transpose(1, 2), k[None].transpose(1, 2), v[None].transpose(1, 2)
            ).transpose(1, 2)[0]
            for q, k, v in zip(q_cells, k_cells, v_cells, strict=True)
        ]
    )


class SelfAttention(nn.Module):
    """Multi-head self-attention among the tokens of each cell.

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

    def forward(self, x_td: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Attend within cells; input and output have shape ``(n_tokens, n_hidden)``."""
        n_tokens = x_td.shape[0]
        q, k, v = self.qkv(x_td).view(n_tokens, 3, self.n_heads, -1).unbind(1)
        return self.out(ragged_attention(q, k, v, cu_seqlens, cu_seqlens).reshape(n_tokens, -1))


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
        self, x_td: Tensor, context_sd: Tensor, cu_queries: Tensor, cu_context: Tensor
    ) -> Tensor:
        """Return the attended context, shape ``(n_queries, n_hidden)``."""
        n_queries, n_keys = x_td.shape[0], context_sd.shape[0]
        q = self.q(x_td).view(n_queries, self.n_heads, -1)
        k, v = self.kv(context_sd).view(n_keys, 2, self.n_heads, -1).unbind(1)
        return self.out(ragged_attention(q, k, v, cu_queries, cu_context).reshape(n_queries, -1))
