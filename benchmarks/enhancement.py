"""Read-depth enhancement: what is predicted for cells of which most counts were taken away.

    python benchmarks/enhancement.py                      # bundled cells
    python benchmarks/enhancement.py --data pbmc3k.h5ad

Seven tenths of the cells are trained on as they are. Of the others, 5, 10 and 20% of the counts
are kept, drawn at random, and the rest is held out: a method sees what was kept and predicts
log1p of counts per 10,000, which is compared with that of the counts held out. All methods have
the same training cells. `mse` is over all genes, `mse expressed` over those with counts held out,
`pearson` is the mean correlation over genes within a cell. The spread is over training seeds,
which also draw cells and counts.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import scanpy as sc
import scvi
from _common import data_files, parser, report, rows_of, summarize
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import scxtrimo
from scxtrimo.model.xtrimogene import XTrimoGene

RATES = (0.05, 0.1, 0.2)
Predict = Callable[[AnnData], np.ndarray]


def log_normalized(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return log1p of counts per 10,000."""
    total = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    result = sparse.csr_matrix(sparse.diags_array(1e4 / total) @ counts)
    result.data = np.log1p(result.data)
    return result


def input_itself(train: AnnData, seed: int) -> Predict:
    """What was kept."""
    return lambda cells: log_normalized(cells.X).toarray()


def gene_mean(train: AnnData, seed: int) -> Predict:
    """The same for all cells: the mean of the training cells."""
    mean = np.asarray(log_normalized(train.X).mean(0)).ravel()
    return lambda cells: np.tile(mean, (cells.n_obs, 1))


def knn_average(train: AnnData, seed: int, n_neighbors: int = 15) -> Predict:
    """Mean of the nearest training cells in 50 principal components."""
    logged = log_normalized(train.X)
    adata = AnnData(logged)
    sc.pp.highly_variable_genes(adata, n_top_genes=min(2000, adata.n_vars))
    used = adata.var["highly_variable"].to_numpy()
    pca = PCA(50, svd_solver="arpack", random_state=seed).fit(logged[:, used])
    neighbors = NearestNeighbors(n_neighbors=n_neighbors).fit(pca.transform(logged[:, used]))

    def predict(cells: AnnData) -> np.ndarray:
        projected = pca.transform(log_normalized(cells.X)[:, used])
        return (neighbors.kneighbors_graph(projected) @ logged).toarray() / n_neighbors

    return predict


def scvi_default(train: AnnData, seed: int) -> Predict:
    """scVI with its defaults."""
    scvi.settings.seed = seed
    train = AnnData(train.X, var=train.var)
    scvi.model.SCVI.setup_anndata(train)
    model = scvi.model.SCVI(train)
    model.train(enable_progress_bar=False, accelerator="cpu")
    return lambda cells: np.log1p(
        model.get_normalized_expression(cells.copy(), library_size=1e4, return_numpy=True)
    )


def trained(
    train: AnnData, seed: int, plan_kwargs: dict[str, Any] | None = None, **kwargs: Any
) -> XTrimoGene:
    """Train once for all decoders; the seconds are with the first of them."""
    models = train.uns.setdefault("models", {})
    key = str((kwargs, plan_kwargs))
    if key not in models:
        own = AnnData(train.X, var=train.var)
        XTrimoGene.setup_anndata(own)
        models[key] = XTrimoGene(own, seed=seed, **kwargs)
        models[key].train(enable_progress_bar=False, accelerator="cpu", plan_kwargs=plan_kwargs)
    return models[key]


def xtrimogene(decoder: str, **kwargs: Any) -> Callable[[AnnData, int], Predict]:
    """Ours."""

    def fit(train: AnnData, seed: int) -> Predict:
        model = trained(train, seed, **kwargs)
        genes = list(train.var_names)  # the vocabulary has those with counts
        known = np.isin(genes, model.vocabulary.gene_ids)

        def predict(cells: AnnData) -> np.ndarray:
            result = np.zeros(cells.shape, dtype=np.float32)
            result[:, known] = model.get_normalized_expression(
                cells.copy(),
                gene_list=np.asarray(genes)[known],
                decoder=decoder,
                log1p=True,
                return_numpy=True,
            )
            return np.maximum(result, 0)

        return predict

    return fit


