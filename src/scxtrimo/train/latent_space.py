"""Fit the latent space to the training cells, after training."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from ..latent import MAX_CLUSTERS, LatentSpace, Panel, memberships

RIDGE = 1.0
CELLS_PER_CLUSTER = 30
QUERY_ROUNDS = 5


def fit_latent_space(
    space: LatentSpace, latent_cz: Tensor, components_ck: Tensor, batch_c: Tensor, seed: int
) -> None:
    """Learn to predict components from cell vectors, and what batches differ in.

    Parameters
    ----------
    space
        What to fit, on the CPU; its principal components are there already.
    latent_cz
        Cell vectors of training cells, shape ``(n_cells, n_latent)``.
    components_ck
        Their measured principal components, centred, shape ``(n_cells, n_components)``.
    batch_c
        Their batches, int64, shape ``(n_cells,)``; -1 for one the model does not know.
    seed
        Seed of the clusters.

    Notes
    -----
    Batches are integrated with Harmony (Korsunsky et al. 2019). Of its result only the clusters
    are used: their centres in all batches make a correction that applies to other cells as well,
    as in Symphony (Kang et al. 2021). If the space was fitted before and cells of a batch are
    missing this time, the clusters and what is known of the batches stay.
    """
    n_batches, n_latent = space.batch_offset.shape
    is_batch = (batch_c[:, None] == torch.arange(n_batches)).double()
    fraction_b = is_batch.mean(0)
    ridge = Ridge(alpha=RIDGE).fit(
        torch.cat([latent_cz.double(), is_batch], dim=1).numpy(), components_ck.double().numpy()
    )
    coefficients = torch.from_numpy(np.atleast_2d(ridge.coef_))
    offset_bk = coefficients[:, n_latent:].T
    average_k = fraction_b @ offset_bk  # goes to the bias: no offset on average
    is_new_b1 = (fraction_b > 0)[:, None]
    known_bk = space.batch_offset if space.is_fitted else torch.zeros_like(space.batch_offset)
    space.set(
        weight=coefficients[:, :n_latent],
        bias=torch.from_numpy(np.atleast_1d(ridge.intercept_)) + average_k,
        batch_offset=torch.where(is_new_b1, (offset_bk - average_k).to(known_bk), known_bk),
    )
    if space.is_fitted and not is_new_b1.all():
        return
    everything = Panel(torch.zeros(n_latent), torch.eye(n_latent))
    predicted_ck, surprise_ck = space.compare(latent_cz, components_ck, everything, batch_c)
    known = batch_c >= 0
    if not known.any():  # all cells are of batches the model does not know
        batch_c = torch.zeros_like(batch_c)
        known = batch_c == 0
    mixed_ck = (predicted_ck + space.measured_weight * surprise_ck)[known]
    p_cn = _clusters(mixed_ck, batch_c[known], seed)
    mean_bnk, trust_bn1 = _means(p_cn, mixed_ck, batch_c[known], n_batches)
    centers_nk = (trust_bn1 * mean_bnk).sum(0) / trust_bn1.sum(0).clamp(min=1e-8)
    space.set(
        centers=centers_nk,
        shifts=trust_bn1 * (mean_bnk - centers_nk),
        is_cluster=torch.ones(len(centers_nk)),
    )


def map_batches(
    space: LatentSpace, latent_cz: Tensor, measured_ck: Tensor, panel: Panel, batch_c: Tensor
) -> Tensor:
    """Return the latent representation of cells of other batches, moved to the training cells.

    Parameters
    ----------
    space
        Fitted to the training cells.
    latent_cz, measured_ck, panel
        See :meth:`~scxtrimo.latent.LatentSpace.forward`.
    batch_c
        Batches of the query, numbered from 0, int64, shape ``(n_cells,)``.

    Notes
    -----
    As in Symphony (Kang et al. 2021), except that clusters and what the batch shifts them by are
    looked for in turn.
    """
    centers_nk = space.centers[space.is_cluster]
    result_ck = torch.empty_like(measured_ck)
    for batch in batch_c.unique().tolist():
        rows = batch_c == batch
        predicted_ck, surprise_ck = space.compare(latent_cz[rows], measured_ck[rows], panel)
        surprise_ck = surprise_ck - surprise_ck.mean(0)  # the offset of the batch
        mixed_ck = predicted_ck + space.measured_weight * surprise_ck
        one_batch_c = torch.zeros(len(mixed_ck), dtype=torch.int64)
        shift_nk = torch.zeros_like(centers_nk)
        for _ in range(QUERY_ROUNDS):
            p_cn = memberships(mixed_ck, centers_nk + shift_nk)
            mean_bnk, trust_bn1 = _means(p_cn, mixed_ck, one_batch_c, 1)
            shift_nk = (trust_bn1 * (mean_bnk - centers_nk))[0]
        result_ck[rows] = mixed_ck - p_cn @ shift_nk
    return result_ck


def _clusters(mixed_ck: Tensor, batch_c: Tensor, seed: int) -> Tensor:
    """Return the probability of each cell to be in each cluster, shared by the batches."""
    n_clusters = int(np.clip(len(mixed_ck) / CELLS_PER_CLUSTER, 1, MAX_CLUSTERS))
    if len(batch_c.unique()) == 1 or n_clusters == 1:
        directions = nn.functional.normalize(mixed_ck).numpy()
        with threadpool_limits(1):  # sums in one order: results repeat
            means = KMeans(n_clusters, n_init=1, random_state=seed).fit(directions)
        return memberships(mixed_ck, torch.from_numpy(means.cluster_centers_))
    import harmonypy  # takes a moment, and most models have no batches

    harmony = harmonypy.run_harmony(
        mixed_ck.T.double().numpy(),
        pd.DataFrame({"batch": batch_c.numpy().astype(str)}),
        "batch",
        nclust=n_clusters,
        random_state=seed,
        verbose=False,
        ncores=1,
    )
    return torch.from_numpy(np.asarray(harmony.R)).float()


def _means(
    p_cn: Tensor, mixed_ck: Tensor, batch_c: Tensor, n_batches: int
) -> tuple[Tensor, Tensor]:
    """Return the mean of every cluster in every batch, and how far to trust it.

    A cluster with hardly a cell in a batch is not shifted there; one cell counts half.
    """
    n_bn = p_cn.new_zeros(n_batches, p_cn.shape[1]).index_add_(0, batch_c, p_cn)
    sums = [p_cn[batch_c == b].T @ mixed_ck[batch_c == b] for b in range(n_batches)]
    n_bn1 = n_bn.unsqueeze(-1)
    return torch.stack(sums) / n_bn1.clamp(min=1e-8), n_bn1 / (n_bn1 + 1)
