"""Ragged batches: the tokens of all cells in one tensor, without padding.

A tensor of shape ``(n_tokens, ...)`` holds the tokens of all cells; cell ``c`` owns rows
``cu_seqlens[c]:cu_seqlens[c + 1]``. Shape suffixes used throughout :mod:`scxtrimo.nn`: ``t``
tokens of all cells, ``s`` tokens attended to, ``q`` queries, ``c`` cells, ``g`` genes, ``h``
heads, ``d`` width of the model, ``e`` width of one head, ``b`` value bins, ``z`` latent
dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor


class RaggedBatch(TypedDict, total=False):
    """A batch of cells. Only the first six entries are always there."""

    counts: Tensor  #: raw counts of the expressed genes, float32, shape ``(n_tokens,)``
    gene_ids: Tensor  #: their positions in the vocabulary, int64, shape ``(n_tokens,)``
    cu_seqlens: Tensor  #: cell boundaries, int32, shape ``(n_cells + 1,)``
    library_size: Tensor  #: total counts of every cell, also of genes outside the vocabulary
    cell_ids: Tensor  #: row of every cell in its data, int64; seeds its masks
    categories: Tensor  #: batch and covariates, int64, -1 if unknown, ``(n_cells, n_covariates)``
    cell_weights: Tensor  #: of every cell in the objective, 1 on average; equal if missing
    labels: Tensor  #: codes of the labels, int64, -1 for none, shape ``(n_cells,)``
    input_counts: Tensor  #: what the encoder sees of ``counts`` where some were taken away
    input_library_size: Tensor  #: totals of ``input_counts``
    depths: Tensor  #: target and source depth, log10 of total counts, shape ``(n_cells, 2)``
    scale: float  #: total that counts are scaled to before the logarithm; 10,000 if missing
    visible: Tensor  #: whether the encoder sees a token, bool, shape ``(n_tokens,)``
    target_counts: Tensor  #: counts of the genes to predict, shape ``(n_targets,)``
    target_gene_ids: Tensor
    target_weights: Tensor
    target_cu_seqlens: Tensor
    scored_gene_ids: Tensor  #: genes whose counts are scored, if not all; distinct
    scored_weights: Tensor  #: for how many genes each of them stands, float32
    hidden_values: Tensor  #: told to a Performer of masked genes: NaN for the mask, or a value
    hidden_gene_ids: Tensor
    hidden_cu_seqlens: Tensor
    lane: Tensor  #: which batch of an accumulated step this is, where a store says so
    epoch: Tensor  #: epoch of the batch, where a store says so


@dataclass(frozen=True, slots=True)
class CellBoundaries:
    """Where the cells of a ragged batch begin and end, on the device and on the host.

    Reading ``lengths`` from a GPU waits for all work before it, so it is read once per pass.
    """

    cu_seqlens: Tensor
    lengths: list[int]

    @classmethod
    def of(cls, cu_seqlens: Tensor) -> CellBoundaries:
        """Read the lengths of the cells."""
        return cls(cu_seqlens, lengths_of(cu_seqlens).tolist())

    @property
    def max_length(self) -> int:
        """Number of tokens of the longest cell."""
        return max(self.lengths)

    @property
    def is_even(self) -> bool:
        """Whether all cells have the same number of tokens, and some."""
        return bool(self.lengths) and min(self.lengths) == self.max_length > 0

    def groups(self, max_tokens: int) -> list[CellBoundaries]:
        """Divide the batch into runs of cells of at most ``max_tokens``, each at least a cell."""
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


class HiddenGenes(NamedTuple):
    """Masked genes, and what a decoder over all genes is told about them."""

    tokens_td: Tensor
    gene_ids_t: Tensor
    cu_seqlens: Tensor


class EncodedCells(NamedTuple):
    """What the encoder knows about a batch of cells, for the decoders."""

    tokens_td: Tensor  # special tokens first in every cell
    cu_seqlens: Tensor
    gene_ids_t: Tensor  # positions in the gene embeddings; -1 for the cell token
    latent_cz: Tensor  # cell vectors, or the published representation
    covariates_ck: Tensor  # embedding of batch and covariates, not part of the cell vector
    zero_d: Tensor  # value embedding of 0
    hidden: HiddenGenes | None = None


def lengths_of(cu_seqlens: Tensor) -> Tensor:
    """Return the number of tokens of every cell, shape ``(n_cells,)``."""
    return cu_seqlens.diff()


def cells_of(cu_seqlens: Tensor, n_tokens: int) -> Tensor:
    """Return the cell that owns each token, shape ``(n_tokens,)``, int64."""
    cells_c = torch.arange(len(cu_seqlens) - 1, device=cu_seqlens.device)
    return to_tokens(cells_c, cu_seqlens, n_tokens)


def to_tokens(x_c: Tensor, cu_seqlens: Tensor, n_tokens: int) -> Tensor:
    """Give every token the value of its cell, shape ``(n_tokens, ...)``."""
    return torch.repeat_interleave(x_c, lengths_of(cu_seqlens), dim=0, output_size=n_tokens)


def sum_per_cell(x_t: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Sum the tokens of every cell, shape ``(n_cells, ...)``; a cell without tokens gets 0."""
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
    """Return tokens and boundaries with ``first_cnd``, ``(n_cells, n_first, ...)``, in front."""
    n_tokens, (n_cells, n_first) = x_td.shape[0], first_cnd.shape[:2]
    source_t = torch.empty(n_tokens + n_cells * n_first, dtype=torch.int64, device=x_td.device)
    old_t = torch.arange(n_tokens, device=x_td.device)
    source_t[old_t + n_first * (cells_of(cu_seqlens, n_tokens) + 1)] = old_t
    first_cn = torch.arange(n_cells * n_first, device=x_td.device).view(n_cells, n_first)
    source_t[first_cn + cu_seqlens[:-1, None]] = n_tokens + first_cn
    # `index_select`, as the backward of plain indexing is not deterministic on CPU.
    joined = torch.cat([x_td, first_cnd.flatten(0, 1).to(x_td.dtype)]).index_select(0, source_t)
    shift = n_first * torch.arange(n_cells + 1, device=x_td.device, dtype=cu_seqlens.dtype)
    return joined, cu_seqlens + shift


def drop_first_tokens(x_td: Tensor, cu_seqlens: Tensor, n_first: int) -> tuple[Tensor, Tensor]:
    """Undo :func:`prepend_tokens`: return all tokens but the first ``n_first`` of every cell."""
    first_cn = cu_seqlens[:-1, None] + torch.arange(n_first, device=x_td.device)
    keep_t = torch.ones(x_td.shape[0], dtype=torch.bool, device=x_td.device)
    keep_t[first_cn.flatten().long()] = False
    return x_td[keep_t], select_tokens(keep_t, cu_seqlens)


def select_tokens(keep_t: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Return the cell boundaries of the tokens that ``keep_t`` (bool) selects."""
    kept_before = torch.zeros(keep_t.shape[0] + 1, dtype=cu_seqlens.dtype, device=keep_t.device)
    kept_before[1:] = keep_t.cumsum(0)
    return kept_before[cu_seqlens.long()]
