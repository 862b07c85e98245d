"""Which genes of a cell are hidden from the encoder, and which must be predicted.

Every decision is a hash of (seed, step of the training, cell, gene): the masks of a cell do not
depend on the other cells of its batch, and an interrupted training that is resumed sees the masks
it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..nn.ragged import cells_of, lengths_of, select_tokens

RATE, VISIBLE, TARGET, ZERO = range(4)  # independent streams of random numbers


@dataclass(frozen=True)
class MaskingConfig:
    """How genes are masked in training.

    Parameters
    ----------
    min_rate, max_rate
        The fraction of a cell's expressed genes that is masked is drawn uniformly from this
        interval, anew for every cell and epoch.
    max_targets
        Masked expressed genes per cell that the cross-attention decoder must predict, on average
        at most; as many unexpressed genes are drawn beside them.

    Examples
    --------
    >>> MaskingConfig(min_rate=0.3, max_rate=0.3)
    MaskingConfig(min_rate=0.3, max_rate=0.3, max_targets=32)
    """

    min_rate: float = 0.2
    max_rate: float = 0.9
    max_targets: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.min_rate <= self.max_rate < 1:
            raise ValueError(
                f"0 <= min_rate <= max_rate < 1 does not hold: min_rate={self.min_rate}, "
                f"max_rate={self.max_rate}."
            )
        if self.max_targets < 1:
            raise ValueError(f"max_targets={self.max_targets} must be positive.")


def mask_batch(
    batch: dict[str, Tensor], config: MaskingConfig, n_genes: int, seed: int, epoch: int
) -> dict[str, Tensor]:
    """Hide some genes of every cell and name the ones to predict.

    Parameters
    ----------
    batch
        A ragged batch, see :class:`~scxtrimo.data.RaggedDataset`.
    config
        How much to mask.
    n_genes
        Size of the vocabulary.
    seed, epoch
        Masks differ between seeds and between epochs.

    Returns
    -------
    The batch with ``visible`` (bool per token) and, for the genes to predict, ``target_counts``,
    ``target_gene_ids`` and ``target_cu_seqlens``.
    """
    gene_ids, cu_seqlens = batch["gene_ids"], batch["cu_seqlens"]
    n_cells = cu_seqlens.shape[0] - 1
    cells_t = cells_of(cu_seqlens, gene_ids.shape[0])
    key_c = batch["cell_ids"]
    key_t = key_c[cells_t] * n_genes + gene_ids

    def uniform(key: Tensor, stream: int) -> Tensor:
        return hashed_uniform(key, seed, epoch, stream)

    rate_c = config.min_rate + (config.max_rate - config.min_rate) * uniform(key_c, RATE)
    visible_t = uniform(key_t, VISIBLE) >= rate_c[cells_t]
    masked_c = lengths_of(select_tokens(~visible_t, cu_seqlens))
    share_c = config.max_targets / masked_c.clamp(min=1)
    target_t = ~visible_t & (uniform(key_t, TARGET) < share_c[cells_t])

    # As many unexpressed genes: draw genes at random and keep those the cell does not express.
    n_draws_c = lengths_of(select_tokens(target_t, cu_seqlens))
    zero_cells = torch.repeat_interleave(torch.arange(n_cells, device=key_c.device), n_draws_c)
    draw = torch.arange(zero_cells.shape[0], device=key_c.device)
    draw = draw - (n_draws_c.cumsum(0) - n_draws_c)[zero_cells]
    drawn_key = key_c[zero_cells] * n_genes + draw
    zero_genes = (uniform(drawn_key, ZERO) * n_genes).long().clamp(max=n_genes - 1)
    expressed = torch.isin(zero_cells * n_genes + zero_genes, cells_t * n_genes + gene_ids)
    zero_cells, zero_genes = zero_cells[~expressed], zero_genes[~expressed]

    target_cells = torch.cat([cells_t[target_t], zero_cells])
    order = torch.argsort(target_cells, stable=True)
    zeros = batch["counts"].new_zeros(zero_genes.shape[0])
    target_cu_seqlens = cu_seqlens.new_zeros(n_cells + 1)
    target_cu_seqlens[1:] = torch.bincount(target_cells, minlength=n_cells).cumsum(0)
    return batch | {
        "visible": visible_t,
        "target_counts": torch.cat([batch["counts"][target_t], zeros])[order],
        "target_gene_ids": torch.cat([gene_ids[target_t], zero_genes])[order],
        "target_cu_seqlens": target_cu_seqlens,
    }


def hashed_uniform(key: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    """Return pseudo-random numbers in [0, 1), a pure function of the arguments.

    The key is mixed with the finaliser of SplitMix64 (Steele et al. 2014).

    Parameters
    ----------
    key
        int64 tensor.
    seed, epoch, stream
        Integers; each combination gives an independent set of numbers.
    """
    x = _mix(key + _signed(_mix_int(_mix_int(_mix_int(seed) + epoch) + stream)))
    return (_shift(x, 40)).to(torch.float32) * 2.0**-24


_C1, _C2, _GOLDEN = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch shifts int64 arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = x * _signed(_GOLDEN)
    x = (x ^ _shift(x, 30)) * _signed(_C1)
    x = (x ^ _shift(x, 27)) * _signed(_C2)
    return x ^ _shift(x, 31)


def _mix_int(value: int) -> int:
    value = (value + _GOLDEN) & _MASK64
    value = ((value ^ (value >> 30)) * _C1) & _MASK64
    value = ((value ^ (value >> 27)) * _C2) & _MASK64
    return value ^ (value >> 31)
