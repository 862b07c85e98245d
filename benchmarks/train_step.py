"""A training step on four cells: time, memory and loss of the decoders, and as published.

    python benchmarks/train_step.py

Four cells with 19,264 genes of which 8% are expressed, in the 3M size, masked as published (all
masked genes are predicted). Every way runs in a process of its own, which measures the median time
of a forward and backward pass and the peak of its resident memory.

- as published, naively: padded cells through torch's encoder, then value embeddings of all genes
  of all cells and a Performer on them, everything kept for the backward pass
- published configuration: the same function here, in float32 and bfloat16
- cross-attention and bottleneck: our decoders alone, behind the same encoder

All ratios are to the naive step in float32. Memory is read from /proc (Linux).
The losses of the first two, which have the same weights, must agree, and so must their gradients.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from _common import parser, peak_memory, ragged_batch, report, reset_peak_memory
from _published import NaiveTraining

from scxtrimo.config import SIZES
from scxtrimo.nn.masking import mask_batch
from scxtrimo.nn.xtrimogene import XTrimoGeneModule
from scxtrimo.train.plan import MaskingConfig

N_GENES, N_CELLS, DENSITY = 19_264, 4, 0.08
NAIVE = "as published, naive"
WAYS = {
    NAIVE: ("published", "fp32"),
    "published configuration": ("published", "fp32"),
    "published configuration, bf16": ("published", "bf16"),
    "cross-attention": ("cross_attention", "fp32"),
    "cross-attention, bf16": ("cross_attention", "bf16"),
    "bottleneck": ("bottleneck", "fp32"),
    "bottleneck, bf16": ("bottleneck", "bf16"),
}


def masked_cells(n_genes: int = N_GENES, n_cells: int = N_CELLS) -> dict[str, Any]:
    """Some masked cells."""
    batch = ragged_batch(n_cells, n_genes, DENSITY)
    return mask_batch(batch, MaskingConfig.published(), n_genes, seed=0, epoch=0)


def check_gradients() -> None:
    """The published configuration has the loss and the gradients of the naive one."""
    n_genes = 5000  # several chunks of the Performer
    batch = masked_cells(n_genes)
    torch.manual_seed(0)
    module = XTrimoGeneModule(n_genes, (), SIZES["published-tiny"])
    naive = NaiveTraining(module)
    expected = naive.loss(batch)
    expected.backward()
    gradients = naive.gradients()
    module.zero_grad(set_to_none=True)
    loss = module(batch).loss
    loss.backward()
    assert abs(loss / expected - 1) < 1e-5
    errors = [
        float((parameter.grad - gradients[name]).abs().max() / gradients[name].abs().max())
        for name, parameter in module.net.named_parameters()
    ]
    print(f"largest difference of gradients to the naive step, relative: {max(errors):.1e}")
    assert max(errors) < 1e-4


def measure(way: str, size: str, n_cells: int = N_CELLS, n_steps: int = 6) -> dict[str, float]:
    """Time steps in this process; return seconds, megabytes and the loss."""
    kind, precision = WAYS[way]
    config = SIZES[f"published-{size}"]
    if kind != "published":
        is_bottleneck = kind == "bottleneck"
        config = replace(
            SIZES[size],
            objective="counts" if is_bottleneck else "masked",
            read_depth_aware=not is_bottleneck,  # T and S take the place of the cell token
        )
    batch = masked_cells(n_cells=n_cells)
    torch.manual_seed(0)
    module = XTrimoGeneModule(N_GENES, (), config)
    naive = NaiveTraining(module) if way == NAIVE else None
    before = reset_peak_memory()
    seconds = []
    for _ in range(n_steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = naive.loss(batch) if naive else module(batch).loss
        loss.backward()
        seconds.append(time.perf_counter() - start)
        module.zero_grad(set_to_none=True)
    return {
        "seconds": statistics.median(seconds[1:] or seconds),
        "megabytes": (peak_memory() - before) / 2**20,
        "loss": float(loss.detach()),
    }


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--size", help="size of the model")
    arguments.add_argument("--way", choices=WAYS, help="for this script's own use")
    args = arguments.parse_args()
    size = args.size or ("tiny" if args.quick else "3m")
    if args.way:
        print(json.dumps(measure(args.way, size)))
        return
    check_gradients()
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(1 if args.quick else args.seeds):
        for way, results in runs.items():
            command = [sys.executable, __file__, "--way", way, "--size", size]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(output.splitlines()[-1]))
            print(f"{way}: {results[-1]}", flush=True)
    medians = {
        way: {key: statistics.median(run[key] for run in results) for key in results[0]}
        for way, results in runs.items()
    }
    naive = medians[NAIVE]
    assert abs(medians["published configuration"]["loss"] / naive["loss"] - 1) < 1e-4
    rows = [
        {
            "task": "training step",
            "data": f"{size}, {N_GENES:,} genes, {DENSITY:.0%} expressed",
            "method": way,
            "metric": metric,
            "value": value,
            "spread": float("nan"),
            "ratio": naive["seconds"] / result["seconds"],
        }
        for way, result in medians.items()
        for metric, value in (
            ("cells/s", N_CELLS / result["seconds"]),
            ("speed ratio", naive["seconds"] / result["seconds"]),
            ("MB per cell", result["megabytes"] / N_CELLS),
            ("memory ratio", naive["megabytes"] / result["megabytes"]),
        )
    ]
    report(rows, args.json)


if __name__ == "__main__":
    main()
