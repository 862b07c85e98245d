"""Take counts away, as if a cell had been sequenced less deeply."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .hashing import hashed_uniform
from .ragged import cells_of, sum_per_cell

WHETHER, MEDIAN, MOLECULE = 10, (11, 12, 13), 14  # streams of random numbers, not those of masks
EXACT_UP_TO = 256


def thin_batch(
    batch: dict[str, Tensor], probability: float, n_genes: int, seed: int, epoch: int
) -> dict[str, Tensor]:
    r"""Keep a random part of the counts of some cells.

    .. math::
        \gamma_c \sim \mathrm{Bernoulli}(p), \quad b_c \sim \mathrm{Beta}(2, 2), \quad
        x'_{cg} \sim \mathrm{Binomial}(x_{cg}, b_c)
        \text{ where } \gamma_c = 1 \text{, else } x_{cg}

    Parameters
    ----------
    batch
        A ragged batch, see :class:`~scxtrimo.data.RaggedDataset`.
    probability
        Which part of the cells is thinned, :math:`p`.
    n_genes
        Size of the vocabulary.
    seed, epoch
        The draws differ between seeds and between epochs; those of a cell do not depend on the
        other cells.

    Returns
    -------
    The batch with ``input_counts`` per token and ``input_library_size`` per cell. A cell that
    would lose all counts keeps them.

    Notes
    -----
    Hao et al. 2024, read-depth-aware pretraining.

    Examples
    --------
    >>> import numpy as np
    >>> from scxtrimo.pretraining import ragged_batch
    >>> from scxtrimo.nn import thin_batch
    >>> batch = ragged_batch(adata.X, np.arange(8))  # of adata, all genes
    >>> thinned = thin_batch(batch, probability=1.0, n_genes=adata.n_vars, seed=0, epoch=0)
    >>> bool((thinned["input_counts"] <= batch["counts"]).all())
    True
    >>> bool((thinned["input_library_size"] < batch["library_size"]).all())
    True
    """
    key_c, cu_seqlens, counts_t = batch["cell_ids"], batch["cu_seqlens"], batch["counts"]

    def uniform(key: Tensor, stream: int) -> Tensor:
        return hashed_uniform(key, seed, epoch, stream)

    # The median of three uniform numbers has the distribution Beta(2, 2).
    rate_c = torch.stack([uniform(key_c, stream) for stream in MEDIAN]).median(0).values
    rate_c = torch.where(uniform(key_c, WHETHER) < probability, rate_c, 1.0)
    cells_t = cells_of(cu_seqlens, len(counts_t))
    key_t = key_c[cells_t] * n_genes + batch["gene_ids"]
    kept_t = binomial(counts_t, rate_c[cells_t], lambda key: uniform(key, MOLECULE), key_t)
    total_c = sum_per_cell(kept_t, cu_seqlens)
    kept_t = torch.where((total_c > 0)[cells_t], kept_t, counts_t)
    total_c = torch.where(total_c > 0, total_c, batch["library_size"])
    return batch | {"input_counts": kept_t, "input_library_size": total_c}


def binomial(
    counts_t: Tensor, rates_t: Tensor, uniform: Callable[[Tensor], Tensor], key_t: Tensor
) -> Tensor:
    """Keep every one of ``counts_t`` molecules with probability ``rates_t``.

    Molecules are drawn one by one; above 256 of a gene, the normal approximation is used.

    Parameters
    ----------
    counts_t, rates_t
        Number of molecules and probability per token.
    uniform
        From int64 keys to random numbers in [0, 1).
    key_t
        A key per token.
    """
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
