"""Which genes of a cell are hidden from the encoder, and which must be predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import PositiveInt
from torch import Tensor

from .._validation import Fraction, Probability, Validated
from .embedding import normalize_counts
from .hashing import hashed_uniform
from .ragged import cells_of, lengths_of, select_tokens

RATE, VISIBLE, TARGET, ZERO, FATE, DONOR = range(6)  # independent streams of random numbers


@dataclass(frozen=True)
class MaskingConfig(Validated):
    """How genes are masked in training.

    Parameters
    ----------
    min_rate, max_rate
        The fraction of a cell's expressed genes that is masked is drawn uniformly from this
        interval, anew for every cell and epoch.
    max_targets
        Masked expressed genes per cell that the imputation decoder must predict, on average at
        most; ``None`` for all.
    zero_rate
        Fraction of the unexpressed genes that is masked and must be predicted. By default as many
        genes are drawn as there are expressed targets.
    replace_rate, random_rate
        What a decoder over all genes (Performer) finds in place of a masked value: the mask, with
        probability ``replace_rate``; the value of another gene of the cell, with probability
        ``random_rate``; otherwise the true value. The encoder sees none of these genes.
    thinning_probability
        In a model that is aware of the read depth: part of the cells that lose counts before they
        are encoded, see :func:`~scxtrimo.nn.thin_batch`.
    natural_weights
        Weight targets by the inverse of the rate at which they are drawn, so that the imputation
        decoder predicts means over all genes that the encoder does not see. Without, expressed
        genes count for more than there are.

    Examples
    --------
    >>> MaskingConfig(min_rate=0.3, max_rate=0.3, max_targets=100).zero_rate is None
    True
    """

    min_rate: Fraction = 0.2
    max_rate: Fraction = 0.9
    max_targets: PositiveInt | None = 32
    zero_rate: Fraction | None = None
    replace_rate: Probability = 1.0
    random_rate: Probability = 0.0
    thinning_probability: Probability = 0.5
    natural_weights: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_rate > self.max_rate:
            raise ValueError(f"min_rate={self.min_rate} must be at most max_rate={self.max_rate}.")
        if self.replace_rate + self.random_rate > 1:
            raise ValueError(
                f"replace_rate={self.replace_rate} and random_rate={self.random_rate} must be "
                "probabilities that add up to at most 1."
            )

    @classmethod
    def published(cls) -> MaskingConfig:
        """Return the masking of the published training :cite:p:`Gong2023`.

        30% of the expressed and 3% of the unexpressed genes, all of them targets; 80% of them
        replaced by the mask and 10% by another value.

        Returns
        -------
        The configuration.

        Examples
        --------
        >>> from scxtrimo.train import MaskingConfig
        >>> MaskingConfig.published().zero_rate
        0.03
        """
        return cls(0.3, 0.3, None, zero_rate=0.03, replace_rate=0.8, random_rate=0.1)


def mask_batch(
    batch: dict[str, Tensor],
    config: MaskingConfig,
    n_genes: int,
    seed: int,
    epoch: int,
    tell_hidden: bool = True,
) -> dict[str, Tensor]:
    """Hide some genes of every cell and name the ones to predict.

    Parameters
    ----------
    batch
        A ragged batch, see :class:`~scxtrimo.data.RaggedDataset`. If counts were taken away
        (:func:`thin_batch`), genes are expressed if something is left, and the genes to predict
        are to be predicted with all their counts.
    config
        How much to mask.
    n_genes
        Size of the vocabulary.
    seed, epoch
        Masks differ between seeds and between epochs.
    tell_hidden
        Whether there is a decoder over all genes, which must be told what is masked.

    Returns
    -------
    The batch with ``visible`` (bool per token); for the genes to predict ``target_counts``,
    ``target_gene_ids``, ``target_weights`` and ``target_cu_seqlens``; and for all that are
    masked, what a decoder over all genes is told, ``hidden_values`` (NaN for the mask),
    ``hidden_gene_ids`` and ``hidden_cu_seqlens``.

    Examples
    --------
    >>> import numpy as np
    >>> from scxtrimo.train import MaskingConfig
    >>> from scxtrimo.nn import mask_batch
    >>> from scxtrimo.pretraining import ragged_batch
    >>> batch = ragged_batch(adata.X, np.arange(8))  # of adata, all genes
    >>> masked = mask_batch(batch, MaskingConfig(), n_genes=adata.n_vars, seed=0, epoch=0)
    >>> bool(masked["visible"].all())
    False
    >>> masked["target_counts"].shape == masked["target_gene_ids"].shape
    True
    """
    gene_ids, cu_seqlens = batch["gene_ids"], batch["cu_seqlens"]
    input_counts_t = batch.get("input_counts", batch["counts"])
    cells_t = cells_of(cu_seqlens, gene_ids.shape[0])
    key_c = batch["cell_ids"]
    key_t = key_c[cells_t] * n_genes + gene_ids

    def uniform(key: Tensor, stream: int) -> Tensor:
        return hashed_uniform(key, seed, epoch, stream)

    rate_c = config.min_rate + (config.max_rate - config.min_rate) * uniform(key_c, RATE)
    expressed_t = input_counts_t > 0
    hidden_t = expressed_t & (uniform(key_t, VISIBLE) < rate_c[cells_t])
    target_t = hidden_t
    share_c = torch.ones_like(rate_c)
    if config.max_targets is not None:
        n_hidden_c = lengths_of(select_tokens(hidden_t, cu_seqlens))
        share_c = (config.max_targets / n_hidden_c.clamp(min=1)).clamp(max=1)
        target_t = hidden_t & (uniform(key_t, TARGET) < share_c[cells_t])

    if config.zero_rate is None:
        n_draws_c = lengths_of(select_tokens(target_t, cu_seqlens))
    else:
        # Draws of which this fraction of the genes is met at least once
        n_draws_c = torch.full_like(key_c, round(-n_genes * math.log(1 - config.zero_rate)))
    find = _TokenFinder(batch, n_genes)
    zero_cells = torch.repeat_interleave(torch.arange(len(key_c), device=key_c.device), n_draws_c)
    draw = torch.arange(len(zero_cells), device=key_c.device)
    draw = draw - (n_draws_c.cumsum(0) - n_draws_c)[zero_cells]
    drawn = uniform(key_c[zero_cells] * n_genes + draw, ZERO)
    zero_genes = (drawn * n_genes).long().clamp(max=n_genes - 1)
    distinct = torch.unique(zero_cells * n_genes + zero_genes)
    zero_cells, zero_genes = distinct // n_genes, distinct % n_genes
    unexpressed = find(input_counts_t, zero_cells, zero_genes) == 0
    zero_cells, zero_genes = zero_cells[unexpressed], zero_genes[unexpressed]
    zero_counts = find(batch["counts"], zero_cells, zero_genes)  # not 0 if they were taken away

    def with_zeros(chosen_t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cells, genes and counts of expressed and unexpressed genes, and cell boundaries."""
        cells = torch.cat([cells_t[chosen_t], zero_cells])
        order = torch.argsort(cells, stable=True)
        boundaries = torch.zeros_like(cu_seqlens)
        boundaries[1:] = torch.bincount(cells, minlength=len(key_c)).cumsum(0)
        genes = torch.cat([gene_ids[chosen_t], zero_genes])[order]
        counts = torch.cat([batch["counts"][chosen_t], zero_counts])[order]
        return cells[order], genes, counts, boundaries

    target_cells, target_genes, target_counts, target_cu = with_zeros(target_t)
    target_weights = torch.ones_like(target_counts)
    if config.natural_weights:
        was_zero = find(input_counts_t, target_cells, target_genes) == 0
        zero_share_c = -torch.expm1(-n_draws_c / n_genes)
        target_weights = 1 / torch.where(
            was_zero, zero_share_c[target_cells], share_c[target_cells]
        )
    masked = batch | {
        "visible": ~hidden_t,
        "target_counts": target_counts,
        "target_gene_ids": target_genes,
        "target_cu_seqlens": target_cu,
        "target_weights": target_weights,
    }
    if not tell_hidden:
        return masked
    cells_h, genes_h, _, cu_h = with_zeros(hidden_t)
    fate_h = uniform(key_c[cells_h] * n_genes + genes_h, FATE)
    values_h = torch.full_like(fate_h, torch.nan)
    if config.replace_rate < 1:
        n_tokens_h = lengths_of(cu_seqlens)[cells_h].long()
        drawn = uniform(key_c[cells_h] * n_genes + genes_h, DONOR)
        donors_h = cu_seqlens[cells_h] + torch.minimum((drawn * n_tokens_h).long(), n_tokens_h - 1)
        own_h = find(input_counts_t, cells_h, genes_h)
        is_random_h = fate_h < config.replace_rate + config.random_rate
        counts_h = torch.where(is_random_h, input_counts_t[donors_h], own_h)
        library_c = batch.get("input_library_size", batch["library_size"])
        told_h = normalize_counts(counts_h, library_c[cells_h])
        values_h = torch.where(fate_h < config.replace_rate, values_h, told_h)
    return masked | {
        "hidden_values": values_h,
        "hidden_gene_ids": genes_h,
        "hidden_cu_seqlens": cu_h,
    }


class _TokenFinder:
    """Look up what is known per token by cell and gene."""

    def __init__(self, batch: dict[str, Tensor], n_genes: int) -> None:
        self.n_genes = n_genes
        cells_t = cells_of(batch["cu_seqlens"], len(batch["gene_ids"]))
        self.keys, self.order = torch.sort(cells_t * n_genes + batch["gene_ids"])

    def __call__(self, values_t: Tensor, cells: Tensor, genes: Tensor) -> Tensor:
        """Return the values of the tokens, 0 for genes that are none."""
        wanted = cells * self.n_genes + genes
        place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[place] == wanted, values_t[self.order[place]], 0.0)
