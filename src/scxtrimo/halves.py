"""Split halves: what one half of a cell's counts says about the other.

The noise of the two halves is independent, so that what they share is signal. This needs no labels
and can be asked of any representation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from torch import Tensor

MIN_CELLS = 20
PRIOR_CELLS = 50.0  # how many cells the average over all components counts for
LEAST_WEIGHT = 0.4
RIDGE = 1.0
CELLS_AT_A_TIME = 1000


class Halves(NamedTuple):
    """Two halves of the counts of some cells, and what a model makes of both."""

    vectors: list[Tensor]  # cell vectors
    measured: list[Tensor]  # principal components, not centred
    expression: sparse.csr_matrix  # of the second half, scaled as for the components
    batches: Tensor


def measured_weights(first_ck: Tensor, second_ck: Tensor) -> Tensor:
    """Return how much to trust what was measured of each component, shape ``(n_latent,)``.

    ``first_ck`` and ``second_ck`` have what two halves of the counts of held-out cells measure
    beyond what is predicted. What the halves share is signal, and a part :math:`r` of the variance
    of one; of the variance of all counts it is :math:`2 r / (1 + r)` (Spearman and Brown), the
    weight that would leave the least error. Clusters and neighbours want some of the noise, so
    that weights lie between 0.4 and 1; see docs/defaults.md.
    """
    first, second = first_ck.double(), second_ck.double()
    n_cells = len(first)
    first, second = first - first.mean(0), second - second.mean(0)
    shared_k = (first * second).mean(0)
    variance_k = (first.square() + second.square()).mean(0) / 2
    average = shared_k.sum() / variance_k.sum().clamp(min=1e-12)
    reliability_k = shared_k / variance_k.clamp(min=1e-12)
    reliability_k = (n_cells * reliability_k + PRIOR_CELLS * average) / (n_cells + PRIOR_CELLS)
    reliability_k = reliability_k.clamp(0, 1)
    signal_k = 2 * reliability_k / (1 + reliability_k)
    return (LEAST_WEIGHT + (1 - LEAST_WEIGHT) * signal_k).float()


def explained(
    known: np.ndarray,
    expression: sparse.csr_matrix,
    held_out_known: np.ndarray,
    held_out_expression: sparse.csr_matrix,
) -> float:
    """Return the part of the variance of ``held_out_expression`` that a linear map predicts.

    The map, from what is known of a cell to the expression in its other half, is fitted to other
    cells.
    """
    scale = float(np.max(known.std(axis=0)))
    mean, expected = known.mean(axis=0), np.asarray(expression.mean(axis=0)).ravel()
    x, x_new = (known - mean) / scale, (held_out_known - mean) / scale
    # Centring y would make it dense: as x is centred, x.T @ y is the same without.
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), (expression.T @ x).T)
    error = total = 0.0
    for start in range(0, len(x_new), CELLS_AT_A_TIME):
        rows = slice(start, start + CELLS_AT_A_TIME)
        centred = held_out_expression[rows].toarray() - expected
        error += np.square(centred - x_new[rows] @ weights).sum()
        total += np.square(centred).sum()
    return 1 - error / total
