"""Cells streamed from disk: memory, whether every cell is seen once, and speed beside others.

    python benchmarks/stream.py                       # 200,000 simulated cells, 19,264 genes
    python benchmarks/stream.py --data cells_dir      # resampled from the cells of these files

Needs `scxtrimo[stream]`, that is Python 3.12. Four .h5ad files are simulated, by thinning the
counts of real cells at random or as 8% of the genes; then, each in a process of its own, of which
the peak of the resident memory is told:

- writing them into a store, and a tenth of them into another
- an epoch of shuffled batches of 256 cells from either store here, counting every cell; from the
  same store through annbatch alone, and through scvi-tools' `AnnbatchDataModule` (dense); and from
  the .h5ad files through anndata's `AnnCollection` (sparse, on 4,000 cells: it reads one by one);
  with zarrs for all that read the store, if it is installed
- pretraining of the size `tiny` for 20 steps
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from _common import data_files, parser, peak_memory, report, row, simulate
from anndata import AnnData
from scipy import sparse

N_GENES, BATCH_SIZE, N_FILES = 19_264, 256, 4
PIECE = 5_000  # cells simulated at a time
READERS = ("scxtrimo", "annbatch", "scvi-tools AnnbatchDataModule", "AnnCollection")


def templates(data: Path | None) -> sparse.csr_matrix:
    """Return cells to resample, with 19,264 genes."""
    if data is None:
        return sparse.csr_matrix(simulate(2_000, N_GENES, 0.08).X)
    cells = []
    for path in data_files(data):
        one = anndata.read_h5ad(path)
        one.var_names_make_unique()
        cells.append(AnnData(sparse.csr_matrix(one.X), var=pd.DataFrame(index=one.var_names)))
    joined = anndata.concat(cells, join="outer", fill_value=0)
    most = np.argsort(-np.asarray(joined.X.sum(0)).ravel(), kind="stable")[:N_GENES]
    counts = sparse.csr_matrix(joined.X[:, np.sort(most)])
    counts = counts[np.diff(counts.indptr) >= 300]
    missing = N_GENES - counts.shape[1]
    return sparse.csr_matrix(
        sparse.hstack([counts, sparse.csr_matrix((counts.shape[0], missing))])
    )


def resample(cells: sparse.csr_matrix, n_cells: int, path: Path, seed: int) -> None:
    """Write cells of which every molecule was kept with a probability between 0.5 and 1."""
    rng = np.random.default_rng(seed)
    pieces = []
    for start in range(0, n_cells, PIECE):
        piece = cells[rng.integers(0, cells.shape[0], min(PIECE, n_cells - start))]
        rates = np.repeat(rng.uniform(0.5, 1, piece.shape[0]), np.diff(piece.indptr))
        piece.data = rng.binomial(piece.data.astype(np.int64), rates).astype(np.float32)
        piece.eliminate_zeros()
        pieces.append(piece)
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(N_GENES)])
    AnnData(sparse.csr_matrix(sparse.vstack(pieces)), var=var).write_h5ad(path)


def write(files: list[str], store: str) -> dict[str, float]:
    """Write a store."""
    import scxtrimo

    genes = [f"GENE{i}" for i in range(N_GENES)]
    start = time.perf_counter()
    written = scxtrimo.pretraining.write_store(
        files, store, vocabulary=genes, min_genes=1, drop_duplicates=False
    )
    seconds = time.perf_counter() - start
    n_cells = int(written.report[["train", "validation"]].sum().sum())
    assert n_cells == int(written.report["cells"].sum())
    return {"cells/s": n_cells / seconds}


def batches(reader: str, store: str, files: list[str]) -> Iterator[tuple[int, np.ndarray | None]]:
    """Iterate over the batches of an epoch: how many cells, and which."""
    from scxtrimo.pretraining.store import CellStore

    if reader == "scxtrimo":
        from scxtrimo.pretraining.stream import StoreDataModule

        for batch in StoreDataModule(store, batch_size=BATCH_SIZE).train_dataloader():
            yield len(batch["library_size"]), batch["cell_ids"].numpy()
    elif reader == "AnnCollection":
        from anndata.experimental import AnnCollection

        collection = AnnCollection([anndata.read_h5ad(file, backed="r") for file in files])
        chosen = np.random.default_rng(0).choice(len(collection), 4_000, replace=False)
        for part in np.split(chosen, range(BATCH_SIZE, len(chosen), BATCH_SIZE)):
            yield sparse.csr_matrix(collection[np.sort(part)].X).shape[0], None
    else:
        from annbatch import Loader

        loader = Loader(
            batch_size=BATCH_SIZE,
            chunk_size=256,
            preload_nchunks=32,
            shuffle=True,
            preload_to_gpu=False,
            return_index=reader == "annbatch",
        )
        opened = CellStore(store)
        loader.add_datasets(
            [anndata.io.sparse_dataset(opened.group[name]["X"]) for name in opened.names]
        )
        if reader == "annbatch":
            for batch in loader:
                yield batch["X"].shape[0], batch["index"]
            return
        from scvi.dataloaders import AnnbatchDataModule

        for batch in AnnbatchDataModule(loader, preload_to_gpu=False):
            yield len(batch["X"]), None


def read(reader: str, store: str, files: list[str]) -> dict[str, float]:
    """Read an epoch."""
    from scxtrimo.pretraining.store import CellStore, fast_codecs

    with fast_codecs():  # zarrs, if it is there, for all that read the store
        stream = batches(reader, store, files)
        n_cells, seen = next(stream)  # what is imported and compiled does not count
        all_seen = [seen]
        start, first = time.perf_counter(), n_cells
        for n, seen in stream:
            n_cells += n
            all_seen.append(seen)
    result = {"cells/s": (n_cells - first) / (time.perf_counter() - start)}
    if seen is not None:
        n_stored = CellStore(store).n_cells
        times = np.bincount(np.concatenate(all_seen), minlength=n_stored)
        result |= {"cells seen": n_cells, "lost": int((times == 0).sum())}
        result |= {"doubled": int((times > 1).sum())}
    return result


def train(store: str) -> dict[str, float]:
    """Pretrain for a few steps."""
    import scxtrimo

    with tempfile.TemporaryDirectory() as out:
        config = scxtrimo.PretrainConfig(
            scxtrimo.DataConfig(store, batch_size=64),
            out=out,
            size="tiny",
            steps=20,
            record=scxtrimo.RecordConfig(
                log_every_n_steps=10,
                validate_every_n_steps=0,
                checkpoint_every_n_steps=10,
                progress_bar=False,
            ),
        )
        model = scxtrimo.pretrain(config)
    return {"cells/s": float(model.history["cells_per_second"].iloc[-1, 0])}


def in_process(role: str, *arguments: str) -> dict[str, float]:
    """Run a role in a process of its own."""
    command = [sys.executable, __file__, "--role", role, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def play(role: str, arguments: list[str]) -> None:
    """Be one of these processes."""
    if role == "write":
        result = write(arguments[1:], arguments[0])
    elif role == "train":
        result = train(arguments[0])
    else:
        result = read(role, arguments[0], arguments[1:])
    print(json.dumps(result | {"peak MB": peak_memory() / 1e6}))


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--cells", type=int, help="how many cells, 200,000 by default")
    arguments.add_argument("--role", help=argparse.SUPPRESS)
    arguments.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.role:
        play(args.role, args.rest)
        return
    n_cells = args.cells or (8_000 if args.quick else 200_000)
    rows: list[dict[str, Any]] = []

    def add(task: str, method: str, values: dict[str, float]) -> None:
        rows.extend(row(task, f"{n_cells:,} cells", method, *item) for item in values.items())

    with tempfile.TemporaryDirectory() as directory:
        cells = templates(args.data)
        print(f"{np.diff(cells.indptr).mean():.0f} expressed genes per template cell")
        stores = {}
        for name, n in (("a tenth", n_cells // 10), ("all", n_cells)):
            files = []
            for i in range(N_FILES):
                files.append(str(Path(directory) / f"{name.split()[-1]}{i}.h5ad"))
                resample(cells, n // N_FILES, Path(files[-1]), i)
            stores[name] = str(Path(directory) / f"{name.split()[-1]}.zarr")
            add("writing a store", name, in_process("write", stores[name], *files))
        add("an epoch", "scxtrimo, a tenth", in_process("scxtrimo", stores["a tenth"]))
        speeds: dict[str, list[float]] = {reader: [] for reader in READERS}
        results: dict[str, dict[str, float]] = {}
        for _ in range(args.seeds):
            for reader in READERS:
                results[reader] = in_process(reader, stores["all"], *files)
                speeds[reader].append(results[reader]["cells/s"])
        medians = {reader: float(np.median(values)) for reader, values in speeds.items()}
        for reader, values in results.items():
            speed = {"cells/s": medians[reader], "ratio": medians[reader] / medians["scxtrimo"]}
            add("an epoch", reader, values | speed)
        for name, store in stores.items():
            add("pretraining, 20 steps of tiny", name, in_process("train", store))
    report(rows, args.json)


if __name__ == "__main__":
    main()
