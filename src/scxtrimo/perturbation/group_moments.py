"""Mean expression of groups of cells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import sparse

from ..data.counts import log_normalized

MIN_SD = 0.01
"""Least standard deviation of a gene between cells: a gene that no cell expresses has one too."""


class GroupMoments(NamedTuple):
    """Log-normalised expression of groups of cells.

    Parameters
    ----------
    n_cells
        Cells of every group, int64, shape ``(n_groups,)``.
    mean
        float64, shape ``(n_groups, n_genes)``.
    variance
        Variance within groups, float64, shape ``(n_groups, n_genes)``.
    expressing
        Fraction of the cells that express a gene, float64, shape ``(n_groups, n_genes)``.

    Examples
    --------
    >>> import numpy as np
    >>> from scxtrimo.perturbation.group_moments import group_moments
    >>> codes = adata.obs["bulk_labels"].cat.codes.to_numpy()
    >>> moments = group_moments([adata.X], codes, n_groups=10)
    >>> moments.mean.shape, int(moments.n_cells.sum())
    ((10, 765), 700)
    """

    n_cells: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    expressing: np.ndarray


def group_moments(
    chunks: Iterable[sparse.csr_matrix],
    codes: np.ndarray,
    n_groups: int,
    totals: np.ndarray | None = None,
    columns: np.ndarray | None = None,
) -> GroupMoments:
    """Return means and variances of ``log1p`` of counts per 10,000, group by group.

    Parameters
    ----------
    chunks
        Counts of all cells in their order, a part of them at a time.
    codes
        Group of every cell, int64, shape ``(n_cells,)``; -1 for none.
    n_groups
        Number of groups.
    totals
        Total counts of the cells, shape ``(n_cells,)``; by default the sums of the rows.
    columns
        Which of the columns to look at, after normalisation; by default all.

    Returns
    -------
    The moments of every group.

    Examples
    --------
    >>> import numpy as np
    >>> from scxtrimo.perturbation.group_moments import group_moments
    >>> codes = adata.obs["bulk_labels"].cat.codes.to_numpy()
    >>> moments = group_moments([adata.X], codes, n_groups=10)
    >>> bool((moments.mean[moments.expressing == 0] == 0).all())
    True
    """
    sums: list[np.ndarray] = []
    start = 0
    for chunk in chunks:
        rows = slice(start, start := start + chunk.shape[0])
        logged = log_normalized(chunk, None if totals is None else totals[rows])
        if columns is not None:
            logged = logged[:, columns]
        squares, ones = logged.copy(), logged.copy()
        squares.data, ones.data = np.square(logged.data), np.ones_like(logged.data)
        members = np.flatnonzero(codes[rows] >= 0)
        present, place = np.unique(codes[rows][members], return_inverse=True)
        of_group = sparse.csr_matrix(
            (np.ones(len(members)), (place, members)), shape=(len(present), chunk.shape[0])
        )
        sums = sums or [np.zeros((n_groups, logged.shape[1])) for _ in range(3)]
        for total, values in zip(sums, (logged, squares, ones), strict=True):
            total[present] += (of_group @ values).toarray()
    n_cells = np.bincount(codes[codes >= 0], minlength=n_groups)
    mean, mean_square, expressing = (total / np.maximum(n_cells, 1)[:, None] for total in sums)
    variance = np.maximum(mean_square - mean**2, 0)
    variance *= (n_cells / np.maximum(n_cells - 1, 1))[:, None]
    return GroupMoments(n_cells, mean, variance, expressing)


def pooled_sd(*groups: GroupMoments) -> np.ndarray:
    """Return the standard deviation of genes within groups of cells, shape ``(n_genes,)``.

    Parameters
    ----------
    *groups
        Moments of groups of cells.
    """
    degrees = [np.maximum(moments.n_cells - 1, 0) for moments in groups]
    within = sum(d @ moments.variance for d, moments in zip(degrees, groups, strict=True))
    return np.sqrt(within / max(sum(d.sum() for d in degrees), 1) + MIN_SD**2)
