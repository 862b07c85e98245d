"""Which genes of a cell are hidden from the encoder, and which must be predicted.

All draws are a pure function of (seed, epoch, cell, gene): the masks of a cell do not depend on
the other cells of its batch, and a training that is resumed sees the masks it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from .layers import normalize_counts
from .ragged import RaggedBatch, cells_of, lengths_of, select_tokens, sum_per_cell
from .ranges import Fraction, PositiveInt, Probability

RATE, VISIBLE, TARGET, ZERO, FATE, DONOR = range(6)  # independent streams of random numbers
WHETHER, MEDIAN, MOLECULE, HALF = 10, (11, 12, 13), 14, 15
DEPTH, WHETHER_PANEL, WIDTH, ON_PANEL = 16, 17, 18, 19
FEWEST_COUNTS = 200
EXACT_UP_TO = 256
GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the constants of SplitMix64, as int64


@dataclass(frozen=True)
class Masking:
    """How genes are masked in training."""

    min_rate: Fraction = 0.0
    """The fraction of a cell's expressed genes that is masked is drawn uniformly from
    ``min_rate`` to ``max_rate``, anew for every cell and epoch."""
    max_rate: Fraction = 0.5
    max_targets: PositiveInt | None = 16
    """Masked expressed genes per cell that must be predicted, on average at most; ``None`` for
    all."""
    zero_rate: Fraction | None = None
    """Fraction of the unexpressed genes that is masked and must be predicted. By default as many
    genes are drawn as there are expressed targets."""
    replace_rate: Probability = 1.0
    """What a Performer finds in place of a masked value: the mask, with probability
    ``replace_rate``; the value of another gene of the cell, with probability ``random_rate``;
    otherwise the true value. The encoder sees none of these genes."""
    random_rate: Probability = 0.0
    thinning_probability: Probability = 0.5
    """In a model that is aware of the read depth: part of the cells that lose counts before they
    are encoded, see :func:`thin_batch`."""
    natural_weights: bool = False
    """Weight targets by the inverse of the rate at which they are drawn, so that the decoder
    predicts means over all genes that the encoder does not see. Without, expressed genes count
    for more than there are."""


def mask_batch(
    batch: RaggedBatch,
    masking: Masking,
    n_genes: int,
    seed: int,
    epoch: int,
    tell_hidden: bool = True,
) -> RaggedBatch:
    """Hide some genes of every cell and name the ones to predict.

    Adds ``visible``, ``target_*`` and, for a decoder over all genes (``tell_hidden``),
    ``hidden_*``. After :func:`thin_batch` genes are expressed if something is left, and are to be
    predicted with all their counts.
    """
    gene_ids, cu_seqlens = batch["gene_ids"], batch["cu_seqlens"]
    input_counts_t = batch.get("input_counts", batch["counts"])
    cells_t = cells_of(cu_seqlens, gene_ids.shape[0])
    key_c = batch["cell_ids"]
    key_t = key_c[cells_t] * n_genes + gene_ids
    uniform = partial(hashed_uniform, seed=seed, epoch=epoch)
    rate_c = masking.min_rate + (masking.max_rate - masking.min_rate) * uniform(key_c, stream=RATE)
    hidden_t = (input_counts_t > 0) & (uniform(key_t, stream=VISIBLE) < rate_c[cells_t])
    target_t = hidden_t
    share_c = torch.ones_like(rate_c)
    if masking.max_targets is not None:
        n_hidden_c = lengths_of(select_tokens(hidden_t, cu_seqlens))
        share_c = (masking.max_targets / n_hidden_c.clamp(min=1)).clamp(max=1)
        target_t = hidden_t & (uniform(key_t, stream=TARGET) < share_c[cells_t])

    token_keys = cells_t * n_genes + gene_ids
    if token_keys.device.type == "cpu" and (token_keys[1:] > token_keys[:-1]).all():
        order = torch.arange(len(token_keys))
    else:
        token_keys, order = torch.sort(token_keys)

    def find(values_t: Tensor, cells: Tensor, genes: Tensor) -> Tensor:
        """Look up what is known per token; 0 for genes that have no token."""
        wanted = cells * n_genes + genes
        place = torch.searchsorted(token_keys, wanted).clamp(max=len(token_keys) - 1)
        return torch.where(token_keys[place] == wanted, values_t[order[place]], 0.0)

    if masking.zero_rate is None:
        n_draws_c = lengths_of(select_tokens(target_t, cu_seqlens))
    else:
        # Draws of which this fraction of the genes is met at least once
        n_draws_c = torch.full_like(key_c, round(-n_genes * math.log(1 - masking.zero_rate)))
    zero_cells = torch.repeat_interleave(torch.arange(len(key_c), device=key_c.device), n_draws_c)
    draw = torch.arange(len(zero_cells), device=key_c.device)
    draw = draw - (n_draws_c.cumsum(0) - n_draws_c)[zero_cells]
    drawn = uniform(key_c[zero_cells] * n_genes + draw, stream=ZERO)
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
    if masking.natural_weights:
        was_zero = find(input_counts_t, target_cells, target_genes) == 0
        zero_share_c = -torch.expm1(-n_draws_c / n_genes)
        rate = torch.where(was_zero, zero_share_c[target_cells], share_c[target_cells])
        target_weights = 1 / rate
    masked = batch | RaggedBatch(
        visible=~hidden_t,
        target_counts=target_counts,
        target_gene_ids=target_genes,
        target_cu_seqlens=target_cu,
        target_weights=target_weights,
    )
    if not tell_hidden:
        return masked
    cells_h, genes_h, _, cu_h = with_zeros(hidden_t)
    fate_h = uniform(key_c[cells_h] * n_genes + genes_h, stream=FATE)
    values_h = torch.full_like(fate_h, torch.nan)
    if masking.replace_rate < 1:
        n_tokens_h = lengths_of(cu_seqlens)[cells_h].long()
        drawn = uniform(key_c[cells_h] * n_genes + genes_h, stream=DONOR)
        donors_h = cu_seqlens[cells_h] + torch.minimum((drawn * n_tokens_h).long(), n_tokens_h - 1)
        own_h = find(input_counts_t, cells_h, genes_h)
        is_random_h = fate_h < masking.replace_rate + masking.random_rate
        counts_h = torch.where(is_random_h, input_counts_t[donors_h], own_h)
        library_c = batch.get("input_library_size", batch["library_size"])
        told_h = normalize_counts(counts_h, library_c[cells_h])
        values_h = torch.where(fate_h < masking.replace_rate, values_h, told_h)
    return masked | RaggedBatch(
        hidden_values=values_h, hidden_gene_ids=genes_h, hidden_cu_seqlens=cu_h
    )


def thin_batch(
    batch: RaggedBatch, probability: float, n_genes: int, seed: int, epoch: int
) -> RaggedBatch:
    """Take counts away from some cells, as if they had been sequenced less deeply.

    With ``probability``, a cell keeps Binomial(x, b) of every x counts, b from Beta(2, 2) (Hao et
    al. 2024). Adds ``input_*``. A cell that would lose all counts keeps them.
    """
    key_c, cu_seqlens, counts_t = batch["cell_ids"], batch["cu_seqlens"], batch["counts"]
    uniform = partial(hashed_uniform, seed=seed, epoch=epoch)
    # The median of three uniform numbers has the distribution Beta(2, 2).
    rate_c = torch.stack([uniform(key_c, stream=stream) for stream in MEDIAN]).median(0).values
    rate_c = torch.where(uniform(key_c, stream=WHETHER) < probability, rate_c, 1.0)
    cells_t = cells_of(cu_seqlens, len(counts_t))
    key_t = key_c[cells_t] * n_genes + batch["gene_ids"]
    kept_t = binomial(counts_t, rate_c[cells_t], partial(uniform, stream=MOLECULE), key_t)
    total_c = sum_per_cell(kept_t, cu_seqlens)
    kept_t = torch.where((total_c > 0)[cells_t], kept_t, counts_t)
    total_c = torch.where(total_c > 0, total_c, batch["library_size"])
    return batch | RaggedBatch(input_counts=kept_t, input_library_size=total_c)


def lighten_batch(
    batch: RaggedBatch, thinning: float, panels: float, n_genes: int, seed: int, epoch: int
) -> RaggedBatch:
    """Take counts away from some cells, and genes from some, as if measured in another way.

    What is left is a tenth at least, on average; a cell keeps ``FEWEST_COUNTS``.
    """
    key_c, cu_seqlens, counts_t = batch["cell_ids"], batch["cu_seqlens"], batch["counts"]
    uniform = partial(hashed_uniform, seed=seed, epoch=epoch)
    cells_t = cells_of(cu_seqlens, len(counts_t))
    key_t = key_c[cells_t] * n_genes + batch["gene_ids"]
    fewest_c = (FEWEST_COUNTS / batch["library_size"]).clamp(max=1)

    def rate_of(probability: float, whether: int, how_far: int) -> Tensor:
        rate_c = (10 ** -uniform(key_c, stream=how_far)).maximum(fewest_c)
        return torch.where(uniform(key_c, stream=whether) < probability, rate_c, 1.0)[cells_t]

    rate_t = rate_of(thinning, WHETHER, DEPTH)
    loses_t = rate_t < 1
    kept_t = counts_t.clone()
    kept_t[loses_t] = binomial(
        counts_t[loses_t], rate_t[loses_t], partial(uniform, stream=MOLECULE), key_t[loses_t]
    )
    on_panel_t = uniform(key_t, stream=ON_PANEL) < rate_of(panels, WHETHER_PANEL, WIDTH)
    stays_t = (kept_t > 0) & on_panel_t
    # A cell that would lose all it has keeps it.
    n_left_c = lengths_of(select_tokens(stays_t, cu_seqlens))
    stays_t = stays_t | (n_left_c == 0)[cells_t]
    kept_t = torch.where((n_left_c == 0)[cells_t], counts_t, kept_t)[stays_t]
    boundaries = select_tokens(stays_t, cu_seqlens)
    return batch | RaggedBatch(
        counts=kept_t,
        gene_ids=batch["gene_ids"][stays_t],
        cu_seqlens=boundaries,
        library_size=sum_per_cell(kept_t, boundaries),
    )


def split_counts(batch: RaggedBatch, n_genes: int, seed: int) -> tuple[RaggedBatch, RaggedBatch]:
    """Deal the counts of every cell out to two halves, molecule by molecule.

    Totals include counts of genes outside the vocabulary, half of which go to each.
    """
    counts_t, cu_seqlens = batch["counts"], batch["cu_seqlens"]
    cells_t = cells_of(cu_seqlens, len(counts_t))
    key_t = batch["cell_ids"][cells_t] * n_genes + batch["gene_ids"]
    uniform = partial(hashed_uniform, seed=seed, epoch=-1, stream=HALF)
    first_t = binomial(counts_t, torch.full_like(counts_t, 0.5), uniform, key_t)
    outside_c = batch["library_size"] - sum_per_cell(counts_t, cu_seqlens)
    halves = []
    for half_t in (first_t, counts_t - first_t):
        total_c = sum_per_cell(half_t, cu_seqlens) + outside_c / 2
        kept_t = half_t > 0
        halves.append(
            batch
            | RaggedBatch(
                counts=half_t[kept_t],
                gene_ids=batch["gene_ids"][kept_t],
                cu_seqlens=select_tokens(kept_t, cu_seqlens),
                library_size=total_c.clamp(min=1),
            )
        )
    return halves[0], halves[1]


def binomial(
    counts_t: Tensor, rates_t: Tensor, uniform: Callable[[Tensor], Tensor], key_t: Tensor
) -> Tensor:
    """Keep each of ``counts_t`` molecules with probability ``rates_t``; many approximately."""
    is_large_t = counts_t > EXACT_UP_TO
    n_t = torch.where(is_large_t, 0, counts_t).long()
    token_m = torch.repeat_interleave(torch.arange(len(n_t), device=n_t.device), n_t)
    number_m = torch.arange(len(token_m), device=n_t.device) - (n_t.cumsum(0) - n_t)[token_m]
    kept_m = uniform(key_t[token_m] * (EXACT_UP_TO + 1) + number_m) < rates_t[token_m]
    kept_t = torch.zeros_like(counts_t).index_add(0, token_m, kept_m.to(counts_t.dtype))
    if not is_large_t.any():
        return kept_t
    u_t = uniform(key_t * (EXACT_UP_TO + 1)).clamp(min=2.0**-25)
    mean_t, variance_t = counts_t * rates_t, counts_t * rates_t * (1 - rates_t)
    normal_t = torch.special.ndtri(u_t.double()).to(counts_t.dtype)
    approximate_t = (mean_t + variance_t.sqrt() * normal_t).round().clamp(min=0)
    return torch.where(is_large_t, torch.minimum(approximate_t, counts_t), kept_t)


def hashed_uniform(key: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    """Return numbers in [0, 1) that are a pure function of int64 keys and the other arguments."""
    x = _mix((key + _offset(seed, epoch, stream)) * GOLDEN)
    return _shift(x, 40).to(torch.float32) * 2.0**-24


@cache
def _offset(seed: int, epoch: int, stream: int) -> int:
    x = torch.tensor(0)
    for number in (seed, epoch, stream):
        x = _mix(x + number + GOLDEN)
    return int(x)


def _mix(x: Tensor) -> Tensor:
    """Mix int64 numbers with the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch shifts int64 arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
