"""Annotation: cross-validation, few labels, and from one study to another.

    python benchmarks/annotation.py --data cells/
    python benchmarks/annotation.py --data pbmc3k.h5ad --query pbmc4k.h5ad

``5-fold``: learn from four fifths of the cells, predict the others, which no method has seen.
``10% labels``, ``20% labels``: all cells are given, so many with a label; the others are
predicted. Networks and PCA may look at cells without label, the linear models on genes cannot.
``A -> B``: learn from one study, predict another as it is, on the types both have, and back.
Linear models see log-normalised counts of all genes. Accuracy and macro-F1, mean and standard
deviation over folds, draws or training seeds, the F1 of labels with less than 40 cells by name,
and seconds for learning and predicting. CellTypist 1.7 needs scikit-learn below 1.8.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import scanpy as sc
import scvi
import sklearn
from _cells import coarsen, load
from _common import data_files, parser, report, rows_of, summarize
from anndata import AnnData
from packaging.version import Version
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

import scxtrimo
from scxtrimo.annotation.tools import RARE
from scxtrimo.annotation.training import IS_L1

N_FOLDS = 5
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


class Task(NamedTuple):
    """What to learn from and what to predict, with counts in X and labels in obs['label']."""

    name: str
    train: AnnData
    test: AnnData
    sees_test: bool
    seed: int


def log_normalized(task: Task) -> tuple[AnnData, AnnData]:
    """Return training and test cells on the genes they share."""
    genes = task.train.var_names.intersection(task.test.var_names, sort=False)
    parts = [part[:, genes].copy() for part in (task.train, task.test)]
    for part in parts:
        sc.pp.normalize_total(part, target_sum=1e4)
        sc.pp.log1p(part)
    return parts[0], parts[1]


def linear(make: Callable[[], object]) -> Callable[[Task], np.ndarray]:
    """Return a method that fits a scikit-learn model to the log-normalised counts."""

    def predict(task: Task) -> np.ndarray:
        train, test = log_normalized(task)
        return make().fit(train.X, train.obs["label"]).predict(test.X)  # type: ignore[attr-defined]

    return predict


def on_pca(make: Callable[[], object]) -> Callable[[Task], np.ndarray]:
    """Return a method that fits a scikit-learn model to 50 principal components."""

    def predict(task: Task) -> np.ndarray:
        train, test = log_normalized(task)
        seen = anndata.concat([train, test]) if task.sees_test else train.copy()
        sc.pp.highly_variable_genes(seen, n_top_genes=2000)
        genes = seen.var["highly_variable"].to_numpy()
        x = seen.X[:, genes].toarray()
        mean, std = x.mean(0), x.std(0) + 1e-8

        def scaled(part: AnnData) -> np.ndarray:
            return np.minimum((part.X[:, genes].toarray() - mean) / std, 10)

        pca = PCA(min(50, *x.shape), random_state=0).fit(scaled(seen))
        first, second = (pca.transform(scaled(part)) for part in (train, test))
        scale = first[:, 0].std()
        model = make().fit(first / scale, train.obs["label"])  # type: ignore[attr-defined]
        return model.predict(second / scale)

    return predict


def celltypist(task: Task) -> np.ndarray:
    """CellTypist, trained on the same cells with its defaults."""
    import celltypist

    celltypist.logger.set_level(40)
    train, test = log_normalized(task)
    model = celltypist.train(train, labels="label", n_jobs=1, check_expression=False)
    predicted = celltypist.annotate(test, model=model).predicted_labels["predicted_labels"]
    return predicted.astype(str).to_numpy()


def scanvi(task: Task) -> np.ndarray:
    """Run scVI and scANVI as in their tutorials, which train on a query of another study too."""
    scvi.settings.seed = task.seed
    crosses = "->" in task.name
    parts = {"reference": task.train, "query": task.test}
    both = anndata.concat(parts, label="batch")
    both.obs["label"] = both.obs["label"].astype(str)
    is_test = (both.obs["batch"] == "query").to_numpy()
    both.obs.loc[is_test, "label"] = "unknown"
    seen = both.copy() if task.sees_test else both[~is_test].copy()
    sc.pp.filter_genes(seen, min_cells=3)
    sc.pp.highly_variable_genes(seen, n_top_genes=3000, flavor="seurat_v3", subset=True)
    key = "batch" if crosses else None
    scvi.model.SCVI.setup_anndata(seen, batch_key=key, labels_key="label")
    # These three are what scvi-tools recommends for mapping a query.
    architecture = {
        "use_layer_norm": "both",
        "use_batch_norm": "none",
        "encode_covariates": True,
    }
    base = scvi.model.SCVI(seen, **(architecture if crosses else {}))
    base.train(**QUIET)
    model = scvi.model.SCANVI.from_scvi_model(base, unlabeled_category="unknown")
    model.train(max_epochs=20, **QUIET)
    test = both[is_test, seen.var_names].copy()
    if crosses:
        model = scvi.model.SCANVI.load_query_data(test, model)
        model.train(max_epochs=100, plan_kwargs={"weight_decay": 0.0}, **QUIET)
        return np.asarray(model.predict())
    return np.asarray(model.predict(test))


def xtrimogene(task: Task) -> np.ndarray:
    """Train the annotator with its defaults."""
    given = task.train.copy()
    if task.sees_test:
        unlabelled = task.test.copy()
        unlabelled.obs["label"] = "unknown"
        given = anndata.concat([given, unlabelled])
    annotator = scxtrimo.model.XTrimoGeneAnnotator
    annotator.setup_anndata(given, labels_key="label", unlabeled_category="unknown")
    model = annotator(given, seed=task.seed)
    model.train(**QUIET)
    return np.asarray(model.predict(task.test.copy())).astype(str)


METHODS: dict[str, Callable[[Task], np.ndarray]] = {
    "LR L1": linear(lambda: OneVsRestClassifier(LogisticRegression(solver="liblinear", **IS_L1))),
    "LR L2": linear(lambda: LogisticRegression(max_iter=1000)),
    "linear SVM": linear(lambda: LinearSVC()),
    "CellTypist": celltypist,
    "kNN on PCA": on_pca(lambda: KNeighborsClassifier(15)),
    "LR on PCA": on_pca(lambda: LogisticRegression(max_iter=1000)),
    "scANVI": scanvi,
    "xTrimoGene": xtrimogene,
}
TASKS = ("5-fold", "10%", "20%")
WITH_SEEDS = ("scANVI", "xTrimoGene")


def folds(name: str, cells: AnnData, n_folds: int) -> Iterator[Task]:
    """Yield tasks in which every cell is predicted once."""
    splits = StratifiedKFold(N_FOLDS, shuffle=True, random_state=0).split(
        cells.obs["label"], cells.obs["label"]
    )
    for seed, (train, test) in enumerate(splits):
        if seed < n_folds:
            yield Task(f"{name}, 5-fold", cells[train], cells[test], False, seed)


def few_labels(name: str, cells: AnnData, part: str, n_draws: int) -> Iterator[Task]:
    """Yield tasks in which a part of the cells has labels."""
    size = float(part.rstrip("%")) / 100
    splits = StratifiedShuffleSplit(n_draws, train_size=size, random_state=0).split(
        cells.obs["label"], cells.obs["label"]
    )
    for seed, (train, test) in enumerate(splits):
        known, others = cells[np.sort(train)], cells[np.sort(test)]
        yield Task(f"{name}, {part} labels", known, others, True, seed)


def crosses(first: Path, second: Path, labels_key: str, n_seeds: int) -> Iterator[Task]:
    """Yield tasks from one study to the other and back."""
    cells = {path.stem: coarsen(load(path, labels_key)) for path in (first, second)}
    for part in cells.values():
        part.var_names_make_unique()
    (a, x), (b, y) = cells.items()
    for seed in range(n_seeds):
        yield Task(f"{a} -> {b}", x, y, False, seed)
        yield Task(f"{b} -> {a}", y, x, False, seed)


def run(task: Task, method: str) -> list[dict]:
    """Run a method and return its scores."""
    start = time.perf_counter()
    predicted = METHODS[method](task)
    seconds = time.perf_counter() - start
    truth = task.test.obs["label"].astype(str).to_numpy()
    names, counts = np.unique([*truth, *task.train.obs["label"].astype(str)], return_counts=True)
    f1 = f1_score(truth, predicted, labels=names, average=None, zero_division=0)
    present = np.isin(names, truth)
    scores = {
        "accuracy": accuracy_score(truth, predicted),
        "macro_f1": float(f1[present].mean()),
    }
    for i in np.flatnonzero((counts < RARE) & present):
        scores[f"F1 {names[i]} ({counts[i]})"] = float(f1[i])
    print(f"{task.name} {method} {task.seed}: {scores} {seconds:.1f} s", flush=True)
    return rows_of("annotation", task.name, method, scores, seconds=seconds)


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--query", type=Path, help="another study, to predict and back")
    arguments.add_argument("--labels-key", default="cell_type")
    arguments.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS[:2])
    args = arguments.parse_args()
    warnings.simplefilter("ignore")
    n_seeds = 1 if args.quick else args.seeds
    tasks: list[Task] = []
    if args.query is not None:
        tasks += crosses(args.data, args.query, args.labels_key, n_seeds)
    else:
        for path in [None] if args.data is None else data_files(args.data):
            cells = load(path, args.labels_key)
            cells.var_names_make_unique()
            counts = cells.obs["label"].value_counts()
            if single := list(counts.index[counts < 2]):
                print(f"Left out, with a single cell: {single}")
                cells = cells[~cells.obs["label"].isin(single)].copy()
            name = "pbmc68k" if path is None else path.stem
            if TASKS[0] in args.tasks:
                tasks += folds(name, cells, 1 if args.quick else N_FOLDS)
            for part in [task for task in args.tasks if task != TASKS[0]]:
                tasks += few_labels(name, cells, part, n_seeds)
    left_out = {"scANVI"} if args.quick else set()
    if Version(sklearn.__version__) >= Version("1.8"):
        print("CellTypist is left out: it needs scikit-learn below 1.8.")
        left_out.add("CellTypist")
    methods = [method for method in args.methods if method not in left_out]
    rows = []
    for method in methods:
        for task in tasks:
            if "->" in task.name and task.seed and method not in WITH_SEEDS:
                continue
            rows += run(task, method)
    report(summarize(rows), args.json)


if __name__ == "__main__":
    main()
