"""Does quality rise with size? Validation loss against parameters and training compute.

    python benchmarks/quality.py --data directory --figure quality.png

Models of growing width and depth are trained for the same number of steps on the same cells (all
files of the directory, on the genes they share), from random weights. The loss is measured on
held-out cells; compute is counted on a batch, forward and backward, and multiplied by the steps.
As in Gong et al. 2023 (figure 4) the error is fitted by a line in the logarithm of the compute.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scanpy as sc
from _common import data_files, parser, report, rows_of, summarize
from anndata import AnnData
from torch.utils.flop_counter import FlopCounterMode

import scxtrimo
from scxtrimo.nn.masking import mask_batch
from scxtrimo.train.plan import MaskingConfig

# name: width, layers, heads
SIZES = {"8 x 1": (8, 1, 1), "16 x 1": (16, 1, 1), "32 x 1": (32, 1, 2)}
SIZES |= {"64 x 2": (64, 2, 4), "128 x 2": (128, 2, 4)}
N_STEPS, BATCH_SIZE, N_INPUT_GENES = 500, 64, 1000


def pooled(paths: list[Path]) -> AnnData:
    """Return the cells of all files on the genes they share, counts in X."""
    parts = []
    for path in paths:
        adata = anndata.read_h5ad(path)
        part = AnnData(adata.X, var=adata.var[[]].copy())
        part.var_names_make_unique()
        parts.append(part)
    together = anndata.concat(parts, index_unique="-", keys=[path.stem for path in paths])
    sc.pp.filter_cells(together, min_genes=100)
    return together


def train(adata: AnnData, name: str, seed: int, n_steps: int) -> dict[str, float]:
    """Train one size; return its losses, parameters and compute."""
    width, layers, heads = SIZES[name]
    model_class = scxtrimo.model.XTrimoGene
    model_class.setup_anndata(adata)
    model = model_class(
        adata,
        config=scxtrimo.model.XTrimoGeneConfig(
            n_hidden=width,
            n_layers=layers,
            n_heads=heads,
            n_pool=2 * width,
            n_decoder_hidden=width,
            n_decoder_heads=heads,
            n_input_genes=N_INPUT_GENES,
            pca_initialization=False,
            latent_space="bottleneck",
        ),
        seed=seed,
    )
    n_epochs = max(1, round(n_steps * BATCH_SIZE / (0.9 * adata.n_obs)))
    model.train(
        n_epochs, batch_size=BATCH_SIZE, enable_progress_bar=False, plan_kwargs={"lr": 1e-3}
    )
    history = model.history
    return {
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "tflop": step_flops(model) * n_epochs * len(model.train_indices) / BATCH_SIZE / 1e12,
        "validation_mse": history["imputation_mse_validation"].iloc[-1, 0],
        "validation_nll": history["reconstruction_loss_validation"].iloc[-1, 0],
    }


def step_flops(model: scxtrimo.model.XTrimoGene) -> float:
    """Count the multiplications and additions of one training step."""
    rows = model.train_indices[:BATCH_SIZE]
    batch = next(iter(model._make_data_loader(model.adata, indices=rows, batch_size=BATCH_SIZE)))
    batch = mask_batch(batch, MaskingConfig(), model.module.n_genes, seed=0, epoch=0)
    model.module.train()
    with FlopCounterMode(display=False) as counter:
        model.module(batch).loss.backward()
    model.module.eval()
    return counter.get_total_flops()


def points(rows: list[dict[str, Any]], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sizes, training compute in FLOPs and losses of all models, in one order."""
    compute = {(r["method"], r["seed"]): r["value"] for r in rows if r["metric"] == "tflop"}
    part = [r for r in rows if r["metric"] == metric]
    flops = np.array([compute[r["method"], r["seed"]] * 1e12 for r in part])
    return np.array([r["method"] for r in part]), flops, np.array([r["value"] for r in part])


def fit(rows: list[dict[str, Any]], metric: str) -> tuple[float, float, float]:
    """Return slope and intercept per decade of compute, and the exponent of a power law."""
    _, flops, loss = points(rows, metric)
    slope, intercept = np.polyfit(np.log10(flops), loss, 1)
    exponent = np.polyfit(np.log10(flops), np.log10(loss), 1)[0]
    return float(slope), float(intercept), float(exponent)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw both losses against compute, with the fitted lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    names = {
        "validation_mse": "Masked genes: mean squared error",
        "validation_nll": "All counts: negative log-likelihood per count",
    }
    for ax, (metric, title) in zip(axes, names.items(), strict=True):
        slope, intercept, _ = fit(rows, metric)
        sizes, flops, loss = points(rows, metric)
        for name in SIZES:
            ax.plot(flops[sizes == name], loss[sizes == name], "o", label=name)
        line = np.geomspace(flops.min(), flops.max(), 50)
        ax.plot(line, intercept + slope * np.log10(line), color="0.6", zorder=0)
        decades = 10 ** np.floor(np.log10(flops.min())), 10 ** np.ceil(np.log10(flops.max()))
        ax.set(xscale="log", xlim=decades, xlabel="training compute (FLOPs)", title=title)
        ax.xaxis.set_minor_formatter("")
        ax.title.set_fontsize(10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[1].legend(title="width x layers", frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--figure", type=Path, help="where to draw the losses")
    args = arguments.parse_args()
    warnings.simplefilter("ignore")
    if args.data is None:
        adata, name = scxtrimo.datasets.pbmc68k(), "pbmc68k_reduced"
    else:
        files = data_files(args.data)
        adata, name = pooled(files), "+".join(path.stem for path in files)
    print(f"{adata.n_obs:,} cells x {adata.n_vars:,} genes", flush=True)
    rows = []
    for seed in range(1 if args.quick else args.seeds):
        for size in list(SIZES)[:4] if args.quick else SIZES:
            start = time.perf_counter()
            results = train(adata, size, seed, 50 if args.quick else N_STEPS)
            seconds = time.perf_counter() - start
            print(f"{size} seed {seed}: {seconds:.0f} s", flush=True)
            rows += rows_of("quality", name, size, results, seconds=seconds, seed=seed)
    report(summarize(rows), args.json)
    for metric in ("validation_mse", "validation_nll"):
        slope, intercept, exponent = fit(rows, metric)
        print(
            f"{metric} = {intercept:.4f} {slope:+.4f} log10(FLOPs); "
            f"as a power law, exponent {exponent:+.4f}"
        )
    if args.figure is not None:
        draw(rows, args.figure)


if __name__ == "__main__":
    main()
