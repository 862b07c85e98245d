"""Effects of perturbations that were not measured, predicted and observed.

    python benchmarks/perturbation.py --data norman_mcfaline.h5ad --reference tnbc_deep.h5ad
    python benchmarks/perturbation.py  # 50 genes and 70 pairs, simulated

``doubles``: pairs of genes are held out (five splits, every pair once), all single genes are
known; by how many genes of the pair were perturbed alone. ``singles``: genes are held out, with
all pairs they are part of. ``populations``: all perturbed cells of a cell line are held out, its
control cells and the other lines are known. Effects are differences of the mean log-normalised
expression to the control cells, over all genes; the 20 differential genes are those with the
largest observed effects in units of their standard error. Energy distance: of cells drawn with
the predicted means from the control cells, in the same way for all methods, to the perturbed
cells. ``> additive``: part of the perturbations with a smaller squared error than the additive
model's. Mean and standard deviation over the splits, and seconds per split.

The ceiling is what one half of the cells of a perturbation says about the other half: for its
error it is no bound, as half of the cells are noisier than all.

Gene embeddings are loadings of an SVD of the cells of ``--reference``, in which most of the
perturbed genes are measured. Seconds of our variants are those beyond the training of the network
they share. GEARS runs on the pairs, where ``cell-gears`` is
installed, without the Gene Ontology (see ``_gears.py``), which it needs for genes not seen.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
from _common import data_files, parser, report, rows_of, summarize
from anndata import AnnData
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import RidgeCV

import scxtrimo
from scxtrimo.data.counts import log_normalized
from scxtrimo.perturbation.model import XTrimoGenePerturbation
from scxtrimo.perturbation.tools import change_means
from scxtrimo.perturbation.training import EffectsConfig

N_SPLITS = 5
SIMULATED, CRISPRA, CRISPRI = "simulated", "norman19", "mcfaline23"
N_EMBEDDING = 32
SETUP = {"population_key": "cell_type", "library_size_key": "ncounts"}
LAYER = "counts_recovered"
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
Effects = dict[str, np.ndarray]


class Split(NamedTuple):
    """What is known, and what is to be predicted for one population."""

    task: str
    train: AnnData
    population: str
    test: dict[str, str]  # perturbation: kind
    seed: int
    reference: pd.DataFrame | None
    quick: bool
    data: str


def targets(name: str) -> list[str]:
    return sorted(name.split("+"))


def known_effects(split: Split) -> Effects:
    """Return the effects of the training perturbations, averaged over populations."""
    observed = scxtrimo.tl.perturbation_effects(split.train, "condition", layer=LAYER, **SETUP)
    in_it = observed.obs["population"] == split.population
    if in_it.any():
        observed = observed[in_it.to_numpy()]
    names, effect = observed.obs["perturbation"].to_numpy(), observed.layers["effect"]
    return {name: effect[names == name].mean(axis=0) for name in np.unique(names)}


def no_change(split: Split) -> Effects:
    return {name: np.zeros(split.train.n_vars) for name in split.test}


def mean_effect(split: Split) -> Effects:
    mean = np.mean(list(known_effects(split).values()), axis=0)
    return dict.fromkeys(split.test, mean)


def mean_pair(split: Split) -> Effects:
    pairs = [effect for name, effect in known_effects(split).items() if "+" in name]
    return dict.fromkeys(split.test, np.mean(pairs, axis=0))


def scaled_additive(split: Split) -> Effects:
    """Additive model times one factor, that of the training pairs."""
    known = known_effects(split)
    pairs = [name for name in known if "+" in name and all(t in known for t in targets(name))]
    sums = np.array([sum(known[t] for t in targets(name)) for name in pairs])
    factor = (sums * [known[name] for name in pairs]).sum() / np.square(sums).sum()
    return {name: factor * effect for name, effect in additive(split).items()}


def additive(split: Split, unknown: str = "zero") -> Effects:
    """Sum of the effects of the genes alone; what is unknown is nothing, or the mean."""
    known = known_effects(split)
    singles = [effect for name, effect in known.items() if "+" not in name]
    default = np.mean(singles, axis=0) if unknown == "mean" else np.zeros(split.train.n_vars)
    return {name: sum(known.get(t, default) for t in targets(name)) for name in split.test}


def same_elsewhere(split: Split) -> Effects:
    """Effects of the same perturbations in the other populations."""
    known = known_effects(split)
    return {name: known[name] for name in split.test}


def features(names: list[str], vocabulary: list[str], table: pd.DataFrame | None) -> np.ndarray:
    """Sum over the perturbed genes of what is known about them; the number of genes besides."""
    rows = []
    for name in names:
        genes = targets(name)
        row = [len(genes)]
        if table is None:
            row += [gene in genes for gene in vocabulary]
        else:
            row += list(
                sum(table.loc[g] if g in table.index else 0 * table.iloc[0] for g in genes)
            )
        rows.append(row)
    return np.array(rows, dtype=float)


def regression(split: Split, make: Callable[[], Any], table: pd.DataFrame | None) -> Effects:
    """Regress effects on indicators of the perturbed genes, or on their embeddings."""
    known = known_effects(split)
    vocabulary = sorted({gene for name in known for gene in targets(name)})
    x, y = features(list(known), vocabulary, table), np.array(list(known.values()))
    predicted = make().fit(x, y).predict(features(list(split.test), vocabulary, table))
    return dict(zip(split.test, predicted, strict=True))


def ridge() -> RidgeCV:
    return RidgeCV(np.logspace(-2, 3, 11))  # leave-one-out chooses


def scxtrimo_effects(split: Split) -> Effects:
    train = split.train.copy()
    XTrimoGenePerturbation.setup_anndata(train, "condition", layer=LAYER, **SETUP)
    model = XTrimoGenePerturbation(train, size="tiny" if split.quick else "auto", seed=split.seed)
    model.train(1 if split.quick else None, **QUIET)
    MODEL[:] = [model]
    return predictions(model, split)


def with_other_effects(
    split: Split, table: pd.DataFrame | None = None, correct: bool = True
) -> Effects:
    """Learn the effects again in another way, with the network that was just trained."""
    MODEL[0].train(target_features=table, effects=EffectsConfig(correct=correct))
    return predictions(MODEL[0], split)


def predictions(model: XTrimoGenePerturbation, split: Split) -> Effects:
    train = split.train
    predicted = model.predict(list(split.test), split.population, unknown_targets="average")
    wide = np.zeros((predicted.n_obs, train.n_vars))
    wide[:, train.var_names.get_indexer(predicted.var_names)] = predicted.layers["effect"]
    std = np.zeros_like(wide)
    std[:, train.var_names.get_indexer(predicted.var_names)] = predicted.layers["std"]
    STD.update({(split.task, name): s for name, s in zip(split.test, std, strict=True)})
    return dict(zip(split.test, wide, strict=True))


MODEL: list[XTrimoGenePerturbation] = []
"""The last of our models."""

STD: dict[tuple[str, str], np.ndarray] = {}
"""Standard deviations that the last of our models predicted."""


def gears_effects(split: Split) -> Effects:
    from _gears import gears

    cells = split.train[split.train.obs["cell_type"] == split.population].copy()
    names = list(split.test)
    mean = gears(cells, names, names, split.seed, 1 if split.quick else 10)
    control = np.asarray(cells.X[(cells.obs["condition"] == "control").to_numpy()].mean(axis=0))
    return {name: mean[name] - control.ravel() for name in names}


def methods(split: Split) -> dict[str, Callable[[Split], Effects]]:
    """Return what is compared on a task."""
    table = split.reference
    result: dict[str, Callable[[Split], Effects]] = {
        "no change": no_change,
        "mean of the training": mean_effect,
    }
    if split.task == "populations":
        result["same in other lines"] = same_elsewhere
    else:
        result["additive"] = additive
        result["additive, else mean"] = lambda s: additive(s, "mean")
        if split.task == "doubles":
            result["mean of the training pairs"] = mean_pair
            result["additive, scaled"] = scaled_additive
        result["ridge on genes"] = lambda s: regression(s, ridge, None)
        if table is not None:
            result["ridge on embeddings"] = lambda s: regression(s, ridge, table)
            result["random forest on embeddings"] = lambda s: regression(
                s, lambda: RandomForestRegressor(300, random_state=s.seed), table
            )
        if split.task == "doubles" and split.data != SIMULATED:
            result["GEARS without GO"] = gears_effects
    result["XTrimoGenePerturbation"] = scxtrimo_effects
    if split.task != "populations":
        result["  without the network"] = lambda s: with_other_effects(s, correct=False)
        if table is not None:
            result["  with embeddings"] = lambda s: with_other_effects(s, table)
    return result


def splits(
    adata: AnnData, reference: pd.DataFrame | None, seed: int, quick: bool, data: str
) -> Iterator[Split]:
    rng = np.random.default_rng(seed)
    crispra = adata[adata.obs["dataset"] == CRISPRA].copy()
    names = [name for name in crispra.obs["condition"].unique() if name != "control"]
    singles = [name for name in names if "+" not in name]
    doubles = [name for name in names if "+" in name]
    n_splits = 1 if quick else N_SPLITS
    for held_out in np.array_split(rng.permutation(doubles), N_SPLITS)[:n_splits]:
        train = crispra[~crispra.obs["condition"].isin(held_out).to_numpy()].copy()
        kinds = {d: f"{sum(t in singles for t in targets(d))} of 2 seen" for d in held_out}
        yield Split("doubles", train, "k562", kinds, seed, reference, quick, data)
    for held_out in np.array_split(rng.permutation(singles), N_SPLITS)[:n_splits]:
        kept = [name for name in names if not set(targets(name)) & set(held_out)]
        train = crispra[crispra.obs["condition"].isin([*kept, "control"]).to_numpy()].copy()
        yield Split(
            "singles", train, "k562", dict.fromkeys(held_out, ""), seed, reference, quick, data
        )
    crispri = adata[adata.obs["dataset"] == CRISPRI].copy()
    lines = sorted(crispri.obs["cell_type"].unique())
    for line in lines[:n_splits]:
        is_out = (crispri.obs["cell_type"] == line) & (crispri.obs["condition"] != "control")
        test = dict.fromkeys(sorted(crispri.obs["condition"][is_out].unique()), "")
        train = crispri[~is_out.to_numpy()].copy()
        yield Split("populations", train, line, test, seed, reference, quick, data)


def evaluate(
    effect: np.ndarray, control: np.ndarray, cells: np.ndarray, seed: int
) -> dict[str, float]:
    """Return the scores of a predicted effect."""
    n = len(cells)
    observed = cells.mean(axis=0) - control.mean(axis=0)
    error = np.sqrt(cells.var(axis=0, ddof=1) / n + control.var(axis=0, ddof=1) / len(control))
    top = np.argsort(-np.abs(observed) / np.maximum(error, 1e-9))[:20]
    drawn = change_means(control, control.mean(axis=0) + effect, np.random.default_rng(seed))
    return {
        "MSE x 1000": 1e3 * np.square(effect - observed).mean(),
        "MSE top 20": np.square(effect - observed)[top].mean(),
        "Pearson": pearson(effect, observed),
        "direction": (np.sign(effect) == np.sign(observed))[top].mean(),
        "energy": energy_distance(drawn.toarray(), cells),
    }


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation; 0 if nothing is predicted to change."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 else 0.0


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    within = sum(cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b))
    return 2 * cdist(a, b).mean() - within


def ceiling(control: np.ndarray, cells: np.ndarray, seed: int) -> dict[str, float]:
    """Return the scores of half of the cells against the other half, averaged over draws."""
    rng, scores = np.random.default_rng(seed), []
    for _ in range(10):
        order, of_control = rng.permutation(len(cells)), rng.permutation(len(control))
        halves = [cells[part] for part in np.array_split(order, 2)]
        controls = [control[part] for part in np.array_split(of_control, 2)]
        effect = halves[0].mean(axis=0) - controls[0].mean(axis=0)
        scores.append(evaluate(effect, controls[1], halves[1], seed))
    return pd.DataFrame(scores).mean().to_dict()


def simulate(n_genes: int = 300, n_targets: int = 50, n_pairs: int = 70) -> AnnData:
    """Cells whose perturbed genes act on six programs, adding up in the logarithm of rates."""
    rng = np.random.default_rng(0)
    names = [f"T{i}" for i in range(n_targets)]
    rates = rng.gamma(0.7, 1.5, n_genes) + 0.05
    programs = rng.normal(0, 1, (6, n_genes)) * (rng.random((6, n_genes)) < 0.15)
    effects = (rng.normal(0, 1, (n_targets, 6)) * (rng.random((n_targets, 6)) < 0.4)) @ programs
    effects += rng.normal(0, 0.6, effects.shape) * (rng.random(effects.shape) < 0.03)
    every = [(i, j) for i in range(n_targets) for j in range(i)]
    pairs = [every[k] for k in rng.choice(len(every), n_pairs, replace=False)]
    conditions: list[tuple[int, ...]] = [(), *((i,) for i in range(n_targets)), *pairs]
    counts, labels = [], []
    for condition in conditions:
        n_cells = 40 if condition else 300
        change = np.clip(effects[list(condition)].sum(axis=0), -4, 3)
        depth = rng.lognormal(0, 0.3, (n_cells, 1))
        counts.append(rng.poisson(rates * np.exp(change) * depth))
        labels += ["+".join(names[i] for i in condition) or "control"] * n_cells
    matrix = sparse.csr_matrix(np.concatenate(counts).astype(np.float32))
    adata = AnnData(log_normalized(matrix), layers={LAYER: matrix})
    adata.obs["condition"], adata.obs["cell_type"], adata.obs["dataset"] = labels, "k562", CRISPRA
    adata.obs["ncounts"] = np.asarray(matrix.sum(axis=1)).ravel()
    return adata


def embeddings(path: Path) -> pd.DataFrame:
    """Return gene embeddings: loadings of an SVD of scaled log-normalised cells."""
    cells = anndata.read_h5ad(path)
    logged = log_normalized(sparse.csr_matrix(cells.X))
    used = np.flatnonzero(logged.getnnz(axis=0) >= 5)
    values = logged[:, used].tocsc()
    mean = np.asarray(values.mean(axis=0)).ravel()
    sd = np.sqrt(np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2)
    svd = TruncatedSVD(N_EMBEDDING + 1, random_state=0).fit(values @ sparse.diags_array(1 / sd))
    loadings = (svd.components_.T * svd.singular_values_)[:, 1:]  # the first is the mean
    loadings /= np.linalg.norm(loadings, axis=1, keepdims=True)
    return pd.DataFrame(loadings, index=cells.var_names[used])


def run(split: Split, full: AnnData) -> Iterator[dict[str, Any]]:
    """Yield the figures of all methods on a split."""
    in_it = (full.obs["cell_type"] == split.population).to_numpy()
    conditions = full.obs["condition"].to_numpy()
    dense = {
        name: full.X[in_it & (conditions == name)].toarray() for name in [*split.test, "control"]
    }
    control = dense["control"]
    scores: list[dict[str, Any]] = []
    for method, predict in methods(split).items():
        start = time.perf_counter()
        try:
            effects = predict(split)
        except ImportError as error:
            print(f"{method} is left out: {error}")
            continue
        seconds = time.perf_counter() - start
        for name, kind in split.test.items():
            base = {"method": method, "kind": kind, "name": name}
            figures = evaluate(np.ravel(effects[name]), control, dense[name], split.seed)
            if method == "XTrimoGenePerturbation":
                noise = dense[name].var(axis=0, ddof=1) / len(dense[name])
                std = np.sqrt(STD[split.task, name] ** 2 + noise)
                used = std > 0
                observed = dense[name].mean(axis=0) - control.mean(axis=0)
                inside = np.abs(effects[name] - observed)[used] < 1.645 * std[used]
                figures["in 90% interval"] = inside.mean()
            scores.append(base | {"seconds": seconds} | figures)
    for name, kind in split.test.items():
        figures = ceiling(control, dense[name], split.seed)
        base = {"method": "half of the cells", "kind": kind, "name": name}
        scores.append(base | {"seconds": 0.0} | figures)
    frame = pd.DataFrame(scores)
    if (frame["method"] == "additive").any():
        of_additive = frame[frame["method"] == "additive"].set_index("name")["MSE x 1000"]
        frame["> additive"] = frame["MSE x 1000"] < frame["name"].map(of_additive)
    frame = frame.drop(columns="name")
    kinds = [""] + sorted(kind for kind in set(split.test.values()) if kind)
    for kind in kinds:
        part = frame if kind == "" else frame[frame["kind"] == kind]
        for method, of_method in part.groupby("method", sort=False):
            means = of_method.drop(columns=["method", "kind", "seconds"]).mean().dropna()
            seconds = of_method["seconds"].iloc[0]
            task = f"{split.task}, {kind}" if kind else split.task
            yield from rows_of(task, split.data, method, means.to_dict(), seconds=seconds)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--reference", type=Path, help="cells with the perturbed genes")
    args = arguments.parse_args()
    warnings.filterwarnings("ignore")
    if args.data is None:
        adata, name = simulate(), SIMULATED
    else:
        path = data_files(args.data)[0]
        adata, name = anndata.read_h5ad(path), path.stem
    for key in ("condition", "cell_type", "dataset"):
        adata.obs[key] = adata.obs[key].astype(str)
    adata.X = sparse.csr_matrix(adata.X)
    reference = None if args.reference is None else embeddings(args.reference)
    rows = []
    for seed in range(1 if args.quick else args.seeds):
        for split in splits(adata, reference, seed, args.quick, name):
            rows += run(split, adata)
            print(f"seed {seed}, {split.task}: {', '.join(split.test)}", flush=True)
    report(summarize(rows), args.json)


if __name__ == "__main__":
    main()
