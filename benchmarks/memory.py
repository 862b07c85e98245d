"""Peak memory: of a training step, of embedding, and of reading batches.

    python benchmarks/memory.py

Every figure is the rise of the resident memory of a process of its own to its peak (Linux).

- training: steps on 1, 2 and 4 cells of 19,264 genes, 8% expressed; slope and intercept of a line
  through them are the memory per cell and that of the rest (gradients, buffers)
- embedding: 8 cells of 2,000 expressed genes as published, padded, and here
- reading: an epoch of shuffled batches of 128 cells through scvi-tools' loader (dense), and here
  from memory and from a backed file
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scvi
import torch
from _common import parser, peak_memory, report, reset_peak_memory, row, simulate
from _published import OneByOne, random_checkpoint
from embed import Padded
from loader import our_tokens, scvi_tokens
from train_step import NAIVE, measure

import scxtrimo
from scxtrimo.config import SIZES

TRAINING = (NAIVE, "published configuration", "cross-attention", "bottleneck")
EMBEDDING = ("as published, one cell at a time", "padded", "scxtrimo", "scxtrimo, bf16")
READING = ("scvi-tools, dense", "scxtrimo", "scxtrimo, backed")
N_GENES = 19_264


def embedding(way: str, size: str) -> dict[str, float]:
    """Embed cells in one way; return megabytes."""
    n_genes = N_GENES - 1  # a panel of the published size must be the published one
    adata = simulate(8, n_genes, 2000 / n_genes)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "models.ckpt"
        random_checkpoint(path, SIZES[f"published-{size}"], n_genes)
        model = scxtrimo.model.XTrimoGene.from_scfoundation(path, adata.var_names, adata=adata)
    net, config = model.module.net, model.config
    ways = {
        EMBEDDING[0]: OneByOne(net, config).embed,
        EMBEDDING[1]: Padded(net, config).embed,
        EMBEDDING[2]: lambda cells: model.get_latent_representation(),
        EMBEDDING[3]: lambda cells: model.get_latent_representation(precision="bf16-mixed"),
    }
    before = reset_peak_memory()
    ways[way](adata)
    return {"megabytes": (peak_memory() - before) / 2**20}


def reading(way: str, n_cells: int) -> dict[str, float]:
    """Read an epoch of batches; return megabytes, those of the data included."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "cells.h5ad"
        command = (
            "import sys; sys.path.insert(0, sys.argv[1]); from _common import simulate; "
            f"simulate({n_cells}, {N_GENES}, 0.08).write_h5ad(sys.argv[2])"
        )
        here = str(Path(__file__).parent)
        subprocess.run([sys.executable, "-c", command, here, str(path)], check=True)
        before = reset_peak_memory()
        adata = anndata.read_h5ad(path, backed="r" if way.endswith("backed") else None)
        one_pass = (scvi_tokens if way.startswith("scvi") else our_tokens)(adata)
        one_pass()
        return {"megabytes": (peak_memory() - before) / 2**20}


def in_process(*arguments: str) -> float:
    """Measure in a process of its own and return megabytes."""
    command = [sys.executable, __file__, "--run", *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])["megabytes"]


def printed(*figure: Any) -> dict[str, Any]:
    """One figure, also printed as soon as it is there."""
    task, _, way, metric, value = figure
    print(f"{task}, {way}, {metric}: {value:.0f}", flush=True)
    return row(*figure)


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--run", nargs="+", help="for this script's own use")
    args = arguments.parse_args()
    if args.run:
        scvi.settings.verbosity = 30
        task, way, size, n = args.run
        torch.manual_seed(0)
        if task == "training":
            result = measure(way, size, int(n), n_steps=3)
        else:
            result = embedding(way, size) if task == "embedding" else reading(way, int(n))
        print(json.dumps(result))
        return
    rows = []
    size, embedded = ("tiny", "3m") if args.quick else ("3m", "100m")
    numbers = (1, 2, 4)
    for way in TRAINING:
        peaks = [in_process("training", way, size, str(n)) for n in numbers]
        per_cell, rest = np.polyfit(numbers, peaks, 1)
        data = f"{size}, {N_GENES:,} genes, 8% expressed"
        for metric, value in (("MB per cell", per_cell), ("MB of the rest", rest)):
            rows.append(printed("training", data, way, metric, value))
    for way in EMBEDDING:
        peak = in_process("embedding", way, embedded, "8")
        rows.append(printed("embedding", f"{embedded}, 2,000 genes per cell", way, "MB", peak))
    n_cells = 2_000 if args.quick else 20_000
    for way in READING:
        peak = in_process("reading", way, "-", str(n_cells))
        rows.append(printed("reading", f"{n_cells:,} cells, 8% expressed", way, "MB", peak))
    report(rows, args.json)


if __name__ == "__main__":
    main()
