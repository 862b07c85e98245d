"""Principal components of the training cells.

Training starts from them; afterwards they become the latent representation: measured, predicted
from the cell vector, weighed by what two halves of a cell's counts agree on, and integrated across
batches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeCV
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from .data.counts import RowReader, log_normalized
from .data.dataset import category_codes, state_of
from .data.fields import CountsField
from .nn.layers import normalize_counts
from .nn.ragged import EncodedCells, RaggedBatch, select_tokens, sum_per_cell, to_tokens
from .nn.xtrimogene import BottleneckDecoder, XTrimoGeneModule

MAX_SCALED_VALUE = 10.0
MAX_CLUSTERS = 100
SHARPNESS = 20.0
RIDGE = 1.0
MIN_HELD_OUT = 20
PRIOR_CELLS = 50.0  # how many cells the average over all components counts for
LEAST_WEIGHT, LEAST_BESIDE_PRETRAINED = 0.6, 0.5
RELIABILITY_POWER, LEAST_RELIABILITY = 0.25, 0.01
VECTOR_PENALTIES = tuple(np.logspace(-1, 4, 16))  # cell vectors have a spread of 1
ALMOST_FREE = 100.0
CELLS_TO_TRUST = 300.0  # with fewer, components are weighed down by more than a half
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)  # a component with the largest spread has 1
CELLS_PER_CLUSTER = 30
QUERY_ROUNDS = 5
CALIBRATION_ROUNDS, CALIBRATION_CELLS, MASKED_CELLS = 3, 500, 200
MAX_CELLS = 20_000
MIN_EXPRESSING = 3
MIN_CELLS = 20
MIN_SPREAD = 1e-3  # variance of a scaled gene, smaller only if nearly all values are cut off


class Explained(NamedTuple):
    """Part of the variance of one half of the counts of held-out cells that the other predicts."""

    representation: float
    components: float  # as many principal components alone
    network: float  # the predicted components alone

    @property
    def knowledge(self) -> float:
        """What the network knows of the cells, as a part of what their components do."""
        return self.network / max(self.components, 1e-12)


class Panel(NamedTuple):
    """What the genes that some data have mean for their principal components."""

    center_k: Tensor  # components of the average training cell on these genes
    coverage_kk: Tensor  # how much of each component they make up: the identity if all are there


class LatentSpace(nn.Module):
    """Principal components of a cell, partly measured, partly predicted; see docs/model.md."""

    measured_weight: Tensor
    inverse_std: Tensor
    scaled_mean: Tensor
    loadings: Tensor
    weight: Tensor
    bias: Tensor
    batch_offset: Tensor
    centers: Tensor
    shifts: Tensor
    is_cluster: Tensor

    def __init__(
        self,
        n_genes: int,
        n_components: int,
        n_batches: int = 1,
        measured_weight: float | None = None,
        n_predictors: int | None = None,
    ) -> None:
        super().__init__()
        self.finds_weights = measured_weight is None
        initial = LEAST_WEIGHT if measured_weight is None else measured_weight
        self.register_buffer("measured_weight", torch.full((n_components,), initial))
        self.register_buffer("inverse_std", torch.zeros(n_genes))
        self.register_buffer("scaled_mean", torch.zeros(n_genes))
        self.register_buffer("loadings", torch.zeros(n_genes, n_components))
        self.register_buffer("weight", torch.zeros(n_components, n_predictors or n_components))
        self.register_buffer("bias", torch.zeros(n_components))
        self.register_buffer("batch_offset", torch.zeros(n_batches, n_components))
        self.register_buffer("centers", torch.zeros(MAX_CLUSTERS, n_components))
        self.register_buffer("shifts", torch.zeros(n_batches, MAX_CLUSTERS, n_components))
        self.register_buffer("is_cluster", torch.zeros(MAX_CLUSTERS, dtype=torch.bool))

    def set(self, **tensors: Tensor) -> None:
        """Fill buffers by name; fewer components or clusters than there is room for are padded."""
        for name, tensor in tensors.items():
            buffer = getattr(self, name)
            buffer.zero_()
            buffer[tuple(slice(n) for n in tensor.shape)] = tensor.to(buffer)

    @property
    def is_fitted(self) -> bool:
        """Whether the space was fitted to training cells."""
        return bool(self.is_cluster.any())

    def panel(self, measured: Tensor | None = None) -> Panel:
        """Return what the genes of some data (bool, by default all) mean for the components."""
        is_used = self.inverse_std > 0
        if measured is not None:
            is_used = is_used & measured
        loadings_uk = self.loadings[is_used]
        return Panel(self.scaled_mean[is_used] @ loadings_uk, loadings_uk.T @ loadings_uk)

    def measure(self, batch: RaggedBatch) -> Tensor:
        """Return the components of the counts of a ragged batch, not centred."""
        scaled_t, ids_t, cu_seqlens = self.scaled(batch)
        return sum_per_cell(scaled_t[:, None] * self.loadings[ids_t], cu_seqlens)

    def scaled(self, batch: RaggedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the expression that components are made of: values, genes, cell boundaries."""
        keep = self.inverse_std[batch["gene_ids"]] > 0
        counts_t, ids_t = batch["counts"][keep], batch["gene_ids"][keep]
        cu_seqlens = select_tokens(keep, batch["cu_seqlens"])
        library_size_t = to_tokens(batch["library_size"], cu_seqlens, len(counts_t))
        values_t = normalize_counts(counts_t, library_size_t)
        scaled_t = (values_t * self.inverse_std[ids_t]).clamp(max=MAX_SCALED_VALUE)
        return scaled_t, ids_t, cu_seqlens

    def forward(
        self,
        known_cp: Tensor,
        measured_ck: Tensor,
        panel: Panel,
        batch_c: Tensor | None = None,
        measured_weight: Tensor | float | None = None,
    ) -> Tensor:
        """Return the latent representation, of which known batches (not -1) are integrated."""
        predicted_ck, surprise_ck = self.compare(known_cp, measured_ck, panel, batch_c)
        weight = self.measured_weight if measured_weight is None else measured_weight
        mixed_ck = predicted_ck + weight * surprise_ck
        return mixed_ck if batch_c is None else self.integrate(mixed_ck, batch_c)

    def predict(self, known_cp: Tensor) -> Tensor:
        """Predict the components from what the network knows, without offsets of batches."""
        return known_cp @ self.weight.T + self.bias

    def compare(
        self, known_cp: Tensor, measured_ck: Tensor, panel: Panel, batch_c: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return predicted components, and measured minus expected ones."""
        expected_ck = predicted_ck = self.predict(known_cp)
        if batch_c is not None:
            is_known_c1 = (batch_c >= 0)[:, None]
            offset_ck = self.batch_offset[batch_c.clamp(min=0)] * is_known_c1
            expected_ck = predicted_ck + offset_ck
        # Of genes that the data do not have, the components hold what is predicted.
        return predicted_ck, measured_ck - panel.center_k - expected_ck @ panel.coverage_kk

    def integrate(self, mixed_ck: Tensor, batch_c: Tensor) -> Tensor:
        """Take away what the clusters of the batches differ in."""
        centers_nk, shifts_bnk = self.centers[self.is_cluster], self.shifts[:, self.is_cluster]
        result_ck = mixed_ck.clone()
        for batch in batch_c.unique().tolist():
            if batch < 0:
                continue
            in_batch = batch_c == batch
            shift_nk = shifts_bnk[batch]
            p_cn = memberships(mixed_ck[in_batch], centers_nk + shift_nk)
            result_ck[in_batch] -= p_cn @ shift_nk
        return result_ck


def memberships(mixed_ck: Tensor, centers_nk: Tensor) -> Tensor:
    """Return the probability of each cell to be in each cluster, from cosines as in Harmony."""
    cosine_cn = nn.functional.normalize(mixed_ck) @ nn.functional.normalize(centers_nk).T
    return (SHARPNESS * cosine_cn).softmax(dim=1)


def regress(
    known_cp: Tensor,
    components_ck: Tensor,
    batch_c: Tensor,
    n_batches: int,
    is_pretrained: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return coefficients of predictors and batches, and intercepts, of the components.

    A pretrained network was not fitted to these cells, whose leave-one-out error can therefore
    choose a penalty for every component.
    """
    is_batch = (batch_c[:, None] == torch.arange(n_batches)).double()
    values_cp, ridge, unit = known_cp.double(), Ridge(alpha=RIDGE), 1.0
    if is_pretrained:
        ridge = RidgeCV(VECTOR_PENALTIES, alpha_per_target=True)
        unit = max(float(values_cp.std(0, correction=0).square().mean().sqrt()), 1e-8)
        is_batch = is_batch * ALMOST_FREE  # of the penalty
    ridge.fit(
        torch.cat([values_cp / unit, is_batch], dim=1).numpy(), components_ck.double().numpy()
    )
    coefficients = torch.from_numpy(np.atleast_2d(ridge.coef_)).clone()
    n_known = values_cp.shape[1]
    coefficients[:, :n_known] /= unit
    coefficients[:, n_known:] *= ALMOST_FREE if is_pretrained else 1
    return coefficients, torch.from_numpy(np.atleast_1d(ridge.intercept_))


def fit_prediction(
    space: LatentSpace,
    known_cp: Tensor,
    components_ck: Tensor,
    batch_c: Tensor,
    is_pretrained: bool = False,
) -> None:
    """Fit the prediction of components from the network, and the offsets of batches."""
    n_batches, n_known = len(space.batch_offset), known_cp.shape[1]
    fraction_b = (batch_c[:, None] == torch.arange(n_batches)).double().mean(0)
    coefficients, intercept_k = regress(known_cp, components_ck, batch_c, n_batches, is_pretrained)
    offset_bk = coefficients[:, n_known:].T
    average_k = fraction_b @ offset_bk  # goes to the bias: no offset on average
    is_new_b1 = (fraction_b > 0)[:, None]
    known_bk = space.batch_offset if space.is_fitted else torch.zeros_like(space.batch_offset)
    space.set(
        weight=coefficients[:, :n_known],
        bias=intercept_k + average_k,
        batch_offset=torch.where(is_new_b1, (offset_bk - average_k).to(known_bk), known_bk),
    )


def fit_clusters(
    space: LatentSpace, known_cp: Tensor, components_ck: Tensor, batch_c: Tensor, seed: int
) -> None:
    """Fit the clusters in which batches (-1: unknown) are compared."""
    n_batches, n_components = space.batch_offset.shape
    if space.is_fitted and len(batch_c[batch_c >= 0].unique()) < n_batches:
        return  # cells of a batch are missing now
    everything = Panel(torch.zeros(n_components), torch.eye(n_components))
    predicted_ck, surprise_ck = space.compare(known_cp, components_ck, everything, batch_c)
    known = batch_c >= 0
    if not known.any():  # all cells are of batches the model does not know
        batch_c = torch.zeros_like(batch_c)
        known = batch_c == 0
    mixed_ck = (predicted_ck + space.measured_weight * surprise_ck)[known]
    # Of Harmony only the clusters: with their centres other cells are corrected as well.
    p_cn = _clusters(mixed_ck, batch_c[known], seed)
    mean_bnk, trust_bn1 = _means(p_cn, mixed_ck, batch_c[known], n_batches)
    centers_nk = (trust_bn1 * mean_bnk).sum(0) / trust_bn1.sum(0).clamp(min=1e-8)
    space.set(
        centers=centers_nk,
        shifts=trust_bn1 * (mean_bnk - centers_nk),
        is_cluster=torch.ones(len(centers_nk)),
    )


def map_batches(
    space: LatentSpace, known_cp: Tensor, measured_ck: Tensor, panel: Panel, batch_c: Tensor
) -> Tensor:
    """Return cells of other batches, moved to the training cells as in Symphony (Kang 2021)."""
    centers_nk = space.centers[space.is_cluster]
    result_ck = torch.empty_like(measured_ck)
    for batch in batch_c.unique().tolist():
        rows = batch_c == batch
        predicted_ck, surprise_ck = space.compare(known_cp[rows], measured_ck[rows], panel)
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
    """Return the mean of every cluster in every batch, and how far to trust it: 1/2 for a cell."""
    n_bn = p_cn.new_zeros(n_batches, p_cn.shape[1]).index_add_(0, batch_c, p_cn)
    sums = [p_cn[batch_c == b].T @ mixed_ck[batch_c == b] for b in range(n_batches)]
    n_bn1 = n_bn.unsqueeze(-1)
    return torch.stack(sums) / n_bn1.clamp(min=1e-8), n_bn1 / (n_bn1 + 1)


def gene_statistics(
    adata_manager: AnnDataManager,
    rows: np.ndarray,
    n_genes: int,
    n_components: int,
    n_embedding: int,
    n_input_genes: int | None,
    seed: int,
) -> dict[str, Any]:
    """Compute what :func:`start_from` takes, from at most 20,000 of the training cells."""
    rows = draw_rows(rows, seed)
    counts = read_counts(adata_manager, rows, n_genes)
    totals = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
    library_size = np.asarray(counts.sum(axis=1)).ravel()
    logged = log_normalize(counts)
    mean = np.asarray(logged.mean(axis=0)).ravel()
    is_read = _highly_variable(logged, n_input_genes)
    components: dict[str, Tensor] = {}
    embeddings = torch.empty(n_genes, 0)
    if n_wanted := max(n_components, n_embedding):
        has_batches = REGISTRY_KEYS.BATCH_KEY in adata_manager.data_registry
        codes = category_codes(adata_manager, REGISTRY_KEYS.BATCH_KEY) if has_batches else None
        scale = gene_scale(counts, logged, seed, None if codes is None else codes[rows])
        components, embeddings = _components(logged, scale, is_read, n_wanted, n_embedding, seed)
    if "loadings" in components:
        components["loadings"] = components["loadings"][:, :n_components]
    return {
        "is_read": torch.from_numpy(is_read),
        "mean_expression": torch.from_numpy(mean.astype(np.float32)),
        "rates": torch.from_numpy(((totals + 0.5) / (totals + 0.5).sum()).astype(np.float32)),
        "typical_depth": torch.tensor(np.log10(np.median(library_size)), dtype=torch.float32),
        "embeddings": embeddings,
        "components": components,
    }


def start_from(module: XTrimoGeneModule, statistics: dict[str, Any]) -> None:
    """Put what the training cells say about the genes into a network, before it is trained."""
    net, from_pca = module.net, module.config.pca_initialization
    embeddings = statistics["embeddings"]
    with torch.no_grad():
        for name in ("is_read", "mean_expression", "typical_depth"):
            getattr(module, name).copy_(statistics[name])
        if net.bottleneck is not None:
            net.bottleneck.log_baseline.copy_(statistics["rates"].log())
            if from_pca and embeddings.shape[1]:  # the first components are the latent dimensions
                nn.init.eye_(net.bottleneck.to_query.weight)
        if from_pca:  # then a random encoder, which adds up the embeddings of genes, knows PCA
            net.gene_embeddings[:, : embeddings.shape[1]] = embeddings
        if module.latent_space is not None:
            module.latent_space.set(**statistics["components"])


def start_from_pretrained(module: XTrimoGeneModule, statistics: dict[str, Any]) -> None:
    """Put what the training cells say about the genes into a pretrained network.

    It knows the genes that are read before; of these, highly variable ones are read from now on.
    A gene that it does not know is embedded as known genes would be that correlate in the same way
    with the principal components.
    """
    net, is_known = module.net, module.is_read.clone()
    correlations = statistics["embeddings"]
    module.is_read &= statistics["is_read"]
    with torch.no_grad():
        for name in ("mean_expression", "typical_depth"):
            getattr(module, name).copy_(statistics[name])
        if net.bottleneck is not None:
            known_k, rates_k = net.bottleneck.log_baseline[is_known], statistics["rates"][is_known]
            level = (rates_k * (known_k - rates_k.log())).sum() / rates_k.sum()
            net.bottleneck.log_baseline[~is_known] = level + statistics["rates"][~is_known].log()
        if not is_known.all() and correlations.shape[1]:
            ridge = Ridge(RIDGE).fit(correlations[is_known], net.gene_embeddings[is_known])
            predicted = ridge.predict(correlations[~is_known]).astype(np.float32)
            net.gene_embeddings[~is_known] = torch.from_numpy(predicted)
        if module.latent_space is not None:
            module.latent_space.set(**statistics["components"])


def calibrate_baseline(
    bottleneck: BottleneckDecoder, genes_gd: Tensor, latent_cz: Tensor, rates_g: Tensor
) -> None:
    """Let the mean of the predicted rates of each gene be that of the training cells."""
    none = latent_cz.new_empty(0)
    unknown_ck = latent_cz.new_zeros(len(latent_cz), bottleneck.covariate_loadings.shape[1])
    cells = EncodedCells(none, none, none, latent_cz, unknown_ck, none)
    for _ in range(CALIBRATION_ROUNDS):
        predicted_g = bottleneck.log_rates(cells, genes_gd).exp().mean(0)
        bottleneck.log_baseline += rates_g.log() - predicted_g.clamp(min=1e-12).log()


def calibrate_values(to_value: nn.Linear, context_td: Tensor, values_t: Tensor) -> None:
    """Fit the last layer of the decoder of masked genes again, near to what it was."""
    missed_t = values_t.double() - to_value(context_td).squeeze(-1).double()
    ridge = Ridge(RIDGE).fit(context_td.double().cpu().numpy(), missed_t.cpu().numpy())
    to_value.weight += torch.from_numpy(ridge.coef_).to(to_value.weight)
    to_value.bias += float(ridge.intercept_)


def draw_rows(rows: np.ndarray, seed: int, n_max: int = MAX_CELLS) -> np.ndarray:
    """Return the cells that statistics are taken from: all, or ``n_max`` drawn at random."""
    if len(rows) <= n_max:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, n_max, replace=False))


