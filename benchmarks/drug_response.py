"""Response to a drug: ln IC50 of GDSC2, with new measurements, new lines and new drugs.

    python benchmarks/drug_response.py --data drugs/

``random``: three folds over measurements; ``cell line`` and ``drug``: test rows have a line or a
drug that no training row has. Drugs are compared by canonical SMILES: those with one structure and
several names are one drug; folds over drugs keep salts and stereoisomers together. TT and
KMH2 are left out: their rows are those of two lines each (TT and T-T, KM-H2 and KMH-2). Repeated
measurements of a drug and a line are averaged, so that none is in two folds.

``drug mean`` predicts the mean of the drug, or of all rows for a new one; ``drug + line`` adds how
the line differs from others on average; gradient boosting sees principal components of structure
(Morgan counts and descriptors) and of expression. Pearson and Spearman correlation over all rows,
where the means of drugs dominate, and the mean over drugs of those within a drug with at least ten
test rows, which tell whether lines are told apart; a constant prediction has 0. Root mean squared
error, and seconds on one core, mean and standard deviation over folds.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from _common import parser, report, rows_of, summarize
from _drugs import Features, Split, gdsc_expression, grouped_folds, need_data, parents, plain
from anndata import AnnData
from scipy.stats import pearsonr, spearmanr
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import scxtrimo
from scxtrimo.drugs.molecules import canonical_smiles

N_FOLDS = 3
N_COMPONENTS = 50
MIN_ROWS = 10
MERGED = ["TT", "KMH2"]
FILES = ("gdsc2_ic50.csv.gz", "gdsc_smiles.csv", "gdsc_expression.npz")
SPLITS = ("random", "cell line", "drug")


def read_screen(data: Path, lines: AnnData) -> pd.DataFrame:
    """Return distinct drugs and lines with the mean of their measurements."""
    table, names = pd.read_csv(data / FILES[0]), pd.read_csv(data / FILES[1])
    canonical = canonical_smiles(names["smiles"])
    smiles = names.set_index("drug")["smiles"].map(canonical)
    table = table.assign(name=table["drug"], drug=table["drug"].map(smiles))
    table["cell"] = plain(table["cell"])
    usable = table["drug"].notna() & table["cell"].isin(lines.obs_names)
    usable = table[usable & ~table["cell"].isin(MERGED)]
    screen = usable.groupby(["cell", "drug"], as_index=False)["y"].mean()
    print(
        f"{FILES[0]}: {len(table):,} rows, {len(table) - len(usable):,} without structure or "
        f"expression left out; {usable['name'].nunique()} names are {screen['drug'].nunique()} "
        f"structures; {len(screen):,} distinct measurements of {screen['cell'].nunique()} lines"
    )
    return screen


def splits(data: Path, names: list[str], n_folds: int) -> Iterator[Split]:
    """Yield all tasks."""
    lines = gdsc_expression(data)
    screen = read_screen(data, lines)
    lines = lines[lines.obs_names.isin(screen["cell"])].copy()
    folds = {
        "random": KFold(N_FOLDS, shuffle=True, random_state=0).split(screen),
        "cell line": grouped_folds(screen, [screen["cell"].to_numpy(dtype=str)], N_FOLDS),
        "drug": grouped_folds(screen, [parents(screen["drug"])], N_FOLDS),
    }
    for name in names:
        for seed, (train, test) in enumerate(folds[name]):
            if seed < n_folds:
                yield Split(name, screen.iloc[train], screen.iloc[test], lines, seed)


def drug_mean(split: Split) -> np.ndarray:
    """Predict the mean of the drug."""
    means = split.train.groupby("drug")["y"].mean()
    return split.test["drug"].map(means).fillna(split.train["y"].mean()).to_numpy()


def drug_and_line_mean(split: Split) -> np.ndarray:
    """Add the mean by which the line differs, beyond its drugs."""
    train = split.train
    residual = train["y"] - train.groupby("drug")["y"].transform("mean")
    effects = residual.groupby(train["cell"]).mean()
    return drug_mean(split) + split.test["cell"].map(effects).fillna(0).to_numpy()


def gradient_boosting(split: Split) -> np.ndarray:
    """Boost trees on principal components of structure and of expression."""
    features = Features(split, ["drug"], N_COMPONENTS)
    trained = [features.drug_place[drug] for drug in split.train["drug"].unique()]
    components = make_pipeline(StandardScaler(), PCA(N_COMPONENTS, random_state=0))
    features.drugs = components.fit(features.drugs[trained]).transform(features.drugs)
    model = HistGradientBoostingRegressor(
        max_iter=300, learning_rate=0.15, max_leaf_nodes=63, random_state=split.seed
    )
    return model.fit(features(split.train), split.train["y"]).predict(features(split.test))


def xtrimogene(split: Split) -> np.ndarray:
    """Train with defaults."""
    response = scxtrimo.model.XTrimoGeneDrugResponse
    response.setup_anndata(split.lines, expression="values")
    model = response(split.lines, split.train, seed=split.seed)
    model.train(enable_progress_bar=False, accelerator="cpu")
    return model.predict(split.test)["predicted_response"].to_numpy()


def closed_form(split: Split) -> np.ndarray:
    """The simple models that ours starts from, fitted to all training rows."""
    response = scxtrimo.model.XTrimoGeneDrugResponse
    response.setup_anndata(split.lines, expression="values")
    model = response(split.lines, split.train, seed=split.seed)
    model.train(enable_progress_bar=False, accelerator="cpu", max_epochs=1, lr=1e-12)
    return model.predict(split.test)["predicted_response"].to_numpy()


METHODS: dict[str, Callable[[Split], np.ndarray]] = {
    "drug mean": drug_mean,
    "drug + line mean": drug_and_line_mean,
    "gradient boosting": gradient_boosting,
    "closed form only": closed_form,
    "xTrimoGene": xtrimogene,
}


def correlations(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Return Pearson's and Spearman's, 0 for a constant prediction."""
    if np.ptp(predicted) < 1e-9 or np.ptp(truth) < 1e-9:
        return 0.0, 0.0
    return float(pearsonr(truth, predicted)[0]), float(spearmanr(truth, predicted)[0])


