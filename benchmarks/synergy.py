"""Synergy of two drugs: DeepDDS' screen by the splits that matter, and its independent set.

    python benchmarks/synergy.py --data drugs/

``random``: five folds over measurements, as published. ``drug pair``, ``drug``, ``cell line``:
test rows have a pair, at least one drug, or a line that no training row has. ``AstraZeneca``:
learn from the screen, predict the independent set, with expression of GDSC for both (the screen's
own lacks its lines), on the 25 lines of the screen that GDSC has; ``--seeds`` says how often.

Drugs are compared by canonical SMILES and pairs without order, and measurements that are there
several times are kept once, or not at all where their labels differ, so that none is in two folds.
Baselines see Morgan counts and descriptors of both drugs and principal components of
the expression; they learn from both orders of a pair and predict the mean of both. ROC-AUC,
PR-AUC, accuracy and Cohen's kappa (at 0.5) and seconds on one core, mean and standard deviation
over folds.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
from _common import parser, report, rows_of, summarize
from _drugs import (
    Features,
    Split,
    gdsc_expression,
    grouped_folds,
    need_data,
    parents,
    plain,
    with_canonical,
)
from anndata import AnnData
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.metrics import accuracy_score, average_precision_score, cohen_kappa_score
from sklearn.metrics import roc_auc_score as roc_auc
from sklearn.model_selection import KFold
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

import scxtrimo

N_FOLDS = 5
DRUGS = ["drug1", "drug2"]
FILES = ("new_labels_0_10.csv", "new_cell_features_954.csv", "independent_input.csv")
SPLITS = ("random", "drug pair", "drug", "cell line", "AstraZeneca")


def read_screen(path: Path) -> pd.DataFrame:
    """Return distinct measurements, of which all copies agree."""
    table = pd.read_csv(path, dtype={"cell": str})
    table = with_canonical(table, DRUGS)
    table[DRUGS] = np.sort(table[DRUGS].to_numpy(dtype=str), axis=1)
    labels = table.groupby([*DRUGS, "cell"])["label"].agg(["mean", "size"]).reset_index()
    agree = labels["mean"].isin([0, 1])
    print(
        f"{path.name}: {len(table):,} rows, {len(labels):,} distinct measurements, "
        f"{int((~agree).sum())} with differing labels left out"
    )
    labels["label"] = labels["mean"].astype(int)
    return labels.loc[agree, [*DRUGS, "cell", "label"]].reset_index(drop=True)


def read_lines(path: Path) -> AnnData:
    """Return the expression of the lines of the screen, TPM."""
    table = pd.read_csv(path, header=None, low_memory=False)
    lines = AnnData(table.iloc[2:, 1:].to_numpy(dtype=np.float32))  # below gene and transcript
    lines.obs_names = table.iloc[2:, 0].astype(str).to_list()
    lines.var_names = table.iloc[0, 1:].astype(str).to_list()
    return lines


def splits(data: Path, names: list[str], n_folds: int, n_seeds: int) -> Iterator[Split]:
    """Yield all tasks."""
    screen, lines = read_screen(data / FILES[0]), read_lines(data / FILES[1])
    pairs = (screen["drug1"] + " " + screen["drug2"]).to_numpy(dtype=str)
    drugs = [parents(screen[key]) for key in DRUGS]
    folds = {
        "random": KFold(N_FOLDS, shuffle=True, random_state=0).split(screen),
        "drug pair": grouped_folds(screen, [pairs], N_FOLDS),
        "drug": grouped_folds(screen, drugs, N_FOLDS),
        "cell line": grouped_folds(screen, [screen["cell"].to_numpy(dtype=str)], N_FOLDS),
    }
    for name in names:
        if name == SPLITS[-1]:
            yield from independent(data, screen, n_seeds)
            continue
        for seed, (train, test) in enumerate(folds[name]):
            if seed < n_folds:
                yield Split(name, screen.iloc[train], screen.iloc[test], lines, seed)


def independent(data: Path, screen: pd.DataFrame, n_seeds: int) -> Iterator[Split]:
    """Yield the independent set, once per seed."""
    lines, test = gdsc_expression(data), read_screen(data / FILES[2])
    screen, test = (part.assign(cell=plain(part["cell"])) for part in (screen, test))
    train = screen[screen["cell"].isin(lines.obs_names)]
    test = test[test["cell"].isin(lines.obs_names)]
    used = lines.obs_names.isin(pd.concat([train["cell"], test["cell"]]))
    known = set(train[DRUGS].to_numpy().ravel())
    n_known = sum(drug in known for drug in set(test[DRUGS].to_numpy().ravel()))
    print(
        f"independent: {len(train):,} rows of {train['cell'].nunique()} lines to learn from, "
        f"{len(test):,} of {test['cell'].nunique()} to predict, {n_known} drugs known"
    )
    for seed in range(n_seeds):
        yield Split(SPLITS[-1], train, test, lines[used].copy(), seed)


def on_features(make: Callable[[int], object]) -> Callable[[Split], np.ndarray]:
    """Return a method that fits a scikit-learn model to both orders of every pair."""

    def predict(split: Split) -> np.ndarray:
        features = Features(split, DRUGS)
        x = np.concatenate([features(split.train), features(split.train, reverse=True)])
        model = make(split.seed)
        model.fit(x, np.tile(split.train["label"], 2))  # type: ignore[attr-defined]
        both = [
            model.predict_proba(features(split.test, reverse))[:, 1]  # type: ignore[attr-defined]
            for reverse in (False, True)
        ]
        return np.mean(both, axis=0)

    return predict


def xtrimogene(split: Split) -> np.ndarray:
    """Train with defaults."""
    synergy, lines = scxtrimo.model.XTrimoGeneSynergy, split.lines
    kind = "tpm" if lines.X.min() >= 0 else "values"
    synergy.setup_anndata(lines, expression=kind)
    model = synergy(lines, split.train, seed=split.seed)
    model.train(enable_progress_bar=False, accelerator="cpu")
    return model.predict(split.test)["probability"].to_numpy()


def perceptron(split: Split) -> np.ndarray:
    """Train a perceptron until a tenth of the rows, in both orders, are predicted no better."""
    features, rng = Features(split, DRUGS), np.random.default_rng(split.seed)
    is_held_out = rng.random(len(split.train)) < 0.1
    parts = {}
    for name, rows in (("train", split.train[~is_held_out]), ("stop", split.train[is_held_out])):
        x = np.concatenate([features(rows), features(rows, reverse=True)])
        parts[name] = x, np.tile(rows["label"], 2)
    scaler = StandardScaler().fit(parts["train"][0])
    (x, y), (x_stop, y_stop) = ((scaler.transform(x), y) for x, y in parts.values())
    model = MLPClassifier((256, 128), batch_size=256, random_state=split.seed)
    best, best_score, best_epoch = model, 0.0, 0
    for epoch in range(40):
        order = rng.permutation(len(x))
        model.partial_fit(x[order], y[order], classes=[0, 1])
        score = roc_auc(y_stop, model.predict_proba(x_stop)[:, 1])
        if score > best_score:
            best, best_score, best_epoch = deepcopy(model), score, epoch
        elif epoch - best_epoch >= 10:
            break
    both = [
        best.predict_proba(scaler.transform(features(split.test, reverse)))[:, 1]
        for reverse in (False, True)
    ]
    return np.mean(both, axis=0)


METHODS: dict[str, Callable[[Split], np.ndarray]] = {
    "gradient boosting": on_features(
        lambda seed: HistGradientBoostingClassifier(
            max_iter=300, max_features=0.2, early_stopping=False, random_state=seed
        )
    ),
    "random forest": on_features(
        lambda seed: RandomForestClassifier(100, max_features=0.2, random_state=seed)
    ),
    "MLP": perceptron,
    "xTrimoGene": xtrimogene,
}


def run(split: Split, method: str) -> list[dict]:
    """Run a method and return its scores."""
    start = time.perf_counter()
    p = METHODS[method](split)
    seconds = time.perf_counter() - start
    truth = split.test["label"].to_numpy()
    scores = {
        "ROC-AUC": roc_auc(truth, p),
        "PR-AUC": average_precision_score(truth, p),
        "accuracy": accuracy_score(truth, p > 0.5),
        "kappa": cohen_kappa_score(truth, p > 0.5),
    }
    print(f"{split.name} {method} {split.seed}: {scores} {seconds:.1f} s", flush=True)
    return rows_of("synergy", split.name, method, scores, seconds=seconds)


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments.add_argument("--folds", type=int, default=N_FOLDS, help="how many of the five")
    arguments.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    args = arguments.parse_args()
    warnings.simplefilter("ignore")
    data = need_data(args.data, *FILES, "gdsc_expression.npz")
    names = args.splits[:1] if args.quick else args.splits
    n_folds, n_seeds = (1, 1) if args.quick else (args.folds, args.seeds)
    rows = []
    for split in splits(data, names, n_folds, n_seeds):
        for method in args.methods:
            rows += run(split, method)
    report(summarize(rows), args.json)


if __name__ == "__main__":
    main()
