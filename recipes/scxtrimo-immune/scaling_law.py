"""Judge the runs of scaling.py, and fit how their loss falls.

python scaling_law.py out --data JUDGED --json scaling.json --picture scaling.png

The loss is the negative log-likelihood per count of studies that were held out whole. Of N
parameters, D cells and S steps it is fitted as E + (N/N0)^-a + (D/D0)^-b + (S/S0)^-c. The spread
is that over fits which leave out one run each. The weights that come with the package are not part
of the fit: how well it foretells their loss says how far to trust it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import anndata
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import NullFormatter
from scipy.optimize import least_squares

import scxtrimo

AXES = ("parameters", "cells", "steps")
LABEL, REPRESENTATION = "cell_type", "X_xtrimo"
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
STARTS = 20
RELEASED = "scxtrimo-immune"


def law(theta: np.ndarray, runs: pd.DataFrame) -> np.ndarray:
    """Return the loss of runs; theta: log E, then the logs of a scale and an exponent each."""
    loss = np.full(len(runs), np.exp(theta[0]))
    for i, axis in enumerate(AXES):
        scale, exponent = theta[1 + 2 * i], np.exp(theta[2 + 2 * i])
        power = exponent * (np.log(runs[axis].to_numpy(dtype=float)) - scale)
        loss += np.exp(-power.clip(-50))  # no overflow on the way
    return loss


def fit(runs: pd.DataFrame) -> np.ndarray:
    """Return the parameters with the smallest squared error, of several starts."""
    rng = np.random.default_rng(0)
    best: Any = None
    for _ in range(STARTS):
        start = [np.log(7), *(rng.uniform((0, -2.5), (8, 0)) for _ in AXES)]
        found = least_squares(
            lambda theta: law(theta, runs) - runs["loss"], np.hstack(start), method="lm"
        )
        if best is None or found.cost < best.cost:
            best = found
    return best.x


def scores_of(adata: anndata.AnnData, latent: np.ndarray) -> dict[str, float]:
    """Return how well a representation agrees with the labels."""
    adata.obsm[REPRESENTATION] = latent
    neighbors = scxtrimo.tl.neighbor_agreement(adata, LABEL, REPRESENTATION)
    return {
        "macro-F1": float(neighbors["knn_macro_f1"]),
        "silhouette": float(neighbors["silhouette"]),
    }


def judge(path: str, files: list[Path]) -> dict[str, float]:
    """Return the mean over files, as the weights come and with the latent space fitted."""
    scores: list[dict[str, float]] = []
    for file in files:
        adata = anndata.read_h5ad(file)
        adata.var_names_make_unique()
        adata = adata[adata.obs[LABEL].notna()].copy()
        is_directory = Path(path).is_dir()
        load = scxtrimo.model.XTrimoGene.load if is_directory else None
        model = (
            load(path, adata=False) if load else scxtrimo.model.XTrimoGene.from_pretrained(path)
        )
        as_it_comes = scores_of(adata, model.get_latent_representation(adata))
        scxtrimo.model.XTrimoGene.setup_anndata(adata)
        model = scxtrimo.model.XTrimoGene(adata, pretrained=path)
        model.train(adapt="fit", **QUIET)
        fitted = scores_of(adata, model.get_latent_representation())
        scores.append(
            {f"{name}, as it comes": value for name, value in as_it_comes.items()}
            | {f"{name}, fitted": value for name, value in fitted.items()}
        )
    return pd.DataFrame(scores).mean().to_dict()


def draw(runs: pd.DataFrame, theta: np.ndarray, path: Path) -> None:
    """Draw loss and macro-F1 against arithmetic, and the loss against each quantity."""
    with mpl.rc_context({"backend": "agg", "figure.dpi": 150}):
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
        colors = {width: f"C{i}" for i, width in enumerate(sorted(runs["width"].unique()))}
        for width, color in colors.items():
            some = runs[runs["width"] == width]
            axes[0].scatter(
                some["flops"], some["loss"], s=8 + some["cells"] / 600, c=color, alpha=0.7
            )
            same = some[some["steps"] == runs["steps"].mode()[0]].sort_values("cells")
            axes[1].plot(same["cells"], same["loss"], "o", c=color, label=f"width {width}")
            grid = same.iloc[[0] * 50].assign(cells=np.geomspace(1e3, 1e6, 50))
            axes[1].plot(grid["cells"], law(theta, grid), c=color, lw=0.8)
            axes[2].scatter(
                some["loss"], some["macro-F1, as it comes"], c=color, s=8 + some["cells"] / 600
            )
        axes[0].set(xscale="log", xlabel="floating-point operations", ylabel="held-out loss")
        axes[0].xaxis.set_minor_formatter(NullFormatter())
        axes[1].set(xscale="log", xlabel="cells trained on", ylabel="held-out loss")
        axes[1].legend(fontsize=7)
        axes[2].set(xlabel="held-out loss", ylabel="macro-F1, as it comes")
        axes[2].invert_xaxis()
        figure.savefig(path)


def main() -> None:
    """Judge, fit, print and draw."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("out", type=Path, help="folder with the runs")
    arguments.add_argument("--data", type=Path, required=True, help="folder of labelled .h5ad")
    arguments.add_argument("--json", type=Path, required=True, help="table to write")
    arguments.add_argument("--picture", type=Path)
    args = arguments.parse_args()
    torch.set_num_threads(1)
    files = sorted(args.data.glob("*.h5ad"))
    rows = [json.loads(path.read_text()) for path in sorted(args.out.glob("*/scaling.json"))]
    known = json.loads(args.json.read_text()) if args.json.is_file() else []
    judged = {(row["width"], row["cells"], row["steps"]): row for row in known}
    for row in rows:
        key = row["width"], row["cells"], row["steps"]
        name = f"width{row['width']}-cells{row['cells']}-steps{row['steps']}"
        row |= judged[key] if key in judged else judge(str(args.out / name / "model"), files)
        args.json.write_text(json.dumps(rows, indent=1))
        print(name, {k: v for k, v in row.items() if k != "losses"}, flush=True)
    runs = pd.DataFrame(rows).drop(columns="losses")
    print(runs.sort_values(["steps", "width", "cells"]).to_string(index=False))
    theta = fit(runs)
    others = np.array([fit(runs.drop(index=i)) for i in runs.index])
    residual = law(theta, runs) - runs["loss"]
    print(f"\nE = {np.exp(theta[0]):.3f}, root mean square of the residuals {residual.std():.4f}")
    for i, axis in enumerate(AXES):
        exponents = np.exp(others[:, 2 + 2 * i])
        print(
            f"{axis}: exponent {np.exp(theta[2 + 2 * i]):.3f} "
            f"(leaving one out {exponents.min():.3f} to {exponents.max():.3f})"
        )
    released = scxtrimo.model.XTrimoGene.from_pretrained(RELEASED)
    provenance = released.provenance
    largest = runs[(runs["width"] == released.config.n_hidden)].nlargest(1, "cells")
    start = largest.assign(steps=int(provenance["steps"]))
    wanted = {
        "the weights of the package": start,
        "100 times the cells": start.assign(cells=start["cells"] * 100),
        "100 times the steps": start.assign(steps=start["steps"] * 100),
        "100 times the parameters": start.assign(parameters=start["parameters"] * 100),
        "100 times all three": start.assign(**{axis: start[axis] * 100 for axis in AXES}),
    }
    for name, what in wanted.items():
        foretold = [law(one, what)[0] for one in others]
        print(
            f"{name}: foretold loss {law(theta, what)[0]:.3f} "
            f"({min(foretold):.3f} to {max(foretold):.3f})"
        )
    print("measured:", provenance["last reconstruction_loss_validation"])
    if args.picture is not None:
        draw(runs, theta, args.picture)


if __name__ == "__main__":
    main()
