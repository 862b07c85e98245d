"""What pretraining on 50 million cells takes: arithmetic, memory, storage and input, by size.

    python benchmarks/planning.py                     # simulated cells, 8% of 19,264 genes
    python benchmarks/planning.py --data pbmc3k.h5ad
    python benchmarks/planning.py --run recipes/census/run.yaml  # with the fields of a run

Needs `scxtrimo[stream]`. Counted and measured here, on a processor: floating-point operations of
a training step per cell (three times the forward pass), what a step keeps for the backward pass,
with and without recomputing the encoder layers, and the bytes of a store per cell. Computed from
these, for 8 and 64 GPUs: hours per epoch, cells and bytes to read per second, and the price. A GPU
is as fast as the slower of its arithmetic and its memory allow: encoders that read a cell into a
few tokens compute little, and what they keep is written, read and has a gradient. The parts of its
peaks that a GPU reaches are assumptions (--mfu, --bandwidth), not measurements; `scxtrimo pretrain
--dry-run` measures on yours.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import anndata
import torch
from _common import parser, report, row, simulate
from scipy import sparse

import scxtrimo
from scxtrimo.config import XTrimoGeneConfig
from scxtrimo.nn.masking import mask_batch
from scxtrimo.nn.xtrimogene import XTrimoGeneModule
from scxtrimo.pretraining.plan import activation_bytes, training_flops
from scxtrimo.pretraining.stream import ragged_batch
from scxtrimo.train.plan import MaskingConfig

N_CELLS, N_GENES = 50_000_000, 19_264
PEAK = 989e12  # H100 SXM, bfloat16, dense, as its maker says
BANDWIDTH = 3.35e12  # bytes/s of its memory
TRAFFIC = 4  # what is kept is written and read, and so is its gradient
FEW = 2  # cells; published ones keep 2 GB each


def network(size: str, n_genes: int, fields: dict[str, Any]) -> XTrimoGeneModule:
    """Return a network that reads all genes."""
    config = XTrimoGeneConfig.from_size(size, **({"n_input_genes": None} | fields))
    return XTrimoGeneModule(n_genes, (), config).train()


def masked(
    module: XTrimoGeneModule, batch: dict[str, Any], masking: MaskingConfig
) -> dict[str, Any]:
    """Return the batch as the network is trained on."""
    if not module.config.has_bottleneck:
        masking = MaskingConfig.published()
    return mask_batch(batch, masking, module.n_genes, 0, 0, module.sees_all_genes)


def of_size(
    size: str, batch: dict[str, Any], n_genes: int, fields: dict[str, Any], masking: MaskingConfig
) -> dict[str, float]:
    """Count and measure what a size takes per cell."""
    module = network(size, n_genes, fields)
    figures = {
        "parameters": float(sum(p.numel() for p in module.parameters())),
        "GFLOP/cell": training_flops(module, masked(module, batch, masking)) / FEW / 1e9,
    }
    for name, recompute in (("MB/cell", False), ("MB/cell, recomputed", True)):
        module.net.encoder.recompute = recompute
        given = masked(module, batch, masking)
        figures[name] = activation_bytes(lambda g=given: module(g).loss) / FEW / 1e6
    return figures


def bytes_per_cell(cells: anndata.AnnData) -> float:
    """Write a store and return its bytes per cell."""
    with tempfile.TemporaryDirectory() as directory:
        cells.write_h5ad(Path(directory) / "cells.h5ad")
        store = Path(directory) / "store.zarr"
        scxtrimo.pretraining.write_store(
            [Path(directory) / "cells.h5ad"], store, min_genes=1, drop_duplicates=False
        )
        total = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    return total / cells.n_obs


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--mfu", type=float, default=0.3, help="part of the peak of a GPU")
    arguments.add_argument("--bandwidth", type=float, default=0.5, help="the same of its memory")
    arguments.add_argument("--price", type=float, default=2.5, help="dollars per hour and GPU")
    arguments.add_argument("--run", type=Path, help="configuration of a run")
    args = arguments.parse_args()
    fields, masking = {}, MaskingConfig()
    if args.run is not None:
        run = scxtrimo.PretrainConfig.from_yaml(args.run)
        fields, masking = run.model, MaskingConfig(**run.masking)
    n_stored = 1_000 if args.quick else 4_000
    cells = (
        simulate(n_stored, N_GENES, 0.08) if args.data is None else anndata.read_h5ad(args.data)
    )
    name = "simulated" if args.data is None else args.data.stem
    counts = sparse.csr_matrix(cells.X)
    counts = counts[counts.getnnz(axis=1) > 0]
    some = counts[:: max(1, counts.shape[0] // FEW)][:FEW]
    batch = ragged_batch(some, torch.arange(FEW).numpy())
    stored = bytes_per_cell(anndata.AnnData(counts, var=cells.var[[]]))
    per_cell = len(batch["counts"]) / FEW
    print(
        f"{name}: {per_cell:.0f} expressed genes per cell, {stored / 1e3:.2f} kB stored per cell"
    )
    rows = []
    sizes = ["3m", "100m"] if args.quick else ["3m", "10m", "100m"]
    if args.run is None and not args.quick:
        sizes.append("published-100m")
    for size in sizes:
        figures = of_size(size, batch, counts.shape[1], fields, masking)
        rows += [row("per cell", name, size, *item) for item in figures.items()]
        for n_gpus in (8, 64):
            moved = TRAFFIC * figures["MB/cell"] * 1e6
            of_one = {
                "arithmetic": args.mfu * PEAK / (figures["GFLOP/cell"] * 1e9),
                "memory": args.bandwidth * BANDWIDTH / moved,
            }
            limit = min(of_one, key=lambda name: of_one[name])
            speed = n_gpus * of_one[limit]
            hours = N_CELLS / speed / 3600
            plan = {
                "hours per epoch": hours,
                "dollars per epoch": hours * n_gpus * args.price,
                "cells/s per GPU": speed / n_gpus,
                "input MB/s": speed * stored / 1e6,
            }
            task = f"50 M cells, {args.mfu:.0%} and {args.bandwidth:.0%} of an H100 assumed"
            method = f"{size}, {n_gpus} GPUs, limit {limit}"
            rows += [row(task, name, method, *item) for item in plan.items()]
    rows.append(row("50 M cells on disk", name, "store", "GB", stored * N_CELLS / 1e9))
    report(rows, args.json)


if __name__ == "__main__":
    main()
