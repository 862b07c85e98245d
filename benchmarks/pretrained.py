"""Which gain is whose: pretrained weights, adaptation, shape of the network, and components.

    python benchmarks/pretrained.py                             # bundled cells
    python benchmarks/pretrained.py --data cells.h5ad --labels-key cell_type
    python benchmarks/pretrained.py --data directory --labels-key label --sizes 100 300 all

Random parts of 100, 300, 1,000 and 3,000 cells, and all cells, are represented by

- 30 principal components of scaled genes, scVI, and the components of our latent space alone,
- a network from scratch,
- a random encoder of the shape of the pretrained one, with the same fit,
- the pretrained network with its latent space as it comes, without a look at these cells,
- the same with the latent space fitted to these cells,
- the default, which trains from scratch where the fit says little, and fine-tuning.

Scores as in embedding.py; the spread is that over parts of the data, or over training seeds where
all cells are used. Labels of fewer than five cells of a part are left out. ``--picture FILE``
draws macro-F1 against the number of cells.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from _cells import load
from _common import data_files, parser, report, rows_of, summarize
from anndata import AnnData
from embedding import pca, scvi_default

import scxtrimo

SIZES = ("100", "300", "1000", "3000", "all")
METRICS = ("ari", "nmi", "knn_macro_f1", "silhouette")
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def registered(adata: AnnData, seed: int, name: str | None) -> Any:
    """Return a model of these cells that is not trained."""
    scxtrimo.model.XTrimoGene.setup_anndata(adata)
    return scxtrimo.model.XTrimoGene(adata, pretrained=name, seed=seed)


def adapted(adata: AnnData, seed: int, name: str | None, how: str) -> np.ndarray:
    """Return the representation of a pretrained network that was adapted in some way."""
    model = registered(adata, seed, name)
    model.train(adapt=how, **QUIET)
    return model.get_latent_representation()


def from_scratch(adata: AnnData, seed: int, name: str | None) -> np.ndarray:
    """Return the representation of a network that saw these cells alone."""
    model = registered(adata, seed, None)
    model.train(**QUIET)
    return model.get_latent_representation()


def own_components(adata: AnnData, seed: int, name: str | None) -> np.ndarray:
    """Return the components of the latent space as measured, without a network."""
    scxtrimo.model.XTrimoGene.setup_anndata(adata)
    model = scxtrimo.model.XTrimoGene(adata, pretrained=name, seed=seed, measured_weight=1.0)
    model.train(adapt="fit", **QUIET)
    return model.get_latent_representation()


def random_encoder(adata: AnnData, seed: int, name: str | None) -> np.ndarray:
    """Return the representation of random weights with the fit of the pretrained ones."""
    model = registered(adata, seed, name)
    scxtrimo.model.XTrimoGene.setup_anndata(adata)
    random = scxtrimo.model.XTrimoGene(adata, config=model.config, seed=seed)
    model.module.net.load_state_dict(random.module.net.state_dict())
    model.train(adapt="fit", **QUIET)
    return model.get_latent_representation()


def as_it_comes(adata: AnnData, seed: int, name: str | None) -> np.ndarray:
    """Return the representation of the pretrained model, whose latent space is of other cells."""
    return scxtrimo.model.XTrimoGene.from_pretrained(name).get_latent_representation(adata)


METHODS: dict[str, Callable[[AnnData, int, str], np.ndarray]] = {
    "PCA-30 scaled": lambda adata, seed, name: pca(
        adata, seed, min(30, adata.n_obs - 1), scale=True
    ),
    "scVI": lambda adata, seed, name: scvi_default(adata, seed),
    "own components": own_components,
    "from scratch": from_scratch,
    "random encoder": random_encoder,
    "pretrained, as it comes": as_it_comes,
    "pretrained, fitted": lambda *args: adapted(*args, "fit"),
    "pretrained, default": lambda *args: adapted(*args, "auto"),
    "pretrained, fine-tuned": lambda *args: adapted(*args, "finetune"),
}


DEFAULT = "pretrained, default"
COLORS = {method: f"C{i}" for i, method in enumerate(METHODS)} | {DEFAULT: "black"}


def part_of(adata: AnnData, size: str, seed: int) -> AnnData | None:
    """Return a random part of the cells, with labels of at least five of them."""
    n_cells = adata.n_obs if size == "all" else int(size)
    if n_cells > adata.n_obs:
        return None
    rows = np.random.default_rng(seed).choice(adata.n_obs, n_cells, replace=False)
    part = adata[np.sort(rows)].copy()
    times = part.obs["label"].map(part.obs["label"].value_counts()).astype(int)
    return part[(times >= 5).to_numpy()].copy()


def scores_of(adata: AnnData, latent: np.ndarray) -> dict[str, float]:
    """Return how well a representation agrees with the labels."""
    adata.obsm["rep"] = latent.astype(np.float32)
    found = scxtrimo.tl.cluster_agreement(adata, "label", "rep")
    found |= scxtrimo.tl.neighbor_agreement(adata, "label", "rep")
    return {metric: float(found[metric]) for metric in METRICS}


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw macro-F1 against the number of cells, one panel per data set with several sizes."""
    columns = ["data", "method", "value", "spread"]  # a single run has no spread
    scores = table[table["metric"] == "knn_macro_f1"].reindex(columns=columns)
    parts = scores["data"].str.extract(r"(?P<name>.*), (?P<cells>\d+) cells")
    scores = scores.assign(name=parts["name"], cells=parts["cells"].astype(int))
    n_sizes = scores.groupby("name", sort=False)["cells"].nunique()
    names = n_sizes.index[n_sizes >= min(3, n_sizes.max())]
    n_columns = min(len(names), 3)
    n_rows = -(-len(names) // n_columns)
    size = (3 * n_columns + 2, 2.8 * n_rows)
    with mpl.rc_context({"backend": "agg", "figure.dpi": 150}):
        figure, axes = plt.subplots(
            n_rows, n_columns, figsize=size, squeeze=False, layout="constrained"
        )
        for name, ax in zip(names, axes.flat, strict=False):
            for method, of_method in scores[scores["name"] == name].groupby("method", sort=False):
                line = of_method.sort_values("cells")
                style = {"marker": "o", "markersize": 3, "capsize": 2, "color": COLORS[method]}
                style["linewidth"] = 2 if method == DEFAULT else 1
                ax.errorbar(line["cells"], line["value"], line["spread"], label=method, **style)
            ax.set(xscale="log", title=name.replace("_", " "))
            sizes = sorted(scores["cells"][scores["name"] == name].unique())
            ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
            ax.minorticks_off()
        for ax in axes.flat[len(names) :]:
            ax.set_axis_off()
        figure.supxlabel("cells")
        figure.supylabel("macro-F1 of 15 neighbours")
        lines = {}
        for ax in axes.flat:
            handles, labels = ax.get_legend_handles_labels()
            lines |= dict(zip(labels, handles, strict=True))
        figure.legend(lines.values(), lines, loc="outside right center", fontsize=8)
        figure.savefig(path)


def main() -> None:
    """Compare the methods on parts of every data set."""
    arguments = parser(__doc__)
    arguments.add_argument("--labels-key", default="cell_type")
    arguments.add_argument("--sizes", nargs="+", default=SIZES)
    arguments.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    arguments.add_argument("--name", default="scxtrimo-immune", help="pretrained network")
    arguments.add_argument("--picture", type=Path, metavar="FILE")
    arguments.add_argument("--beside", type=Path, nargs="+", default=[], metavar="JSON")
    args = arguments.parse_args()
    if args.quick:
        args.sizes, args.seeds = ["300"], 1
    torch.set_num_threads(1)
    files: list[Path | None] = [None] if args.data is None else [*data_files(args.data)]
    rows: list[dict[str, Any]] = []
    for file in files:
        adata = load(file, args.labels_key)
        adata.var_names_make_unique()
        name = "pbmc68k" if file is None else file.stem
        for size in args.sizes:
            for seed in range(args.seeds):
                part = part_of(adata, size, seed)
                if part is None:
                    continue
                for method in args.methods:
                    start = time.perf_counter()
                    latent = METHODS[method](part.copy(), seed, args.name)
                    seconds = time.perf_counter() - start
                    scores = scores_of(part, latent)
                    place = f"{name}, {adata.n_obs if size == 'all' else size} cells"
                    print(f"{place}, {method}, seed {seed}: {scores}", flush=True)
                    rows += rows_of("pretrained", place, method, scores, seconds=seconds)
    found = summarize(rows) if rows else []
    if found:
        report(found, args.json)
    if args.picture is not None:
        earlier = [row for path in args.beside for row in json.loads(path.read_text())["rows"]]
        draw(pd.DataFrame(earlier + found), args.picture)


if __name__ == "__main__":
    main()
