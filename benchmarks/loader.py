"""From AnnData to normalised tokens: cells per second here and through scvi-tools' loader.

    python benchmarks/loader.py                      # simulated cells
    python benchmarks/loader.py --data pbmc3k.h5ad

Shuffled batches of 128 cells in memory, turned into log-normalised values, gene ids and cell
boundaries: here from CSR rows, with scvi-tools' `AnnDataLoader` from dense tensors. Medians over
alternating passes; simulated cells express 8% of 19,264 genes. Beside it, what loading takes of a
training step on the same batch in the default size for a processor.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import scvi
import torch
from _common import parser, ratio_rows, report, simulate
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.dataloaders import AnnDataLoader
from torch import Tensor

import scxtrimo
from scxtrimo.nn.layers import normalize_counts
from scxtrimo.nn.masking import mask_batch
from scxtrimo.nn.ragged import to_tokens
from scxtrimo.train.plan import MaskingConfig
from scxtrimo.train.splitter import RaggedDataSplitter

BATCH_SIZE = 128


def scvi_tokens(adata: AnnData) -> Callable[[], int]:
    """Dense batches, normalised, then the genes that are not zero."""
    scvi.model.SCVI.setup_anndata(adata)
    manager = scvi.model.SCVI._get_most_recent_anndata_manager(adata, required=True)
    loader = AnnDataLoader(
        manager, batch_size=BATCH_SIZE, shuffle=True, data_and_attributes=[REGISTRY_KEYS.X_KEY]
    )

    def one_pass() -> int:
        n_tokens = 0
        for batch in loader:
            x = batch[REGISTRY_KEYS.X_KEY]
            values = torch.log1p(x / x.sum(1, keepdim=True) * 1e4)
            cell, gene = values.nonzero(as_tuple=True)
            boundaries(cell, len(x))
            n_tokens += len(values[cell, gene])
        return n_tokens

    return one_pass


def boundaries(cell: Tensor, n_cells: int) -> Tensor:
    """Return cell boundaries from the cell of every token."""
    ends = torch.zeros(n_cells + 1, dtype=torch.int32)
    ends[1:] = torch.bincount(cell, minlength=n_cells).cumsum(0)
    return ends


def our_tokens(adata: AnnData) -> Callable[[], int]:
    """Ragged batches, normalised."""
    scxtrimo.model.XTrimoGene.setup_anndata(adata)
    model = scxtrimo.model.XTrimoGene(adata, size="tiny")
    splitter = RaggedDataSplitter(model.adata_manager, train_size=1.0, batch_size=BATCH_SIZE)
    splitter.setup()
    loader = splitter.train_dataloader()

    def one_pass() -> int:
        n_tokens = 0
        for batch in loader:
            counts = batch["counts"]
            totals = to_tokens(batch["library_size"], batch["cu_seqlens"], len(counts))
            n_tokens += len(normalize_counts(counts, totals))
        return n_tokens

    return one_pass


def training_speed(adata: AnnData) -> float:
    """Return cells per second of training steps without loading, in the 1m size."""
    scxtrimo.model.XTrimoGene.setup_anndata(adata)
    model = scxtrimo.model.XTrimoGene(adata, size="1m")
    splitter = RaggedDataSplitter(model.adata_manager, train_size=1.0, batch_size=BATCH_SIZE)
    splitter.setup()
    batch = next(iter(splitter.train_dataloader()))
    seconds = []
    for epoch in range(6):
        start = time.perf_counter()
        masked = mask_batch(batch, MaskingConfig(), model.module.n_genes, 0, epoch, False)
        model.module(masked).loss.backward()
        seconds.append(time.perf_counter() - start)
        model.module.zero_grad(set_to_none=True)
    return BATCH_SIZE / statistics.median(seconds[1:])


def main() -> None:
    """Run the benchmark."""
    args = parser(__doc__).parse_args()
    n_cells = 2_000 if args.quick else 8_000
    adata = simulate(n_cells, 19_264, 0.08) if args.data is None else anndata.read_h5ad(args.data)
    name = "simulated" if args.data is None else args.data.stem
    passes: dict[str, Any] = {
        "scvi-tools, dense": scvi_tokens(adata.copy()),
        "scxtrimo": our_tokens(adata.copy()),
    }
    seconds: dict[str, list[float]] = {method: [] for method in passes}
    for _ in range(2 + args.seeds):
        n_tokens = set()
        for method, one_pass in passes.items():
            start = time.perf_counter()
            n_tokens.add(one_pass())
            seconds[method].append(time.perf_counter() - start)
        assert len(n_tokens) == 1  # the same tokens
    speeds = {m: adata.n_obs / statistics.median(s[1:]) for m, s in seconds.items()}
    print(f"{np.diff(adata.X.indptr).mean():.0f} expressed genes per cell")
    step = 1 / training_speed(adata)
    share = {m: 1 / speed / (1 / speed + step) for m, speed in speeds.items()}
    for method, part in share.items():
        print(f"{method}: {part:.1%} of a training step")
    report(ratio_rows("loading of normalised tokens", name, speeds, "cells/s"), args.json)


if __name__ == "__main__":
    main()
