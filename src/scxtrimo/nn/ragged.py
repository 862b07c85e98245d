"""Reductions over ragged batches.

A ragged batch keeps the tokens of all cells in one tensor of shape ``(n_tokens, ...)``; cell ``c``
owns rows ``cu_seqlens[c]:cu_seqlens[c + 1]``. Shape suffixes used throughout :mod:`scxtrimo.nn`:
``t`` tokens of all cells, ``s`` tokens attended to, ``c`` cells, ``g`` genes, ``h`` heads,
``d`` width of the model, ``e`` width of one head, ``b`` value bins, ``z`` latent dimensions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class CellBoundaries(NamedTuple):
    """Where the cells of a ragged batch begin and end, on the device and on the host.

    Parameters
    ----------
    cu_seqlens
        Boundaries, int32, shape ``(n_cells + 1,)``.
    lengths
        Number of tokens of every cell. Reading it from a GPU waits for all work before it, so
        that all layers share it.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import CellBoundaries
    >>> cells = CellBoundaries.of(torch.tensor([0, 2, 5], dtype=torch.int32))
    >>> cells.lengths, cells.max_length
    ([2, 3], 3)
    >>> [group.lengths for group in cells.groups(max_tokens=4)]
    [[2], [3]]
    """

    cu_seqlens: Tensor
    lengths: list[int]

    @classmethod
    def of(cls, cu_seqlens: Tensor) -> CellBoundaries:
        """Read the lengths of the cells.

        Parameters
        ----------
        cu_seqlens
            Boundaries, shape ``(n_cells + 1,)``.

        Returns
        -------
        The boundaries, with the lengths.
        """
        return cls(cu_seqlens, lengths_of(cu_seqlens).tolist())

    @property
    def max_length(self) -> int:
        """Number of tokens of the longest cell."""
        return max(self.lengths)

    def groups(self, max_tokens: int) -> list[CellBoundaries]:
        """Divide the batch into runs of cells.

        Parameters
        ----------
        max_tokens
            How many tokens a run may have; a longer cell makes a run of its own.

        Returns
        -------
        The boundaries of the cells of each run, from 0 on.
        """
        ends, n_tokens = [0], 0
        for cell, length in enumerate(self.lengths):
            if n_tokens and n_tokens + length > max_tokens:
                ends.append(cell)
                n_tokens = 0
            n_tokens += length
        ends.append(len(self.lengths))
        return [
            CellBoundaries(
                self.cu_seqlens[start : end + 1] - self.cu_seqlens[start], self.lengths[start:end]
            )
            for start, end in pairwise(ends)
        ]


def lengths_of(cu_seqlens: Tensor) -> Tensor:
    """Return the number of tokens of every cell, shape ``(n_cells,)``."""
    return cu_seqlens.diff()


def cells_of(cu_seqlens: Tensor, n_tokens: int) -> Tensor:
    """Return the cell that owns each token, shape ``(n_tokens,)``, int64."""
    lengths_c = lengths_of(cu_seqlens)
    cells_c = torch.arange(lengths_c.shape[0], device=cu_seqlens.device)
    return torch.repeat_interleave(cells_c, lengths_c, output_size=n_tokens)


def to_tokens(x_c: Tensor, cu_seqlens: Tensor, n_tokens: int) -> Tensor:
    """Give every token the value of its cell, shape ``(n_tokens, ...)``."""
    return torch.repeat_interleave(x_c, lengths_of(cu_seqlens), dim=0, output_size=n_tokens)


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
    """Take the maximum over the tokens of every cell, per channel; 0 for a cell without tokens."""
    # One `amax` per cell: scatter and segment reductions are slower on CPU, forward and backward.
    cells = x_td.split(lengths_of(cu_seqlens).tolist())
    return torch.stack([x.amax(0) if len(x) else x.new_zeros(x.shape[1:]) for x in cells])


def prepend_tokens(x_td: Tensor, first_cnd: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Put the same number of tokens in front of every cell.

    Parameters
    ----------
    x_td
        Tokens of all cells, shape ``(n_tokens, ...)``.
    first_cnd
        The tokens to put first, shape ``(n_cells, n_first, ...)``.
    cu_seqlens
        Cell boundaries before these are added.

    Returns
    -------
    Tokens of shape ``(n_tokens + n_cells * n_first, ...)`` and their cell boundaries.
    """
    n_tokens, (n_cells, n_first) = x_td.shape[0], first_cnd.shape[:2]
    source_t = torch.empty(n_tokens + n_cells * n_first, dtype=torch.int64, device=x_td.device)
    old_t = torch.arange(n_tokens, device=x_td.device)
    source_t[old_t + n_first * (cells_of(cu_seqlens, n_tokens) + 1)] = old_t
    first_cn = torch.arange(n_cells * n_first, device=x_td.device).view(n_cells, n_first)
    source_t[first_cn + cu_seqlens[:-1, None]] = n_tokens + first_cn
    # `index_select`, as the backward of plain indexing is not deterministic on CPU.
    joined = torch.cat([x_td, first_cnd.flatten(0, 1).to(x_td.dtype)]).index_select(0, source_t)
    return joined, cu_seqlens + _shift(cu_seqlens, n_first)


def drop_first_tokens(x_td: Tensor, cu_seqlens: Tensor, n_first: int) -> tuple[Tensor, Tensor]:
    """Undo :func:`prepend_tokens`: return all tokens but the first ``n_first`` of every cell."""
    first_cn = cu_seqlens[:-1, None] + torch.arange(n_first, device=x_td.device)
    keep_t = torch.ones(x_td.shape[0], dtype=torch.bool, device=x_td.device)
    keep_t[first_cn.flatten().long()] = False
    return x_td[keep_t], cu_seqlens - _shift(cu_seqlens, n_first)


def _shift(cu_seqlens: Tensor, n_first: int) -> Tensor:
    return n_first * torch.arange(
        cu_seqlens.shape[0], device=cu_seqlens.device, dtype=cu_seqlens.dtype
    )


def select_tokens(keep_t: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Return the cell boundaries of the tokens that ``keep_t`` (bool) selects."""
    kept_before = torch.zeros(keep_t.shape[0] + 1, dtype=cu_seqlens.dtype, device=keep_t.device)
    kept_before[1:] = keep_t.cumsum(0)
    return kept_before[cu_seqlens.long()]
