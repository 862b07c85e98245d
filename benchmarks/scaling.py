"""How time grows with cells, genes of the panel, expressed genes, model size and threads.

    python benchmarks/scaling.py

Each quantity is varied alone; times are medians over alternating passes, and the exponent is the
slope of a line through the logarithms. Embedding is measured from AnnData to latent
representation; a training step is a forward and backward pass on 16 cells with the default
decoders. Unless it is varied: the 1m size, 1,000 expressed of 19,264 genes, all threads.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _common import parser, ragged_batch, report, row, simulate
from anndata import AnnData

import scxtrimo
from scxtrimo.config import SIZES
from scxtrimo.nn.masking import mask_batch
from scxtrimo.nn.xtrimogene import XTrimoGeneModule
from scxtrimo.train.plan import MaskingConfig

N_GENES, N_EXPRESSED, SIZE = 19_264, 1_000, "1m"


def embedding(
    n_cells: int, n_genes: int = N_GENES, n_expressed: int = N_EXPRESSED, size: str = SIZE
) -> Callable[[], object]:
    """Return what embeds such cells."""
    model = scxtrimo.model.XTrimoGene(setup(n_cells, n_genes, n_expressed), size=size)
    model.is_trained_ = True  # what the weights are does not matter for the time
    return model.get_latent_representation


def setup(n_cells: int, n_genes: int, n_expressed: int) -> AnnData:
    """Return registered cells."""
    adata = simulate(n_cells, n_genes, n_expressed / n_genes)
    scxtrimo.model.XTrimoGene.setup_anndata(adata)
    return adata


def training_step(
    n_cells: int = 16,
    n_genes: int = N_GENES,
    n_expressed: int = N_EXPRESSED,
    size: str = SIZE,
) -> Callable[[], object]:
    """Return a training step on such cells."""
    batch = ragged_batch(n_cells, n_genes, n_expressed / n_genes)
    module = XTrimoGeneModule(n_genes, (), SIZES[size])
    masking = MaskingConfig(0.3, 0.3)

    def step() -> None:
        masked = mask_batch(batch, masking, n_genes, seed=0, epoch=0, tell_hidden=False)
        module(masked).loss.backward()
        module.zero_grad(set_to_none=True)

    return step


def with_threads(n_threads: int, function: Callable[[], object]) -> Callable[[], object]:
    """Return the same with a number of threads."""

    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            function()
        finally:
            torch.set_num_threads(before)

    return run


def compare(
    task: str, quantity: str, functions: dict[int, Callable[[], object]], repeats: int
) -> list[dict[str, Any]]:
    """Time all, alternating; fit the exponent."""
    seconds: dict[int, list[float]] = {n: [] for n in functions}
    for _ in range(1 + repeats):  # the first pass warms up
        for n, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[n].append(time.perf_counter() - start)
    medians = {n: statistics.median(times[1:]) for n, times in seconds.items()}
    first = next(iter(medians.values()))
    numbers, times = np.log(list(medians)), np.log(list(medians.values()))
    exponent = float(np.polyfit(numbers, times, 1)[0])
    figures = [
        (f"{n:,}", metric, value)
        for n, median in medians.items()
        for metric, value in (("seconds", median), ("ratio", median / first))
    ]
    figures.append(("exponent", "ratio", exponent))
    return [
        row(task, f"against {quantity}", method, metric, value)
        for method, metric, value in figures
    ]


def main() -> None:
    """Run the benchmark."""
    args = parser(__doc__).parse_args()
    quick = args.quick
    repeats = max(3, args.seeds)
    cells = (128, 256, 512) if quick else (256, 512, 1024, 2048)
    n = 64 if quick else 256
    panels = (N_GENES, 2 * N_GENES, 4 * N_GENES)
    expressed = (500, 1000, 2000, 4000)
    sizes = ("tiny", "1m", "3m", "10m") if quick else ("tiny", "1m", "3m", "10m", "100m")
    weights = {
        size: sum(
            p.numel() for p in XTrimoGeneModule(10, (), SIZES[size]).net.encoder.parameters()
        )
        for size in sizes
    }
    threads = [2**i for i in range(torch.get_num_threads().bit_length())]
    threads = [i for i in threads if i <= torch.get_num_threads()]
    few = 4 if quick else 16
    step = training_step()
    studies: list[tuple[str, str, dict[int, Callable[[], object]]]] = [
        ("embedding", "number of cells", {i: embedding(i) for i in cells}),
        ("embedding", "genes of the panel", {i: embedding(n, n_genes=i) for i in panels}),
        ("training step", "genes of the panel", {i: training_step(n_genes=i) for i in panels}),
        ("embedding", "expressed genes", {i: embedding(n, n_expressed=i) for i in expressed}),
        (
            "training step",
            "expressed genes",
            {i: training_step(n_expressed=i) for i in expressed},
        ),
        (
            "embedding",
            "weights of the encoder",
            {weights[size]: embedding(few, size=size) for size in sizes},
        ),
        ("embedding", "threads", {i: with_threads(i, embedding(n)) for i in threads}),
        ("training step", "threads", {i: with_threads(i, step) for i in threads}),
    ]
    rows = []
    for task, quantity, functions in studies:
        if len(functions) > 1:
            rows += compare(task, quantity, functions, repeats)
            print(f"{task} against {quantity}: exponent {rows[-1]['value']:.3f}", flush=True)
    report(rows, args.json)


if __name__ == "__main__":
    main()
