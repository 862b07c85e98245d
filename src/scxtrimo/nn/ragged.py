"""Reductions over ragged batches.

A ragged batch keeps the tokens of all cells in one tensor of shape ``(n_tokens, ...)``; cell ``c``
owns rows ``cu_seqlens[c]:cu_seqlens[c + 1]``. Shape suffixes used throughout :mod:`scxtrimo.nn`:
``t`` tokens of all cells, ``s`` tokens attended to, ``c`` cells, ``g`` genes, ``h`` heads,
``d`` width of the model, ``e`` width of one head, ``b`` value bins, ``z`` latent dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lengths_of(cu_seqlens: Tensor) -> Tensor:
    """Return the number of tokens of every cell, shape ``(n_cells,)``."""
    return cu_seqlens.diff()


def cells_of(cu_seqlens: Tensor, n_tokens: int) -> Tensor:
    """Return the cell that owns each token, shape ``(n_tokens,)``, int64."""
    lengths_c = lengths_of(cu_seqlens)
    cells_c = torch.arange(lengths_c.shape[0], device=cu_seqlens.device)
    return torch.repeat_interleave(cells_c, lengths_c, output_size=n_tokens)


def sum_per_cell(x_t: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Sum the tokens of every cell; a cell without tokens gets 0.

    Parameters
    ----------
    x_t
        Values per token, shape ``(n_tokens, ...)``.
    cu_seqlens
        Cell boundaries, shape ``(n_cells + 1,)``.

    Returns
    -------
    Tensor of shape ``(n_cells, ...)``.
    """
    out = x_t.new_zeros((cu_seqlens.shape[0] - 1, *x_t.shape[1:]))
    return out.index_add(0, cells_of(cu_seqlens, x_t.shape[0]), x_t)


def mean_per_cell(x_td: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Average the tokens of every cell; a cell without tokens gets 0."""
    lengths_c = lengths_of(cu_seqlens).clamp(min=1).to(x_td.dtype)
    return sum_per_cell(x_td, cu_seqlens) / lengths_c[:, None]


def max_per_cell(x_td: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Take the maximum over the tokens of every cell, per channel.

    Every cell must have at least one token, which holds for anything that carries a cell token.
    """
    # One `amax` per cell: scatter and segment reductions are slower on CPU, forward and backward.
    return torch.stack([x.amax(0) for x in x_td.split(lengths_of(cu_seqlens).tolist())])


def prepend_token(x_td: Tensor, token_d: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Put one shared token in front of every cell.

    Parameters
    ----------
    x_td
        Tokens of all cells, shape ``(n_tokens, n_hidden)``.
    token_d
        The token to put first, shape ``(n_hidden,)``.
    cu_seqlens
        Cell boundaries before the token is added.

    Returns
    -------
    Tokens of shape ``(n_tokens + n_cells, n_hidden)`` and their cell boundaries.
    """
    n_tokens, n_cells = x_td.shape[0], cu_seqlens.shape[0] - 1
    with_token = cu_seqlens + torch.arange(
        n_cells + 1, device=cu_seqlens.device, dtype=cu_seqlens.dtype
    )
    source_t = torch.zeros(n_tokens + n_cells, dtype=torch.int64, device=x_td.device)
    old_t = torch.arange(n_tokens, device=x_td.device)
    source_t[old_t + cells_of(cu_seqlens, n_tokens) + 1] = old_t + 1
    # `index_select`, as the backward of plain indexing is not deterministic on CPU.
    return torch.cat([token_d[None].to(x_td.dtype), x_td]).index_select(0, source_t), with_token


def drop_first_token(x_td: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Undo :func:`prepend_token`: return all tokens but the first of every cell."""
    n_cells = cu_seqlens.shape[0] - 1
    keep_t = torch.ones(x_td.shape[0], dtype=torch.bool, device=x_td.device)
    keep_t[cu_seqlens[:-1].long()] = False
    shift = torch.arange(n_cells + 1, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return x_td[keep_t], cu_seqlens - shift


def select_tokens(keep_t: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Return the cell boundaries of the tokens that ``keep_t`` (bool) selects."""
    kept_before = torch.zeros(keep_t.shape[0] + 1, dtype=cu_seqlens.dtype, device=keep_t.device)
    kept_before[1:] = keep_t.cumsum(0)
    return kept_before[cu_seqlens.long()]
