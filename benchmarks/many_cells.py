"""Many cells on one machine: the default call, from registration to embedding.

    python benchmarks/many_cells.py --data directory --cells 100000 500000

Cells are drawn with replacement from the files, on the 19,264 genes that these express most, and
every count is drawn anew from a Poisson distribution around it: depths are real ones, but a third
of the single counts are lost. Without ``--data`` they are simulated, 1,000 genes expressed in
each. Seconds and the peak of the resident memory, each way in a process of its own; reading the
file counts.

- scxtrimo, from memory and from a backed file
- scanpy: normalisation, 2,000 variable genes, 50 components
- scVI with its defaults on 3,000 variable genes, as in its tutorials; 5 epochs are run (one from
  200,000 cells), and the seconds of the others extrapolated
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import scanpy as sc
from _common import data_files, parser, peak_memory, report, reset_peak_memory, row, simulate
from anndata import AnnData
from scipy import sparse

import scxtrimo

N_GENES = 19_264
CHUNK = 10_000
WAYS = ("scxtrimo", "scxtrimo, backed", "scanpy PCA", "scVI")


def pool(data: Path | None) -> AnnData:
    """Return the cells to draw from."""
    if data is None:
        return simulate(2_000, N_GENES, 1_000 / N_GENES)
    parts = []
    for path in data_files(data):
        cells = anndata.read_h5ad(path)
        part = AnnData(sparse.csr_matrix(cells.X), var=cells.var[[]])
        part.var_names_make_unique()
        parts.append(part)
    cells = anndata.concat(parts, join="outer", fill_value=0, index_unique="-")
    expressed = np.asarray((cells.X > 0).mean(axis=0)).ravel()
    return cells[:, np.sort(np.argsort(-expressed, kind="stable")[:N_GENES])].copy()


def draw(cells: AnnData, n_cells: int, path: Path) -> None:
    """Write cells that resemble others, chunk by chunk."""
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(cells.X).astype(np.float32)
    names = [f"cell{i}" for i in range(n_cells)]
    empty = sparse.csr_matrix((n_cells, cells.n_vars), dtype=np.float32)
    frame = AnnData(empty, var=cells.var[[]])
    frame.obs_names = names
    frame.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        group, ends = file["X"], [np.zeros(1, dtype=np.int64)]
        del group["data"], group["indices"], group["indptr"]
        options = {"shape": (0,), "maxshape": (None,), "chunks": (2**18,)}
        data = group.create_dataset("data", dtype="f4", **options)
        indices = group.create_dataset("indices", dtype="i4", **options)
        for start in range(0, n_cells, CHUNK):
            part = counts[rng.integers(0, cells.n_obs, min(CHUNK, n_cells - start))]
            part.data = rng.poisson(part.data).astype(np.float32)
            part.eliminate_zeros()
            part.sort_indices()
            n = len(data)
            data.resize((n + part.nnz,))
            indices.resize((n + part.nnz,))
            data[n:], indices[n:] = part.data, part.indices
            ends.append(n + part.indptr[1:].astype(np.int64))
        boundaries = np.concatenate(ends)
        kind = np.int32 if boundaries[-1] < 2**31 else np.int64  # scanpy needs one for both
        group.create_dataset("indptr", data=boundaries.astype(kind))
        if kind is np.int64:
            widened = indices[:].astype(kind)
            del group["indices"]
            group.create_dataset("indices", data=widened)


def measure(way: str, path: Path) -> dict[str, float]:
    """Embed all cells in one way; return seconds and megabytes."""
    before, start = reset_peak_memory(), time.perf_counter()
    backed = "r" if way.endswith("backed") else None
    adata, unseen = anndata.read_h5ad(path, backed=backed), 0.0
    if way == "scanpy PCA":
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        sc.pp.highly_variable_genes(adata, n_top_genes=2000)
        sc.pp.pca(adata, n_comps=50)
    elif way == "scVI":
        import scvi

        options = {"n_top_genes": 3000, "flavor": "seurat_v3"}
        sc.pp.highly_variable_genes(adata, subset=True, **options)
        scvi.model.SCVI.setup_anndata(adata)
        model = scvi.model.SCVI(adata)
        quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
        begin = time.perf_counter()
        n_run = 5 if adata.n_obs < 200_000 else 1
        model.train(max_epochs=n_run, **quiet)
        n_epochs = min(round(20_000 / adata.n_obs * 400), 400)
        unseen = (time.perf_counter() - begin) * (n_epochs / n_run - 1)
        model.get_latent_representation()
    else:
        scxtrimo.model.XTrimoGene.setup_anndata(adata)
        ours = scxtrimo.model.XTrimoGene(adata)
        ours.train(enable_progress_bar=False, accelerator="cpu")
        ours.get_latent_representation()
    seconds = time.perf_counter() - start + unseen
    return {
        "seconds": seconds,
        "MB": peak_memory() / 2**20,
        "MB before": before / 2**20,
    }


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--cells", type=int, nargs="+", default=[100_000, 500_000])
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    arguments.add_argument("--run", nargs=2, help="for this script's own use")
    args = arguments.parse_args()
    if args.run:
        print(json.dumps(measure(args.run[0], Path(args.run[1]))))
        return
    rows = []
    for n_cells in (2_000,) if args.quick else args.cells:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "cells.h5ad"
            draw(pool(args.data), n_cells, path)
            for way in WAYS[1:3] if args.quick else args.ways:
                command = [sys.executable, __file__, "--run", way, str(path)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                figures = json.loads(output.splitlines()[-1])
                print(f"{n_cells:,} cells, {way}: {figures}", flush=True)
                for metric, value in figures.items():
                    rows.append(row("many cells", f"{n_cells:,} cells", way, metric, value))
    report(rows, args.json)


if __name__ == "__main__":
    main()
