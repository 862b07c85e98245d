"""Embedding with a published checkpoint: cells per second here and in other ways.

    python benchmarks/embed.py                           # simulated cells
    python benchmarks/embed.py --data pbmc3k.h5ad --gene-index OS_scRNA_gene_index.19264.tsv

A checkpoint in the published format with random weights of the 100M size is loaded, and cells are
embedded, from CSR rows to pooled vectors:

- as published: one cell at a time through torch's own `nn.TransformerEncoder`, with a padding mask
- the same without the mask, which a single cell does not need
- padded: the same in batches of 8, with a padding mask
- here, in float32 and in bfloat16

What the published script does before the encoder (pandas, lists) is replaced by faster tensor
operations. Nested tensors are left out: on a CPU torch has no attention kernel for them without
gradients. Medians over alternating passes. The float32 results must agree within 1e-5 of the
largest value, those in bfloat16 with a cosine above 0.9999. `share of GEMM rate` is that of the
encoder's operations per second in the rate of a large matrix product of the same type, measured
in the run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch
from _common import parser, report, simulate
from _published import OneByOne, random_checkpoint
from anndata import AnnData
from flops import transformer_flops
from scipy import sparse
from torch.nn.utils.rnn import pad_sequence

import scxtrimo
from scxtrimo.config import SIZES

N_GENES = 19_264
PUBLISHED = "as published, one cell at a time"


class Padded(OneByOne):
    """Batches of cells, padded to the longest."""

    batch_size = 8

    def encode(self, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        lengths = torch.tensor([len(x) for x in tokens])
        x = pad_sequence(tokens, batch_first=True)
        is_padding = torch.arange(x.shape[1]) >= lengths[:, None]
        encoded = self.encoder(x, src_key_padding_mask=is_padding)
        return [h[:n] for h, n in zip(encoded, lengths.tolist(), strict=True)]


def gemm_rate(dtype: torch.dtype) -> float:
    """Return operations per second of a large matrix product."""
    n, inner, width = 4096, 768, 3072
    a, b = torch.randn(n, inner, dtype=dtype), torch.randn(inner, width, dtype=dtype)
    out = torch.empty(n, width, dtype=dtype)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * n * inner * width / statistics.median(seconds)


def compare(adata: AnnData, size: str, repeats: int, name: str) -> list[dict[str, Any]]:
    """Time all ways of embedding the same cells, alternating."""
    genes = list(adata.var_names)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "models.ckpt"
        random_checkpoint(path, SIZES[f"published-{size}"], len(genes))
        start = time.perf_counter()
        model = scxtrimo.model.XTrimoGene.from_scfoundation(path, genes, adata=adata)
        print(f"loaded in {time.perf_counter() - start:.1f} s\n{model}", flush=True)
    net, config = model.module.net, model.config
    methods: dict[str, Callable[[AnnData], np.ndarray]] = {
        PUBLISHED: OneByOne(net, config).embed,
        "the same without its mask": OneByOne(net, config, with_mask=False).embed,
        "padded": Padded(net, config).embed,
        "scxtrimo": lambda cells: model.get_latent_representation(cells, precision="32-true"),
        "scxtrimo, bf16": lambda cells: model.get_latent_representation(
            cells, precision="bf16-mixed"
        ),
    }
    for embed in methods.values():
        embed(adata[:1].copy())  # what is only done once is not timed
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    results = {}
    for _ in range(repeats):
        for method, embed in methods.items():
            start = time.perf_counter()
            results[method] = embed(adata)
            seconds[method].append(time.perf_counter() - start)
            print(f"{method}: {seconds[method][-1]:.1f} s", flush=True)
    truth = results[PUBLISHED]
    n_expressed = np.diff(adata.X.indptr)
    operations = sum(
        transformer_flops(n + 2, config.n_hidden, config.n_layers) for n in n_expressed.tolist()
    )
    rates = {dtype: gemm_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    print({str(dtype): f"{rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items()})
    rows = []
    slowest = statistics.median(seconds[PUBLISHED])
    for method, result in results.items():
        is_bf16 = method.endswith("bf16")
        deviation = np.abs(result - truth).max() / np.abs(truth).max()
        cosine = (result * truth).sum(1) / np.linalg.norm(result, axis=1)
        cosine = (cosine / np.linalg.norm(truth, axis=1)).min()
        assert cosine > 0.9999 if is_bf16 else deviation < 1e-5, (method, deviation, cosine)
        median = statistics.median(seconds[method])
        rate = rates[torch.bfloat16 if is_bf16 else torch.float32]
        for metric, value in (
            ("cells/s", adata.n_obs / median),
            ("ratio", slowest / median),
            ("share of GEMM rate", operations / median / rate),
        ):
            rows.append(
                {
                    "task": f"embedding, {np.mean(n_expressed):.0f} expressed genes per cell",
                    "data": f"{name}, {size}",
                    "method": method,
                    "metric": metric,
                    "value": value,
                    "spread": float("nan"),
                    "seconds": median,
                    "ratio": slowest / median,
                }
            )
    return rows


def read(path: Path, gene_index: Path | None, n_cells: int) -> AnnData:
    """Return some cells, with the columns of the gene index if there is one."""
    adata = anndata.read_h5ad(path)
    adata = adata[np.linspace(0, adata.n_obs - 1, n_cells).astype(int)].copy()
    if gene_index is None:
        return adata
    genes = scxtrimo.data.read_gene_index(gene_index, N_GENES)
    position = {gene: i for i, gene in enumerate(genes)}
    known = np.flatnonzero(adata.var_names.isin(genes))
    places = [position[name] for name in adata.var_names[known]]
    to_genes = sparse.csr_matrix(
        (np.ones(len(known), np.float32), (known, places)), shape=(adata.n_vars, N_GENES)
    )
    result = AnnData(sparse.csr_matrix(adata.X.astype(np.float32) @ to_genes))
    result.var_names = list(genes)
    return result


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--gene-index", type=Path, help="genes to take from the data, in order")
    arguments.add_argument("--size", help="size of the model")
    arguments.add_argument("--cells", type=int, help="number of cells")
    args = arguments.parse_args()
    size = args.size or ("3m" if args.quick else "100m")
    repeats = 1 if args.quick else args.seeds
    if args.data is not None:
        n_cells = args.cells or (8 if args.quick else 64)
        adata = read(args.data, args.gene_index, n_cells)
        rows = compare(adata, size, repeats, args.data.stem)
    else:
        n_cells = args.cells or 16
        rows = []
        for n_expressed in (1000, 2000):
            adata = simulate(n_cells, N_GENES - 1, n_expressed / N_GENES)
            rows += compare(adata, size, repeats, "simulated")
    report(rows, args.json)


if __name__ == "__main__":
    main()
