"""Representations of a user's own cells: xTrimoGene beside PCA, Harmony and scVI.

    python benchmarks/embedding.py                             # bundled cells
    python benchmarks/embedding.py --data cells.h5ad --labels-key cell_type
    python benchmarks/embedding.py --data cells.h5ad --batch-key sample
    python benchmarks/embedding.py --data directory --pool     # files are batches
    python benchmarks/embedding.py --data cells.h5ad --split-half  # without labels

For every method: the best ARI and NMI with the labels over a sweep of Leiden resolutions (mean of
five Leiden seeds), k-nearest-neighbour accuracy and macro-F1 (k = 15, five folds), silhouette of
the labels, wall time and peak memory; with batches also the scores of scib-metrics (needs
``pip install scib-metrics``). The spread is that over training seeds. Labels are never trained on.

With ``--split-half`` the counts of every cell are dealt out to two halves. A method sees one, and
a ridge regression predicts from its representation the expression in the other (log-normalised,
2,000 highly variable genes of unit variance, five folds of cells): the part of the variance that
is predicted needs no labels.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import scanpy as sc
import scvi
from _cells import load, pool
from _common import data_files, parser, peak_memory, report, reset_peak_memory, rows_of, summarize
from anndata import AnnData
from lightning.pytorch.callbacks import Timer
from scipy import sparse
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

import scxtrimo

METRICS = ("ari", "nmi", "knn_accuracy", "knn_macro_f1", "silhouette")
BEFORE = "PCA-30 scaled"


def pca(adata: AnnData, seed: int, n_components: int, scale: bool) -> np.ndarray:
    """Scanpy's standard: 2,000 highly variable genes of log-normalised counts."""
    work = adata.copy()
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    if work.n_vars > 2000:
        sc.pp.highly_variable_genes(work, n_top_genes=2000)
        work = work[:, work.var["highly_variable"]].copy()
    if scale:
        sc.pp.scale(work, max_value=10)
    sc.pp.pca(work, n_comps=n_components, random_state=seed)
    return work.obsm["X_pca"]


def harmony(adata: AnnData, seed: int) -> np.ndarray:
    """Harmony on 30 components of scaled genes."""
    import harmonypy

    components = pca(adata, seed, 30, scale=True).astype(np.float64)
    result = harmonypy.run_harmony(
        components, adata.obs, "batch", random_state=seed, verbose=False
    )
    return np.asarray(result.Z_corr)


def scvi_default(adata: AnnData, seed: int, seconds: float | None = None) -> np.ndarray:
    """scVI with its defaults on 3,000 highly variable genes, as its tutorials have it."""
    scvi.settings.seed = seed
    work = adata.copy()
    sc.pp.filter_genes(work, min_cells=3)
    if work.n_vars > 3000:
        options = {"n_top_genes": 3000, "flavor": "seurat_v3", "subset": True}
        try:
            sc.pp.highly_variable_genes(work, **options)
        except ValueError:  # of few cells the local regression is singular
            sc.pp.highly_variable_genes(work, span=1.0, **options)
    scvi.model.SCVI.setup_anndata(work, batch_key="batch" if "batch" in work.obs else None)
    model = scvi.model.SCVI(work)
    stop = [] if seconds is None else [Timer({"seconds": seconds}, verbose=False)]
    model.train(enable_progress_bar=False, accelerator="cpu", callbacks=stop)
    return model.get_latent_representation()


def xtrimogene(
    adata: AnnData, seed: int, plan: dict[str, Any] | None = None, **hyperparameters: Any
) -> np.ndarray:
    """Ours, with its defaults unless told otherwise."""
    work = adata.copy()
    model_class = scxtrimo.model.XTrimoGene
    model_class.setup_anndata(work, batch_key="batch" if "batch" in work.obs else None)
    model = model_class(work, seed=seed, **hyperparameters)
    model.train(enable_progress_bar=False, accelerator="cpu", plan_kwargs=plan)
    return model.get_latent_representation()


METHODS: dict[str, Callable[..., np.ndarray]] = {
    "PCA-50": lambda adata, seed: pca(adata, seed, 50, scale=False),
    "PCA-30 scaled": lambda adata, seed: pca(adata, seed, 30, scale=True),
    "Harmony": harmony,
    "xTrimoGene": xtrimogene,
    "xTrimoGene, from scratch": lambda adata, seed: xtrimogene(adata, seed, pretrained=None),
    "scVI": scvi_default,
    "scVI, our time": scvi_default,
}
DETERMINISTIC = ("PCA-50", "PCA-30 scaled", "Harmony")


def scib_scores(adata: AnnData) -> dict[str, float]:
    """Return the three totals of scib-metrics, without scaling between methods."""
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    benchmarker = Benchmarker(
        adata,
        batch_key="batch",
        label_key="label",
        embedding_obsm_keys=["rep"],
        pre_integrated_embedding_obsm_key="before",
        bio_conservation_metrics=BioConservation(nmi_ari_cluster_labels_leiden=True),
        batch_correction_metrics=BatchCorrection(),
        progress_bar=False,
    )
    benchmarker.benchmark()
    totals = benchmarker.get_results(min_max_scale=False).loc["rep"]
    return {
        "scib_bio": float(totals["Bio conservation"]),
        "scib_batch": float(totals["Batch correction"]),
        "scib_total": float(totals["Total"]),
    }


