"""Numbers that say whether cells are the same, or still what they were."""

from __future__ import annotations

import numpy as np
from scipy import sparse

CELLS_AT_A_TIME = 128


def hash_cells(counts: np.ndarray, gene_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
    """Return a number per cell that is equal for equal counts of the same genes.

    Parameters
    ----------
    counts, gene_ids, cu_seqlens
        A ragged batch, see :class:`RaggedDataset`.

    Returns
    -------
    uint64, shape ``(n_cells,)``. The order of the genes does not matter.
    """
    with np.errstate(over="ignore"):
        x = gene_ids.astype(np.uint64) << np.uint64(32) | counts.astype(np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(x, dtype=np.uint64)])
        return total[cu_seqlens[1:]] - total[cu_seqlens[:-1]]


def gene_weights(n_genes: int) -> np.ndarray:
    """Return a fixed random number per gene, uint64, that checksums weigh its counts with."""
    return np.random.default_rng(0).integers(0, 2**64, n_genes, dtype=np.uint64)


def checksums(counts: sparse.csr_matrix, weights: np.ndarray) -> np.ndarray:
    """Return a number per cell that other counts, or the same of other genes, would change.

    Codecs do not notice everything: where a file is missing zarr fills in zeros, and zarrs leaves
    the checksums of parts of chunks alone.

    Parameters
    ----------
    counts
        Counts without empty cells.
    weights
        See :func:`gene_weights`.

    Returns
    -------
    uint32, shape ``(n_cells,)``.
    """
    starts = counts.indptr[:-1]
    if len(starts) == 0 or (np.diff(counts.indptr) == 0).any():
        return np.zeros(len(starts), np.uint32)
    sums = np.empty(len(starts), np.uint64)
    for first in range(0, len(starts), CELLS_AT_A_TIME):  # what is small stays in the cache
        place = slice(first, first + CELLS_AT_A_TIME)
        ends = counts.indptr[first : place.stop + 1]
        tokens = slice(ends[0], ends[-1])
        weighted = weights[counts.indices[tokens]]
        weighted *= counts.data[tokens].astype(np.uint64)
        sums[place] = np.add.reduceat(weighted, ends[:-1] - ends[0])
    return (sums >> np.uint64(32)).astype(np.uint32)
