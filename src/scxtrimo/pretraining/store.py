"""A store of shuffled cells on disk, from which any cells can be read."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal, get_args

import anndata
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from scipy import sparse

from .._logging import logger
from ..data.reading import NOT_DAMAGE, backed_anndata
from ..data.vocabulary import GeneVocabulary

SOURCE, SOURCE_ROW = "source", "source_row"  # columns of obs: the file, and the row in it
STORE_KEY, FORMAT_VERSION = "scxtrimo_store", 1
CHECKSUM = "checksum"
WRITE_AGAIN = "Copy or write the store again"
CELLS_PER_CHECK = 128  # few enough to stay in the processor's cache
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)


class DamagedStoreError(OSError):
    """Cells of a store cannot be read.

    Parameters
    ----------
    message
        What is wrong, with the data set and its cells.
    rows
        The cells, as rows of the split.

    Examples
    --------
    >>> scxtrimo.pretraining.DamagedStoreError("cannot be read", range(64, 128)).rows
    range(64, 128)
    """

    def __init__(self, message: str, rows: range) -> None:
        super().__init__(message)
        self.rows = rows


def require_annbatch() -> None:
    """Raise an :class:`ImportError` that says how to install annbatch, if it is missing."""
    if find_spec("annbatch") is not None:
        return
    needs, advice = "annbatch", '`pip install "scxtrimo[stream]"`'
    if sys.version_info < (3, 12):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        needs += f", which needs Python 3.12 or newer; this is Python {version}"
        advice = f"make an environment with Python 3.12 or 3.13 and {advice}"
    raise ImportError(f"Streaming cells from disk needs {needs}: {advice}.")


class _Codecs:
    """The current users of zarrs: zarr's choice of codecs applies to the whole process."""

    lock = threading.Lock()
    n_users = 0
    setting: Any = None


@contextmanager
def fast_codecs() -> Iterator[None]:
    """Read and write chunks with zarrs, if installed, which is several times as fast as zarr."""
    if find_spec("zarrs") is None:
        yield
        return
    with _Codecs.lock:
        _Codecs.n_users += 1
        if _Codecs.n_users == 1:
            _Codecs.setting = zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    try:
        yield
    finally:
        with _Codecs.lock:
            _Codecs.n_users -= 1
            if _Codecs.n_users == 0:
                _Codecs.setting.__exit__(None, None, None)


@lru_cache
def gene_weights(n_genes: int) -> np.ndarray:
    """Return a fixed random weight per gene for checksums, uint64, shape ``(n_genes,)``."""
    return np.random.default_rng(0).integers(0, 2**64, n_genes, dtype=np.uint64)


def checksums(counts: sparse.csr_matrix, weights: np.ndarray) -> np.ndarray:
    """Return a checksum of the counts and genes of every cell, uint32, shape ``(n_cells,)``."""
    # Codecs miss some damage: zarr reads missing files as zeros, and zarrs does not verify the
    # checksum of a chunk that it reads in part.
    sums = hash_cells(counts.data, counts.indices, counts.indptr, weights)
    return (sums >> np.uint64(32)).astype(np.uint32)