METHODS: dict[str, Callable[[AnnData, int], Predict]] = {
    "input itself": input_itself,
    "gene mean": gene_mean,
    "kNN average": knn_average,
    "scVI": scvi_default,
    "xTrimoGene": xtrimogene("bottleneck"),
    "xTrimoGene, read depth": xtrimogene("bottleneck", read_depth_aware=True),
    "xTrimoGene, read depth, imputation": xtrimogene("cross_attention", read_depth_aware=True),
    "the same without weights": xtrimogene(
        "cross_attention", read_depth_aware=True, plan_kwargs={"natural_weights": False}
    ),
}


def scores(predicted: np.ndarray, held_out: sparse.csr_matrix) -> dict[str, float]:
    """Compare predictions with the counts held out."""
    truth = log_normalized(held_out).toarray()
    error = np.square(predicted - truth)
    a = predicted - predicted.mean(1, keepdims=True)
    b = truth - truth.mean(1, keepdims=True)
    norm = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
    return {
        "mse": float(error.mean()),
        "mse expressed": float(error[truth > 0].mean()),
        "pearson": float(np.mean((a * b).sum(1) / np.maximum(norm, 1e-12))),
    }


def evaluate(name: str, adata: AnnData, seeds: int) -> list[dict[str, Any]]:
    """Return one row per method, rate, seed and metric."""
    rows = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        order = rng.permutation(adata.n_obs)
        n_train = int(0.7 * adata.n_obs)
        train = adata[np.sort(order[:n_train])].copy()
        sc.pp.filter_genes(train, min_cells=3)
        whole = adata[np.sort(order[n_train:]), train.var_names].copy()
        tests = {rate: take_away(whole, rate, rng) for rate in RATES}
        for method, fit in METHODS.items():
            start = time.perf_counter()
            predict = fit(train, seed)
            seconds = time.perf_counter() - start
            for rate, (kept, held_out) in tests.items():
                result = scores(predict(kept), held_out)
                shown = {metric: round(value, 4) for metric, value in result.items()}
                print(f"{name} seed {seed} {rate:.0%} {method}: {shown}", flush=True)
                task = f"enhancement from {rate:.0%} of the counts"
                rows += rows_of(task, name, method, result, seconds=seconds)
    return rows


def take_away(
    cells: AnnData, rate: float, rng: np.random.Generator
) -> tuple[AnnData, sparse.csr_matrix]:
    """Split counts at random into those kept and those held out."""
    counts = sparse.csr_matrix(cells.X, dtype=np.float32)
    kept = counts.copy()
    kept.data = rng.binomial(counts.data.astype(int), rate).astype(np.float32)
    alive = np.asarray(kept.sum(1)).ravel() > 0  # nothing can be said of a cell without counts
    held_out = sparse.csr_matrix(counts - kept)[alive]
    kept.eliminate_zeros()
    result = AnnData(kept[alive], obs=cells.obs[alive], var=cells.var)
    return result, held_out


def main() -> None:
    """Run the benchmark."""
    args = parser(__doc__).parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for path in [None] if args.data is None else data_files(args.data):
        name = "pbmc68k_reduced" if path is None else path.stem
        adata = scxtrimo.datasets.pbmc68k() if path is None else anndata.read_h5ad(path)
        adata = AnnData(sparse.csr_matrix(adata.X), var=adata.var[[]].copy())
        if args.quick:
            sc.pp.subsample(adata, n_obs=min(300, adata.n_obs), random_state=0)
        rows += evaluate(name, adata, 1 if args.quick else args.seeds)
    report(summarize(rows), args.json)


if __name__ == "__main__":
    main()