def log_normalize(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return ``log1p`` of counts scaled to 10,000 per cell."""
    return log_normalized(counts, np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1))


def read_counts(
    adata_manager: AnnDataManager, rows: np.ndarray, n_genes: int
) -> sparse.csr_matrix:
    """Return counts of shape ``(n_rows, n_genes)`` with the columns of the vocabulary."""
    reader = RowReader(adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY))
    state = state_of(adata_manager, REGISTRY_KEYS.X_KEY)
    gene_of_column = np.asarray(state[CountsField.COLUMN_TO_GENE_KEY])
    used = np.flatnonzero(gene_of_column >= 0)
    to_vocabulary = sparse.csr_matrix(
        (np.ones(len(used), np.float32), (used, gene_of_column[used])),
        shape=(len(gene_of_column), n_genes),
    )
    counts = sparse.csr_matrix(reader.read(rows).astype(np.float32) @ to_vocabulary)
    counts.sort_indices()  # random numbers are drawn in this order, which depends on scipy
    return counts


def _highly_variable(logged: sparse.csr_matrix, n_top: int | None) -> np.ndarray:
    """Choose genes as scanpy does, or of a handful of cells those with the largest variance."""
    if n_top is None or n_top >= logged.shape[1]:
        return np.ones(logged.shape[1], dtype=bool)
    chosen = np.flatnonzero(logged.getnnz(axis=0) >= min(MIN_EXPRESSING, logged.shape[0]))
    if len(chosen) > n_top:
        expression, few = logged[:, chosen], logged.shape[0] < MIN_CELLS
        mean, variance = moments(expression if few else expression.expm1())
        score = variance if few else normalized_dispersion(mean, variance)
        chosen = chosen[np.argsort(-score, kind="stable")[:n_top]]
    is_read = np.zeros(logged.shape[1], dtype=bool)
    is_read[chosen] = True
    return is_read


def moments(x: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of every column, in double precision."""
    mean = np.asarray(x.mean(axis=0, dtype=np.float64)).ravel()
    mean_square = np.asarray(x.power(2).mean(axis=0, dtype=np.float64)).ravel()
    return mean, (mean_square - mean**2) * x.shape[0] / max(x.shape[0] - 1, 1)


def normalized_dispersion(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return how far genes are more variable than others of the same expression.

    That of Seurat (Satija et al. 2015) as in scanpy, whose function compiles for five seconds.
    """
    expressed = np.where(mean > 0, mean, 1e-12)
    dispersion = np.log(np.where(variance > 0, variance, np.nan) / expressed)
    table = pd.DataFrame({"dispersion": dispersion, "bin": pd.cut(np.log1p(expressed), 20)})
    of_bin = table.groupby("bin", observed=True)["dispersion"]
    center, spread = of_bin.transform("mean"), of_bin.transform("std")
    alone = spread.isna()  # a bin of its own
    score = (dispersion - center.mask(alone, 0.0)) / spread.mask(alone, center)
    return score.fillna(0.0).to_numpy()


def gene_scale(
    counts: sparse.csr_matrix,
    logged: sparse.csr_matrix,
    seed: int,
    batches: np.ndarray | None = None,
) -> np.ndarray:
    """Return what expression is multiplied by for components: to unit variance, as usual.

    But genes count for more the more reliable they are, within batches (codes) if there are any;
    see docs/defaults.md.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.binomial(np.rint(counts.data).astype(np.int64), 0.5).astype(np.float32)
    first = sparse.csr_matrix((drawn, counts.indices, counts.indptr), shape=counts.shape)
    half_size = np.maximum(np.asarray(counts.sum(axis=1)).ravel() / 2, 1)
    first, second = (log_normalized(half, half_size) for half in (first, counts - first))
    n_cells = len(half_size)
    one_batch = np.zeros(n_cells, dtype=np.int64)
    codes = one_batch if batches is None else np.unique(batches, return_inverse=True)[1]
    in_batch = sparse.csr_matrix((np.ones(n_cells), (codes, np.arange(n_cells))))
    by_size = sparse.diags_array(1 / np.bincount(codes))

    def covariance(x: sparse.csr_matrix, y: sparse.csr_matrix) -> np.ndarray:
        """Return that of every gene within batches."""
        of_means = (by_size @ (in_batch @ x)).multiply(in_batch @ y)
        total = x.multiply(y).sum(axis=0, dtype=np.float64) - of_means.sum(axis=0)
        return np.asarray(total).ravel() / n_cells

    variance = (covariance(first, first) + covariance(second, second)) / 2
    r = reliability(covariance(first, second), variance, n_cells)
    std = np.sqrt(np.maximum(moments(logged)[1], 1e-8))
    return np.maximum(r, LEAST_RELIABILITY) ** RELIABILITY_POWER / std


def reliability(shared: np.ndarray, variance: np.ndarray, n_cells: int) -> np.ndarray:
    """Return the part of the variance of values that is signal, from halves of the counts.

    What two halves share, a part :math:`r` of the variance of one, is signal; of the variance of
    all counts it is :math:`2 r / (1 + r)` (Spearman and Brown). Few cells say little of single
    values: these are shrunken to the average.
    """
    average = float(shared.sum()) / max(float(variance.sum()), 1e-12)
    r = shared / np.maximum(variance, 1e-12)
    r = np.clip((n_cells * r + PRIOR_CELLS * average) / (n_cells + PRIOR_CELLS), 0, 1)
    return 2 * r / (1 + r)


def _components(
    logged: sparse.csr_matrix,
    scale: np.ndarray,
    is_read: np.ndarray,
    n_components: int,
    n_embedding: int,
    seed: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return principal components of the genes read, and correlations of all genes with them."""
    n_cells, n_genes = logged.shape
    scaled = sparse.csr_matrix(logged @ sparse.diags_array(scale.astype(logged.dtype)))
    scaled.data = np.minimum(scaled.data, MAX_SCALED_VALUE)
    spread = np.asarray(scaled.multiply(scaled).mean(axis=0)).ravel()
    spread -= np.square(np.asarray(scaled.mean(axis=0)).ravel())
    is_read = is_read & (spread > MIN_SPREAD)  # others would fill the components with noise
    n_components = min(n_components, n_cells - 1, int(is_read.sum()) - 1)
    if n_components < 1:
        return {}, torch.empty(n_genes, 0)
    # "arpack" centres sparse data implicitly: nothing of size cells x genes is built.
    pca = PCA(n_components, svd_solver="arpack", random_state=seed)
    scores = pca.fit_transform(sparse.csr_matrix(scaled[:, is_read]))[:, :n_embedding]
    scores /= np.maximum(scores.std(axis=0), 1e-8)
    correlations = scaled.T @ scores / n_cells
    length = np.sqrt(np.square(correlations).sum() / n_genes)

    def of_all_genes(of_read: np.ndarray) -> Tensor:
        result = np.zeros((n_genes, *of_read.shape[1:]), dtype=np.float32)
        result[is_read] = of_read
        return torch.from_numpy(result)

    components = {
        "inverse_std": of_all_genes(scale[is_read]),
        "scaled_mean": of_all_genes(pca.mean_),
        "loadings": of_all_genes(pca.components_.T),
    }
    return components, torch.from_numpy((correlations / max(length, 1e-8)).astype(np.float32))


class Halves(NamedTuple):
    """Two halves of the counts of some cells, and what a model makes of both."""

    known: list[Tensor]  # what components are predicted from
    measured: list[Tensor]  # principal components, not centred
    expression: sparse.csr_matrix  # of the second half, scaled as for the components
    batches: Tensor


def measured_weights(first_ck: Tensor, second_ck: Tensor, is_pretrained: bool = False) -> Tensor:
    """Return how much to trust what was measured of each component, ``(n_components,)``.

    ``first_ck`` and ``second_ck`` have what two halves of the counts of held-out cells measure
    beyond what is predicted. Weighed by its reliability, the error would be least; but clusters
    and neighbours want some of the noise, so that no weight is below 0.6, or 0.5 beside a
    pretrained network; see docs/defaults.md.
    """
    first, second = first_ck.double().numpy(), second_ck.double().numpy()
    first, second = first - first.mean(0), second - second.mean(0)
    variance_k = (np.square(first) + np.square(second)).mean(0) / 2
    weights = reliability((first * second).mean(0), variance_k, len(first))
    least = LEAST_BESIDE_PRETRAINED if is_pretrained else LEAST_WEIGHT
    return torch.from_numpy(np.maximum(weights, least)).float()


def trust_in_components(n_cells: int) -> float:
    """Return a factor for the weights of components, of which few cells know the directions."""
    return n_cells**2 / (n_cells**2 + CELLS_TO_TRUST**2)


def explained(
    known: np.ndarray,
    expression: sparse.csr_matrix,
    held_out_known: np.ndarray,
    held_out_expression: sparse.csr_matrix,
) -> float:
    """Return the part of the variance of ``held_out_expression`` that a linear map predicts.

    The map, from what is known of a cell to the expression in its other half, is fitted to other
    cells, with the penalty that is best there by leave-one-out.
    """
    scale, mean = float(np.max(known.std(axis=0))), known.mean(axis=0)
    x, x_new = (known - mean) / scale, (held_out_known - mean) / scale
    expected = expression.mean(axis=0)
    ridge = RidgeCV(PENALTIES).fit(x, np.asarray(expression.toarray() - expected))
    centred = np.asarray(held_out_expression.toarray() - expected)
    return 1 - float(np.square(centred - ridge.predict(x_new)).sum() / np.square(centred).sum())