def halves(adata: AnnData) -> tuple[AnnData, AnnData]:
    """Deal the counts out to two halves, molecule by molecule."""
    counts = sparse.csr_matrix(adata.X)
    first = counts.copy()
    drawn = np.random.default_rng(0).binomial(np.rint(counts.data).astype(int), 0.5)
    first.data = drawn.astype(np.float32)
    parts = (sparse.csr_matrix(part, dtype=np.float32) for part in (first, counts - first))
    first, second = (AnnData(part, obs=adata.obs, var=adata.var) for part in parts)
    for part in (first, second):
        part.X.eliminate_zeros()
    has_both = [np.asarray(part.X.sum(1)).ravel() > 0 for part in (first, second)]
    return first[np.all(has_both, axis=0)].copy(), second[np.all(has_both, axis=0)].copy()


def split_half(latent: np.ndarray, other_half: AnnData) -> float:
    """Return the part of the variance of the other half that a linear map predicts."""
    work = other_half.copy()
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    if work.n_vars > 2000:
        sc.pp.highly_variable_genes(work, n_top_genes=2000, subset=True)
    sc.pp.scale(work, max_value=10)
    y = np.asarray(work.X)
    x = (latent - latent.mean(0)) / latent.std(0).max()
    error = 0.0
    for train, test in KFold(5, shuffle=True, random_state=0).split(x):
        ridge = RidgeCV(np.logspace(-1, 4, 11)).fit(x[train], y[train])
        error += np.square(y[test] - ridge.predict(x[test])).sum()
    return float(1 - error / np.square(y - y.mean(0)).sum())


def compare_halves(
    name: str, adata: AnnData, seeds: int, methods: list[str], hyperparameters: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return what every method says of counts that it did not see."""
    rows: list[dict[str, Any]] = []
    seen, unseen = halves(adata)
    for method in [m for m in methods if m not in ("Harmony", "scVI, our time")]:
        for seed in range(1 if method in DETERMINISTIC else seeds):
            options = hyperparameters if method == "xTrimoGene" else {}
            start = time.perf_counter()
            latent = METHODS[method](seen, seed, **options)
            seconds = time.perf_counter() - start
            scores = {"predicted": split_half(latent.astype(np.float64), unseen)}
            print(f"{name} {method} seed {seed}: {scores}", flush=True)
            rows += rows_of("split halves", name, method, scores, seconds=seconds)
    return rows


def evaluate(
    name: str, adata: AnnData, seeds: int, methods: list[str], hyperparameters: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return one row per method, training seed and metric."""
    rows: list[dict[str, Any]] = []
    has_batches = "batch" in adata.obs
    if has_batches:
        adata.obsm["before"] = METHODS[BEFORE](adata, 0)
    our_seconds: list[float] = []
    for method in methods:
        if method == "Harmony" and not has_batches:
            continue
        for seed in range(1 if method in DETERMINISTIC else seeds):
            limit = float(np.mean(our_seconds)) if our_seconds else None
            options = {"xTrimoGene": hyperparameters, "scVI, our time": {"seconds": limit}}
            before = reset_peak_memory()
            start = time.perf_counter()
            latent = METHODS[method](adata, seed, **options.get(method, {}))
            adata.obsm["rep"] = latent.astype(np.float32)
            seconds = time.perf_counter() - start
            scores = {"memory_mb": (peak_memory() - before) / 1e6}
            if method == "xTrimoGene":
                our_seconds.append(seconds)
            agreement = scxtrimo.tl.cluster_agreement(adata, "label", "rep")
            agreement |= scxtrimo.tl.neighbor_agreement(adata, "label", "rep")
            scores = {metric: agreement[metric] for metric in METRICS} | scores
            if has_batches:
                scores |= scib_scores(adata)
            print(f"{name} {method} seed {seed}: {seconds:.1f} s", flush=True)
            task = "integration" if has_batches else "embedding"
            rows += rows_of(task, name, method, scores, seconds=seconds)
    return rows


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--labels-key", default="cell_type")
    arguments.add_argument("--batch-key")
    arguments.add_argument("--layer")
    arguments.add_argument(
        "--pool",
        action="store_true",
        help="all files together, as batches, on the types of PBMCs they share",
    )
    arguments.add_argument(
        "--split-half", action="store_true", help="predict one half of the counts from the other"
    )
    arguments.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments.add_argument(
        "--hyperparameters",
        type=json.loads,
        default={},
        help='of ours, as JSON: \'{"measured_weight": 0, "plan": {"lr": 0.003}}\'',
    )
    args = arguments.parse_args()
    if "scVI, our time" in args.methods:
        if "xTrimoGene" not in args.methods:
            arguments.error("'scVI, our time' needs 'xTrimoGene'.")
        args.methods.sort(key=list(METHODS).index)
    if args.pool and args.data is None:
        arguments.error("--pool needs --data.")
    warnings.simplefilter("ignore")
    files = [None] if args.data is None else data_files(args.data)
    labelled = [
        path
        for path in files
        if path is None or args.labels_key in anndata.read_h5ad(path, backed="r").obs
    ]
    if skipped := [path.stem for path in files if path not in labelled]:
        print(f"No labels {args.labels_key!r}, left out: {', '.join(skipped)}")
    if args.pool:
        cells = {"pooled": pool(labelled, args.labels_key, args.layer)}
    else:
        cells = {
            path.stem if path else "pbmc68k_reduced": load(
                path, args.labels_key, args.batch_key, args.layer
            )
            for path in labelled
        }
    rows = []
    for name, adata in cells.items():
        if args.quick:
            sc.pp.subsample(adata, n_obs=min(300, adata.n_obs), random_state=0)
        rows += (compare_halves if args.split_half else evaluate)(
            name, adata, 1 if args.quick else args.seeds, args.methods, args.hyperparameters
        )
    report(summarize(rows), args.json)


if __name__ == "__main__":
    main()