def hash_cells(
    counts: np.ndarray, gene_ids: np.ndarray, cu_seqlens: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return a uint64 per cell, equal for equal counts of the same genes in any order."""
    sums = np.zeros(len(cu_seqlens) - 1, np.uint64)
    cells = np.flatnonzero(np.diff(cu_seqlens))
    for first in range(0, len(cells), CELLS_PER_CHECK):
        part = cells[first : first + CELLS_PER_CHECK]
        starts = cu_seqlens[part]
        tokens = slice(starts[0], cu_seqlens[part[-1] + 1])
        weighted = weights[gene_ids[tokens]]
        weighted *= counts[tokens].astype(np.uint64)
        sums[part] = np.add.reduceat(weighted, starts - starts[0])
    return sums


def is_store(path: str | os.PathLike) -> bool:
    """Return whether there is a store of scxtrimo at a path or URL."""
    try:
        return STORE_KEY in zarr.open_group(str(path), mode="r").attrs
    except (OSError, KeyError, ValueError):
        return False


class CellStore:
    """One split of a store that :func:`~scxtrimo.pretraining.write_store` wrote.

    Parameters
    ----------
    path, split
        Path or URL of the store, and ``"train"`` or ``"validation"``.
    max_cells
        Read the first cells only. They are in random order, so this is a random part of them.

    Examples
    --------
    >>> store = scxtrimo.pretraining.CellStore("cells.zarr")
    >>> store.n_cells, len(store.vocabulary), store.n_tokens.shape, store.ends
    (671, 765, (671,), array([671]))
    >>> store.read([slice(0, 64), slice(128, 192)]).shape, store.sample(100, seed=0).shape
    ((128, 765), (64, 765))
    >>> store.origin([0, 1]).columns.tolist(), int(store.report["cells"].sum())
    (['source', 'source_row', 'checksum'], 700)
    >>> store.readable([slice(0, 64)]), [cells.n_obs for cells in store.datasets()]
    ([slice(0, 64, None)], [671])
    """

    group: Any

    def __init__(
        self,
        path: str | os.PathLike,
        split: Split = "train",
        max_cells: int | None = None,
    ) -> None:
        self.path, self.split, self.max_cells = str(path), split, max_cells
        try:
            root = zarr.open_group(self.path, mode="r")
        except (FileNotFoundError, KeyError) as error:
            raise FileNotFoundError(f"There is no store at {self.path}.") from error
        header: Any = root.attrs.get(STORE_KEY)
        if header is None or split not in root:
            raise ValueError(
                f"{self.path} is not a store of scxtrimo. Make one of your files: "
                "`scxtrimo.pretraining.write_store(files, out)` or `scxtrimo store`."
            )
        if header["format_version"] > FORMAT_VERSION:
            raise ValueError(
                f"{self.path} has format version {header['format_version']}, this scxtrimo reads "
                f"{FORMAT_VERSION}. Update it: `pip install --upgrade scxtrimo`."
            )
        self.header: dict[str, Any] = header
        self.group = root[split]
        names = [name for name in list(self.group) if name.startswith("dataset_")]
        self.names = sorted(names, key=lambda name: int(name.removeprefix("dataset_")))
        self._damaged: set[int] = set()
        expected = int(self.report.get(split, pd.Series(dtype=int)).sum())
        if self._n_stored != expected:
            raise ValueError(
                f"{self.path} is incomplete: it has {self._n_stored:,} of {expected:,} cells for "
                f"{split}. Copy or write it again."
            )

    @cached_property
    def vocabulary(self) -> GeneVocabulary:
        """The genes, in the order of the columns."""
        return GeneVocabulary.from_dict(self.header["vocabulary"])

    @cached_property
    def report(self) -> pd.DataFrame:
        """What became of the cells and the genes of every file, one file per row."""
        return pd.DataFrame(self.header["report"])

    @cached_property
    def ends(self) -> np.ndarray:
        """Where the data sets end, in rows of the split."""
        sizes = [int(self.group[name]["X"].attrs["shape"][0]) for name in self.names]
        return np.cumsum(sizes, dtype=np.int64)

    @property
    def _n_stored(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def n_cells(self) -> int:
        """Number of cells of the split, at most ``max_cells``."""
        stored = self._n_stored
        return stored if self.max_cells is None else min(stored, self.max_cells)

    @cached_property
    def n_tokens(self) -> np.ndarray:
        """Number of expressed genes of all cells, int32."""
        parts = [np.empty(0, np.int32)]
        for name in self.names:
            n_tokens = np.diff(self._array(name, "X/indptr")).astype(np.int32)
            # zarr reads missing chunks as zeros, and a store has no cells without counts.
            if n_lost := int((n_tokens <= 0).sum()):
                raise DamagedStoreError(
                    f"{self.path}/{self.split}/{name} is incomplete: {n_lost:,} of "
                    f"{len(n_tokens):,} cells have no counts. {WRITE_AGAIN}.",
                    range(0),
                )
            parts.append(n_tokens)
        return np.concatenate(parts)[: self.n_cells]

    def categories(self, column: str) -> tuple[np.ndarray, list[str]]:
        """Return a column of ``obs`` as codes and names, sorted.

        Parameters
        ----------
        column
            ``"source"``, the file of a cell, or a column that was kept.

        Returns
        -------
        int64 array of shape ``(n_cells,)``, and the names that the codes stand for.

        Examples
        --------
        >>> codes, names = scxtrimo.pretraining.CellStore("cells.zarr").categories("source")
        >>> codes.shape, len(names)
        ((671,), 1)
        """
        parts = []
        for name in self.names:
            columns = self.group[name]["obs"]
            if column not in columns:
                known = sorted(set(columns) - {"_index", SOURCE_ROW, CHECKSUM})
                raise ValueError(
                    f"{self.path} has no column {column!r} of obs; it has {known}. Columns are "
                    "kept by `obs_columns` of `write_store`."
                )
            parts.append(pd.Series(anndata.io.read_elem(columns[column])).astype(str))
        values = pd.concat([*parts, pd.Series(dtype=str)])[: self.n_cells]
        codes, names = pd.factorize(values, sort=True)
        return codes.astype(np.int64), [str(name) for name in names]

    @cached_property
    def _checksums(self) -> np.ndarray:
        """Checksums of all cells, uint32."""
        parts = [self._array(name, f"obs/{CHECKSUM}") for name in self.names]
        return np.concatenate([*parts, np.empty(0, np.uint32)])

    def _array(self, name: str, place: str) -> np.ndarray:
        """Read an array without which a data set cannot be used."""
        try:
            return self.group[f"{name}/{place}"][:]
        except NOT_DAMAGE:
            raise
        except Exception as error:  # every codec and file system has its own
            message = f"{self.path}/{self.split}/{name}/{place} cannot be read: {error}."
            raise DamagedStoreError(f"{message} {WRITE_AGAIN}.", range(0)) from error

    @cached_property
    def _loader(self) -> Any:
        """Loader of annbatch, with a sampler that asks for the slices it is given."""
        require_annbatch()
        from annbatch import Loader
        from annbatch.abc import Sampler

        class Requests(Sampler):
            batch_size, shuffle = None, False
            slices: Sequence[slice] = ()

            def n_batches(self, n_obs: int) -> int:
                return 1

            def validate(self, n_obs: int) -> None:
                pass

            def _sample(self, n_obs: int) -> Iterator[Any]:
                n_cells = len(rows_of(self.slices))
                yield {"requests": self.slices, "splits": [np.arange(n_cells)]}

        loader = Loader(batch_sampler=Requests(), preload_to_gpu=False)
        counts = [anndata.io.sparse_dataset(self.group[name]["X"]) for name in self.names]
        loader.add_datasets(counts)
        return loader

    def read(self, slices: Sequence[slice]) -> sparse.csr_matrix:
        """Return the cells of some slices, one after the other.

        Parameters
        ----------
        slices
            Rows of the split.

        Returns
        -------
        Raw counts, CSR, one column per gene of the vocabulary.
        """
        expected = self._checksums[rows_of(slices)]
        try:
            with fast_codecs():  # arrays are opened at the first read
                self._loader.batch_sampler.slices = list(slices)
                (batch,) = iter(self._loader)
            counts = batch["X"]
            if n_lost := int((np.diff(counts.indptr) == 0).sum()):
                raise ValueError(f"{n_lost} cells have no counts, so they may be lost")
            if not np.array_equal(checksums(counts, gene_weights(len(self.vocabulary))), expected):
                raise ValueError("the counts are not those that were written")
        except NOT_DAMAGE:
            raise
        except Exception as error:  # every codec and file system has its own
            parts = [part for one in slices for part in self._within_datasets(one)]
            if len(parts) == 1:
                raise self._damage(parts[0], error) from error
            # Read them one by one to find the damaged cells, or to retry after a passing failure.
            return sparse.vstack([self.read([part]) for part in parts], format="csr")
        return counts

    def readable(self, slices: Sequence[slice]) -> list[slice]:
        """Return the slices that can be read, and warn of every other one once.

        Parameters
        ----------
        slices
            Rows of the split.

        Returns
        -------
        The readable ones.
        """
        found = []
        for one in slices:
            try:
                self.read([one])
            except DamagedStoreError as error:
                if one.start not in self._damaged:
                    logger.warning(f"Left out: {error}")
                self._damaged.add(one.start)
            else:
                found.append(one)
        return found

    def _within_datasets(self, rows: slice) -> list[slice]:
        """Split a slice where data sets end."""
        inside = self.ends[(self.ends > rows.start) & (self.ends < rows.stop)].tolist()
        return [slice(*pair) for pair in pairwise([rows.start, *inside, rows.stop])]

    def _damage(self, rows: slice, error: Exception) -> DamagedStoreError:
        dataset = int(np.searchsorted(self.ends, rows.start, side="right"))
        start = int(self.ends[dataset - 1]) if dataset else 0
        return DamagedStoreError(
            f"{self.path}/{self.split}/{self.names[dataset]}, cells {rows.start - start} to "
            f"{rows.stop - 1 - start} (rows {rows.start} to {rows.stop - 1} of the split) cannot "
            f"be read: {type(error).__name__}: {error}. {WRITE_AGAIN}, or leave such cells out: "
            "`on_damage: skip`.",
            range(rows.start, rows.stop),
        )

    def origin(self, rows: Sequence[int] | np.ndarray) -> pd.DataFrame:
        """Return where cells come from.

        Parameters
        ----------
        rows
            Rows of the split.

        Returns
        -------
        One row per cell: the file, the row in it, and the other columns that were kept.
        """
        rows = np.asarray(rows)
        datasets = np.searchsorted(self.ends, rows, side="right")
        parts = []
        for dataset in np.unique(datasets):
            start = self.ends[dataset - 1] if dataset else 0
            obs: Any = anndata.io.read_elem(self.group[self.names[dataset]]["obs"])
            mine = rows[datasets == dataset]
            parts.append(obs.iloc[mine - start].astype(object).set_axis(mine))
        return pd.concat(parts).loc[rows]

    def sample(
        self,
        n_cells: int,
        seed: int,
        chunk: int = 64,
        skip_damaged: bool = False,
        column: str | None = None,
    ) -> AnnData:
        """Draw about ``n_cells`` cells at random.

        Parameters
        ----------
        n_cells, chunk
            How many, in runs of so many neighbours, which are in random order already.
        seed, skip_damaged
            Seed of the draw; whether to leave out runs that cannot be read.
        column
            Column of ``obs`` to read, see :meth:`categories`.

        Returns
        -------
        The cells, in memory.
        """
        starts = np.arange(0, self.n_cells, chunk)
        n_chunks = max(1, min(len(starts), n_cells // chunk))
        chosen = np.sort(np.random.default_rng(seed).choice(starts, n_chunks, replace=False))
        slices = [slice(int(s), int(min(s + chunk, self.n_cells))) for s in chosen]
        if skip_damaged:
            slices = self.readable(slices) or slices  # if none is readable, reading says why
        rows = rows_of(slices)
        obs = pd.DataFrame(index=rows.astype(str))
        if column is not None:
            codes, names = self.categories(column)
            obs[column] = np.array(names)[codes[rows]]
        var = pd.DataFrame(index=list(self.vocabulary.gene_ids))
        return AnnData(self.read(slices).astype(np.float32), obs, var)

    def datasets(self) -> Iterator[AnnData]:
        """Iterate over the data sets of the split.

        Yields
        ------
        Their cells, counts backed by the store.
        """
        for name in self.names:
            yield backed_anndata(self.group[name])


def rows_of(slices: Sequence[slice]) -> np.ndarray:
    """Return the rows of some slices, one after the other."""
    return np.concatenate([np.arange(0), *(np.arange(one.start, one.stop) for one in slices)])