def scores_of(test: pd.DataFrame, predicted: np.ndarray) -> dict[str, float]:
    """Return the scores of predictions."""
    table = test.assign(predicted=predicted)
    within = [
        correlations(part["y"].to_numpy(), part["predicted"].to_numpy())
        for _, part in table.groupby("drug")
        if len(part) >= MIN_ROWS
    ]
    pearson, spearman = correlations(table["y"].to_numpy(), predicted)
    of_drugs = np.mean(within, axis=0)
    return {
        "Pearson": pearson,
        "Spearman": spearman,
        "Pearson per drug": float(of_drugs[0]),
        "Spearman per drug": float(of_drugs[1]),
        "RMSE": float(np.sqrt(((table["y"] - predicted) ** 2).mean())),
    }


def run(split: Split, method: str) -> list[dict]:
    """Run a method and return its scores."""
    start = time.perf_counter()
    predicted = METHODS[method](split)
    seconds = time.perf_counter() - start
    scores = scores_of(split.test, predicted)
    print(f"{split.name} {method} {split.seed}: {scores} {seconds:.1f} s", flush=True)
    return rows_of("drug response", split.name, method, scores, seconds=seconds)


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments.add_argument("--folds", type=int, default=N_FOLDS, help="how many of the three")
    arguments.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    args = arguments.parse_args()
    warnings.simplefilter("ignore")
    data = need_data(args.data, *FILES)
    names = args.splits[:1] if args.quick else args.splits
    rows = []
    for split in splits(data, names, 1 if args.quick else args.folds):
        for method in args.methods:
            rows += run(split, method)
    report(summarize(rows), args.json)


if __name__ == "__main__":
    main()
