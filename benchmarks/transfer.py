"""Labels from one study to another: kNN transfer in a space that was trained on the first.

    python benchmarks/transfer.py --data pbmc3k.h5ad --query pbmc4k.h5ad

A model (or a projection) is made of the reference alone; the query is mapped to it without
training and gets the label of its 15 nearest neighbours in the reference. scANVI, beside it, is
trained on the labels of the reference and predicts those of the query itself. Both studies are
brought to the types they share. Accuracy and macro-F1, with the spread over training seeds.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import scanpy as sc
import scvi
from _cells import coarsen, load
from _common import parser, report, rows_of, summarize
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier

import scxtrimo

N_NEIGHBORS = 15


def knn(reference: np.ndarray, labels: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the labels of the query."""
    return KNeighborsClassifier(N_NEIGHBORS).fit(reference, labels).predict(query)


def pca_projection(reference: AnnData, query: AnnData, seed: int) -> np.ndarray:
    """Project the query on 30 components of scaled, variable genes of the reference."""
    both = [part.copy() for part in (reference, query)]
    for part in both:
        sc.pp.normalize_total(part, target_sum=1e4)
        sc.pp.log1p(part)
    sc.pp.highly_variable_genes(both[0], n_top_genes=2000)
    genes = both[0].var_names[both[0].var["highly_variable"]].intersection(both[1].var_names)
    x, y = (part[:, genes].X.toarray() for part in both)
    mean, std = x.mean(0), x.std(0) + 1e-8
    x, y = (np.minimum((part - mean) / std, 10) for part in (x, y))
    pca = PCA(30, random_state=seed).fit(x)
    return knn(pca.transform(x), reference.obs["label"].to_numpy(), pca.transform(y))


def xtrimogene(reference: AnnData, query: AnnData, seed: int) -> np.ndarray:
    """Train on the reference without labels, map the query as a new batch."""
    reference, query = reference.copy(), query.copy()
    scxtrimo.model.XTrimoGene.setup_anndata(reference)
    model = scxtrimo.model.XTrimoGene(reference, seed=seed)
    model.train(enable_progress_bar=False, accelerator="cpu")
    latent = model.get_latent_representation()
    return knn(latent, reference.obs["label"].to_numpy(), model.map_query(query))


def scanvi(reference: AnnData, query: AnnData, seed: int) -> np.ndarray:
    """scVI and scANVI on the reference with labels; the query as in their tutorial."""
    scvi.settings.seed = seed
    both = anndata.concat({"reference": reference, "query": query}, label="batch")
    first = both[both.obs["batch"] == "reference"].copy()
    sc.pp.filter_genes(first, min_cells=3)
    sc.pp.highly_variable_genes(first, n_top_genes=3000, flavor="seurat_v3", subset=True)
    scvi.model.SCVI.setup_anndata(first, batch_key="batch", labels_key="label")
    # These three are what scvi-tools recommends for mapping a query.
    base = scvi.model.SCVI(
        first, use_layer_norm="both", use_batch_norm="none", encode_covariates=True
    )
    base.train(enable_progress_bar=False, accelerator="cpu")
    model = scvi.model.SCANVI.from_scvi_model(base, unlabeled_category="unknown")
    model.train(max_epochs=20, enable_progress_bar=False, accelerator="cpu")
    second = both[both.obs["batch"] == "query", first.var_names].copy()
    second.obs["label"] = "unknown"
    mapped = scvi.model.SCANVI.load_query_data(second, model)
    mapped.train(
        max_epochs=100,
        plan_kwargs={"weight_decay": 0.0},
        enable_progress_bar=False,
        accelerator="cpu",
    )
    return np.asarray(mapped.predict())


METHODS = {"PCA projection": pca_projection, "xTrimoGene": xtrimogene, "scANVI": scanvi}


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--query", type=Path, help=".h5ad file; by default half of the cells")
    arguments.add_argument("--labels-key", default="cell_type")
    args = arguments.parse_args()
    warnings.simplefilter("ignore")
    reference = load(args.data, args.labels_key)
    if args.query is None:
        is_query = np.random.default_rng(0).random(reference.n_obs) < 0.5
        reference, query = reference[~is_query].copy(), reference[is_query].copy()
    else:
        query = coarsen(load(args.query, args.labels_key))
        reference = coarsen(reference)
    name = "halves" if args.query is None else f"{args.data.stem} -> {args.query.stem}"
    rows = []
    for method, transfer in METHODS.items():
        for seed in range(1 if args.quick or method == "PCA projection" else args.seeds):
            start = time.perf_counter()
            predicted = transfer(reference, query, seed)
            seconds = time.perf_counter() - start
            print(f"{name} {method} seed {seed}: {seconds:.1f} s", flush=True)
            truth = query.obs["label"].to_numpy()
            scores = {
                "accuracy": accuracy_score(truth, predicted),
                "macro_f1": f1_score(truth, predicted, average="macro"),
            }
            rows += rows_of("transfer", name, method, scores, seconds=seconds)
    report(summarize(rows), args.json)


if __name__ == "__main__":
    main()
