"""Write the cells of many files, shuffled and on one gene vocabulary, into a store.

The writer reads the files twice: once to align their genes, check their counts and decide which
cells are kept (``Source``), and once to write the cells (``_Writer``).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from scipy import sparse
from tqdm.auto import tqdm

from .._logging import logger
from .._validation import check
from ..data.counts import CHUNK, RowReader, looks_raw, problem_with
from ..data.dataset import to_ragged
from ..data.gene_table import GeneAliases, GeneTable, read_aliases
from ..data.reading import NOT_DAMAGE, read_cells
from ..data.vocabulary import (
    DEFAULT_MIN_GENE_OVERLAP,
    VAR_NAMES,
    GeneAlignment,
    GeneVocabulary,
    align_genes,
    ambiguous_error,
    own_identifiers,
    preview,
    warn_of_source,
)
from ..nn.ranges import Fraction
from .store import (
    CHECKSUM,
    FORMAT_VERSION,
    SOURCE,
    SOURCE_ROW,
    SPLITS,
    STORE_KEY,
    CellStore,
    checksums,
    fast_codecs,
    gene_weights,
    hash_cells,
    is_store,
    require_annbatch,
)

AUTO, RAW = "auto", "raw"
ROWS_TO_RECOGNIZE = 256  # rows that are read to find out whether a matrix holds raw counts
MAX_CSC_ENTRIES = 50_000_000
MAX_VALIDATION_CELLS = 20_000
# of the cells of a file
FATES = (*SPLITS, "too_few_genes", "too_many_genes", "duplicate", "excluded")
TRAIN, VALIDATION, TOO_FEW_GENES, TOO_MANY_GENES, DUPLICATE, EXCLUDED = range(len(FATES))
BARCODE = re.compile("[ACGT]{10,}")
BLOCK = 256  # neighbouring cells of a file that are dealt to a data set together
CELLS_PER_CHUNK = 64
BYTES_PER_TOKEN = 32  # memory of a data set while it is shuffled and written
OnBadFile = Literal["raise", "skip"]
ANNBATCH_ENCODING = {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}


def write_store(
    files: Iterable[str | os.PathLike],
    out: str | os.PathLike,
    *,
    vocabulary: GeneVocabulary | Sequence[str] | None = None,
    layer: str = AUTO,
    gene_id_key: str | None = None,
    gene_aliases: GeneAliases = None,
    min_gene_overlap: float = DEFAULT_MIN_GENE_OVERLAP,
    min_genes: int = 200,
    max_genes: int | None = None,
    drop_duplicates: bool = True,
    validation_size: float = 0.01,
    validation_files: Sequence[str | os.PathLike] = (),
    exclude: Sequence[str | os.PathLike] = (),
    obs_columns: Sequence[str] = (),
    on_bad_file: OnBadFile = "raise",
    memory: float = 5e8,
    seed: int = 0,
    overwrite: bool = False,
) -> CellStore:
    """Shuffle the cells of many files into one store, on one gene vocabulary.

    Files of any size are read twice, a thousand cells at a time. The store is a pair of
    collections of `annbatch <https://annbatch.readthedocs.io>`__, ``train`` and ``validation``.

    Parameters
    ----------
    files
        ``.h5ad`` files and AnnData zarr stores, paths or URLs.
    out, overwrite
        Path of the store, ending in ``.zarr``; whether to replace an existing one.
    vocabulary
        The genes of the store; by default all genes of all files that a cell expresses.
    layer
        Where the raw counts are: ``"X"``, ``"raw"``, a layer, or ``"auto"`` to look for them.
    gene_id_key, gene_aliases
        See :func:`~scxtrimo.data.align_genes`.
    min_gene_overlap
        Smallest acceptable fraction of the genes of a file found in the vocabulary, or of the
        vocabulary found in the file, whichever is larger.
    min_genes, max_genes, drop_duplicates
        Leave out cells that express fewer or more genes of the vocabulary, and cells with the
        same counts of the same genes as an earlier one.
    validation_size, validation_files
        Fraction of the cells, drawn at random, that are held out (at most 20,000), and files all
        of whose cells are held out in addition.
    exclude
        Files with cells that must not be in the store, such as those that the model is to be
        judged on: cells with the same barcode as one of them, or the same counts of the same
        genes, are left out.
    obs_columns
        Columns of ``obs`` to keep, as text, in addition to ``source`` and ``source_row``.
    on_bad_file
        ``"raise"``, or ``"skip"`` files that cannot be read or have other genes and report them.
    memory, seed
        Bytes for the cells that are shuffled at a time, the more the better; seed of the order.

    Returns
    -------
    The store; ``store.report`` says what became of the cells and the genes of every file.

    Raises
    ------
    OSError
        If the disk is full; nothing is left behind.

    Examples
    --------
    >>> adata[:400].write_h5ad("a.h5ad")
    >>> adata[400:].write_h5ad("b.h5ad")
    >>> store = scxtrimo.pretraining.write_store(["a.h5ad", "b.h5ad"], "both.zarr", min_genes=1)
    >>> store.report["cells"].tolist(), store.report["train"].tolist()
    ([400, 300], [396, 296])
    """
    require_annbatch()
    paths = [str(path) for path in files]
    held_out = {str(path) for path in validation_files}
    check("validation_size", validation_size, Fraction)
    check("on_bad_file", on_bad_file, OnBadFile)
    _check_paths(paths, held_out, out, overwrite)
    if reserved := sorted({SOURCE, SOURCE_ROW, CHECKSUM} & set(obs_columns)):
        raise ValueError(f"obs_columns has {reserved}: these names are reserved. Rename them.")
    skipped: dict[str, str] = {}

    def usable(sources: Iterable[Source], step: Callable[[Source], None]) -> list[Source]:
        """Take a step with every file; return those with which it succeeds."""
        good = []
        for source in sources:
            try:
                step(source)
            except (ValueError, OSError) as error:
                if on_bad_file == "raise":
                    raise
                logger.warning(f"Skipped: {error}")
                skipped[source.path] = str(error)
            else:
                good.append(source)
        return good

    sources = [Source(path, layer) for path in paths]
    sources = usable(tqdm(sources, desc="Reading genes", unit="file", delay=3), Source.open)
    aligner = _Aligner(vocabulary, gene_id_key, read_aliases(gene_aliases), min_gene_overlap)
    sources = usable(sources, aligner.add)
    sources = usable(sources, aligner.align)
    genes = aligner.genes
    totals = np.zeros(len(genes))
    with tqdm(total=sum(s.n_cells for s in sources), desc="Checking", unit="cell", delay=3) as bar:
        sources = usable(sources, lambda source: source.scan(totals, bar))
    if not sources:
        raise ValueError("No file is left: see the messages above.")
    largest = max(source.largest for source in sources)
    if largest >= 2**32:
        raise ValueError(f"The largest count is {largest:g}: counts must be below 2^32.")
    if len(skipped) > len(paths) / 2:
        logger.warning(
            f"{len(skipped)} of {len(paths)} files were left out. The first file that can be read "
            "determines the genes: if it is the exception, list another file first."
        )
    others = [Source(str(path), layer) for path in exclude]
    for other in others:
        other.open()
        aligner.align(other)
        other.scan(np.zeros(len(genes)))
    n_kept = _filter(sources, min_genes, max_genes, drop_duplicates, others)
    if vocabulary is None:
        genes = _drop_unexpressed(sources, genes, totals)
    _hold_out(sources, held_out, min(validation_size, MAX_VALIDATION_CELLS / max(n_kept, 1)), seed)
    report: list[dict[str, Any]] = [source.report() for source in sources]
    if not (n_train := sum(row["train"] for row in report)):
        raise ValueError(
            f"No cell is left to train on: of {sum(s.n_cells for s in sources):,} cells in "
            f"{len(sources)} files, {n_kept:,} pass the filters (min_genes={min_genes}, "
            f"max_genes={max_genes}) and {n_kept - n_train:,} are held out."
        )
    report += [{"file": path, "error": error} for path, error in skipped.items()]
    filters = {"min_genes": min_genes, "max_genes": max_genes, "drop_duplicates": drop_duplicates}
    header = {
        "format_version": FORMAT_VERSION,
        "vocabulary": genes.to_dict(),
        "report": report,
        "settings": filters | {"seed": seed},
    }
    dtype = np.uint16 if largest < 2**16 else np.uint32
    writer = _Writer(sources, genes, tuple(obs_columns), dtype, max(1, int(memory)), seed)
    writer.write_in_place(Path(out), header)
    return CellStore(out)


def _check_paths(
    paths: list[str], held_out: set[str], out: str | os.PathLike, overwrite: bool
) -> None:
    if not paths:
        raise ValueError("files is empty: name at least one.")
    resolved = [path if "://" in path else os.path.realpath(path) for path in paths]
    if repeated := _repeated_names(resolved):
        raise ValueError(f"files has {preview(repeated)} more than once.")
    if unknown := sorted(held_out - set(paths)):
        raise ValueError(f"validation_files has {preview(unknown)}, which are not among `files`.")
    if Path(out).suffix != ".zarr":
        raise ValueError(f"out={str(out)!r} must end in .zarr.")
    if "://" in str(out):
        raise ValueError(f"out={out!r} must be a local path. Copy the store when it is complete.")
    if Path(out).exists() and not overwrite:
        raise FileExistsError(f"{out} exists. Choose another path, or pass `overwrite=True`.")
    if Path(out).exists() and not is_store(out):
        raise FileExistsError(f"{out} is not a store of scxtrimo and is not replaced.")


def _repeated_names(names: Sequence[str]) -> list[str]:
    index = pd.Index(names)
    return list(index[index.duplicated()].unique())


class CellFile:
    """An AnnData file or zarr store, local or remote, from which rows of raw counts are read."""

    def __init__(self, path: str | os.PathLike, layer: str = AUTO) -> None:
        self.path = str(path)
        self.group = _open(self.path)
        if "var" not in self.group or "obs" not in self.group:
            raise ValueError(f"{self.path} holds no AnnData: it has {sorted(self.group)}.")
        places = self._candidates()
        self.layer = self._find_counts(places) if layer == AUTO else layer
        if self.layer not in places:
            raise ValueError(
                f"{self.path} has no {layer!r}; it has {list(places)}. Choose one of these with "
                "`layer=`."
            )
        self.reader = RowReader(self._matrix(places[self.layer]))
        owner = "raw/var" if self.layer == RAW else "var"
        self.var: pd.DataFrame = anndata.io.read_elem(self.group[owner])
        self.n_cells, n_genes = self.reader.shape
        if self.n_cells == 0 or n_genes == 0:
            raise ValueError(f"{self.path} is empty: {self.n_cells} cells x {n_genes} genes.")

    def read(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Read increasing rows in runs of at most ``CHUNK``, rows between them included."""
        parts = []
        for part in np.split(rows, np.flatnonzero(np.diff(rows // CHUNK)) + 1):
            run = self.reader.read(slice(int(part[0]), int(part[-1]) + 1))
            parts.append(run[part - part[0]])
        return sparse.vstack(parts, format="csr")

    def names(self) -> list[str]:
        """Return the names of the cells."""
        obs = self.group["obs"]
        index: Any = anndata.io.read_elem(obs[obs.attrs["_index"]])
        return [str(name) for name in index]

    def _matrix(self, place: str) -> Any:
        node = self.group[place]
        encoding = str(node.attrs.get("encoding-type", ""))
        if encoding.startswith("csc") and node["data"].shape[0] > MAX_CSC_ENTRIES:
            raise ValueError(
                f"{self.path} stores {place} gene by gene (CSC), which cannot be read cell by "
                f"cell and is too large to convert here ({node['data'].shape[0]:,} entries). "
                "Write it again as CSR: `adata.X = adata.X.tocsr()`."
            )
        return anndata.io.sparse_dataset(node) if encoding.startswith("cs") else node

    def _candidates(self) -> dict[str, str]:
        """Return where counts may be, by the name of the layer, the most likely place first."""
        layers = sorted(self.group.get("layers", {}), key=lambda name: (name != "counts", name))
        places = {"X": "X", RAW: "raw/X"}
        for name in layers:  # a layer may be called "raw" or "X", too
            places[f"layers/{name}" if name in places else name] = f"layers/{name}"
        return {name: place for name, place in places.items() if place in self.group}

    def _find_counts(self, places: dict[str, str]) -> str:
        for name, place in places.items():
            reader = RowReader(self._matrix(place))
            if min(reader.shape) == 0:  # reported as an empty file
                return name
            head = reader.read(slice(0, ROWS_TO_RECOGNIZE)).data
            if len(head) and looks_raw(head):
                return name
        raise ValueError(
            f"{self.path} has no raw counts: none of {list(places)} holds non-negative integers."
        )


def _open(path: str) -> Any:
    """Open a file; formats that cannot be read by rows are read into memory."""
    is_local = "://" not in path
    if is_local and not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if is_local and Path(path).is_file() and Path(path).stat().st_size == 0:
        raise ValueError(f"{path} is an empty file (0 bytes).")
    try:
        if path.rstrip("/").endswith(".zarr"):
            return zarr.open_group(path, mode="r")
        if is_local and (Path(path).is_dir() or path.endswith((".h5mu", ".h5", ".mtx"))):
            in_memory = zarr.storage.MemoryStore()
            read_cells(path).write_zarr(in_memory)
            return zarr.open_group(in_memory, mode="r")
        if is_local:
            return h5py.File(path, "r")
        import fsspec

        return h5py.File(fsspec.open(path, "rb").open(), "r")
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read, it may be truncated: {error}") from error


@dataclass
class Source:
    """A file: its genes, and after they were scanned the fate of its cells."""

    path: str
    layer: str
    n_cells: int = 0
    var: pd.DataFrame = field(default_factory=pd.DataFrame)
    alignment: GeneAlignment = field(init=False)
    largest: float = 0.0  # count
    n_genes_c: np.ndarray = field(init=False)  # expressed genes of the cells, int32
    hash_c: np.ndarray = field(init=False)  # see :func:`hash_cells`
    barcode_c: np.ndarray = field(init=False)  # the last in the name of a cell, empty if none
    fate_c: np.ndarray = field(init=False)  # places in FATES, int8

    def open(self) -> None:
        """Read the genes, and find the counts."""
        file = CellFile(self.path, self.layer)
        self.layer, self.n_cells, self.var = file.layer, file.n_cells, file.var

    def scan(self, totals: np.ndarray, bar: Any = None) -> None:
        """Check all counts, add them to the totals of the genes, and count genes of the cells."""
        file, n_genes = CellFile(self.path, self.layer), len(totals)
        reader = file.reader
        own_totals = np.zeros(n_genes)
        lengths, hashes = [], []
        for start in range(0, self.n_cells, CHUNK):
            end = min(start + CHUNK, self.n_cells)
            place = f"{self.path}, {self.layer}, cells {start} to {end - 1},"
            try:
                chunk = reader.read(slice(start, end))
            except NOT_DAMAGE:
                raise
            except Exception as error:  # every codec and file system has its own
                raise ValueError(f"{place} cannot be read: {error}") from error
            if (problem := problem_with(chunk.data)) is not None:
                raise ValueError(f"{place} {problem}")
            ragged = to_ragged(chunk, self.alignment.column_to_gene)
            counts, gene_ids, ends = ragged["counts"], ragged["gene_ids"], ragged["cu_seqlens"]
            own_totals += np.bincount(gene_ids, counts, minlength=n_genes)
            self.largest = max(self.largest, float(counts.max(initial=0)))
            lengths.append(np.diff(ends))
            hashes.append(hash_cells(counts, gene_ids, ends, gene_weights(n_genes)))
            if bar is not None:
                bar.update(chunk.shape[0])
        totals += own_totals
        found = [BARCODE.findall(name) for name in file.names()]
        self.barcode_c = np.array([barcodes[-1] if barcodes else "" for barcodes in found])
        self.n_genes_c = np.concatenate(lengths).astype(np.int32)
        self.hash_c = np.concatenate(hashes)

    def report(self) -> dict[str, Any]:
        """Return what became of cells and genes."""
        n_cells = np.bincount(self.fate_c, minlength=len(FATES)).tolist()
        return {
            "file": self.path,
            "layer": self.layer,
            "cells": self.n_cells,
            **dict(zip(FATES, n_cells, strict=True)),
            **self.alignment.counts(),
        }


class _Aligner:
    """Aligns files to one vocabulary, by default the union of their genes."""

    def __init__(
        self,
        vocabulary: GeneVocabulary | Sequence[str] | None,
        gene_id_key: str | None,
        aliases: Mapping[str, str] | GeneTable,
        min_overlap: float,
    ) -> None:
        self.is_union, self.gene_id_key = vocabulary is None, gene_id_key
        self.aliases, self.min_overlap = aliases, min_overlap
        if not isinstance(vocabulary, GeneVocabulary):
            ids = () if vocabulary is None else tuple(map(str, vocabulary))
            if repeated := _repeated_names(ids):
                raise ValueError(f"vocabulary has genes twice: {preview(repeated)}.")
            vocabulary = GeneVocabulary(ids, ids)
        self.genes = vocabulary

    def add(self, source: Source) -> None:
        """Refuse a file with other genes; add the genes of others to the union."""
        key, what = self._names(source)
        if self.is_union and not self.genes.gene_ids:
            self._extend(own_identifiers(source.var, key, what))
            return
        alignment = align_genes(self.genes, source.var, key, self.aliases)
        if self.is_union:
            own_identifiers(source.var, alignment.source, what)  # refuses those that are repeated
        elif alignment.repeated:
            raise ambiguous_error(alignment, what)
        n_found = int((alignment.column_to_gene >= 0).sum())
        overlap = n_found / max(1, min(len(self.genes), len(source.var)))
        if n_found == 0 or overlap < self.min_overlap:
            of_what = "the files before it" if self.is_union else "the vocabulary"
            raise ValueError(
                f"{source.path} has other genes: only {n_found:,} of its {len(source.var):,} are "
                f"among the {len(self.genes):,} of {of_what}, at least {self.min_overlap:.0%} are "
                f"needed. It has {preview(source.var.index, 3)}, the others "
                f'{preview(self.genes.gene_ids, 3)}. Pass `gene_aliases="hgnc"` to translate '
                "identifiers, `gene_id_key=` to name their column, lower `min_gene_overlap`, or "
                'leave such files out with `on_bad_file="skip"`.'
            )
        if self.is_union:
            self._extend(alignment.unused)

    def align(self, source: Source) -> None:
        """Align a file to the genes of all."""
        key, what = self._names(source)
        source.alignment = align_genes(self.genes, source.var, key, self.aliases)
        warn_of_source(source.alignment, key, what)
        if source.alignment.repeated:  # under names that later files added
            raise ambiguous_error(source.alignment, what)
        source.var = pd.DataFrame()

    def _names(self, source: Source) -> tuple[str | None, str]:
        """Return the column with the identifiers, if the file has it, and how to call ``var``."""
        has_key = self.gene_id_key in source.var or self.gene_id_key == VAR_NAMES
        return self.gene_id_key if has_key else None, f"{source.path}: var"

    def _extend(self, genes: Iterable[str]) -> None:
        ids = (*self.genes.gene_ids, *filter(None, genes))
        self.genes = GeneVocabulary(ids, ids)


def _filter(
    sources: list[Source],
    min_genes: int,
    max_genes: int | None,
    drop_duplicates: bool,
    others: list[Source],
) -> int:
    """Set the fate of every cell, to train on it or why not; return how many are kept."""
    n_genes = np.concatenate([source.n_genes_c for source in sources])
    fate = np.full(len(n_genes), TRAIN, dtype=np.int8)
    fate[n_genes < max(1, min_genes)] = TOO_FEW_GENES
    if max_genes is not None:
        fate[n_genes > max_genes] = TOO_MANY_GENES
    hashes = np.concatenate([source.hash_c for source in sources])
    if others:
        barcodes = np.concatenate([source.barcode_c for source in sources])
        is_other = np.isin(hashes, np.concatenate([other.hash_c for other in others]))
        known = np.concatenate([other.barcode_c for other in others])
        is_other |= np.isin(barcodes, known[known != ""])
        fate[(fate == TRAIN) & is_other] = EXCLUDED
    if drop_duplicates:
        kept = np.flatnonzero(fate == TRAIN)
        fate[kept[pd.Series(hashes[kept]).duplicated()]] = DUPLICATE
    ends = np.cumsum([source.n_cells for source in sources])
    for source, part in zip(sources, np.split(fate, ends[:-1]), strict=True):
        source.fate_c = part
    return int((fate == TRAIN).sum())


def _drop_unexpressed(
    sources: list[Source], genes: GeneVocabulary, totals: np.ndarray
) -> GeneVocabulary:
    """Remove the genes that no cell expresses."""
    expressed = np.flatnonzero(totals > 0)
    new_place = np.full(len(genes) + 1, -1, dtype=np.int64)  # the last entry is for -1, no gene
    new_place[expressed] = np.arange(len(expressed))
    for source in sources:
        source.alignment = source.alignment.onto(new_place, genes)
    ids = tuple(genes.gene_ids[i] for i in expressed)
    return GeneVocabulary(ids, ids)


def _hold_out(sources: list[Source], files: set[str], size: float, seed: int) -> None:
    """Hold out all kept cells of some files, and draw cells of the others."""
    rng = np.random.default_rng(seed)
    for source in sources:
        drawn = True if source.path in files else rng.random(source.n_cells) < size
        source.fate_c[(source.fate_c == TRAIN) & drawn] = VALIDATION


@lru_cache(maxsize=8)
def _open_file(
    path: str, layer: str, obs_columns: tuple[str, ...]
) -> tuple[CellFile, pd.DataFrame]:
    """Open a file and read columns of its ``obs``, of missing values where it has none."""
    file = CellFile(path, layer)
    obs = file.group["obs"]
    found = {
        name: anndata.io.read_elem(obs[name]) if name in obs else None for name in obs_columns
    }
    return file, pd.DataFrame(found, index=pd.RangeIndex(file.n_cells))


@dataclass
class _Writer:
    """Writes cells of many files in random order, one data set that fits in memory at a time."""

    sources: list[Source]
    genes: GeneVocabulary
    obs_columns: tuple[str, ...]
    dtype: Any
    memory: int
    seed: int
    digest: Any = field(default_factory=hashlib.sha256)  # of the checksums of all cells, in order

    def write_in_place(self, out: Path, header: dict[str, Any]) -> None:
        """Write both splits beside ``out``, and replace ``out`` when they are complete."""
        partial = out.with_name(f"{out.name}.scxtrimo-partial")
        before = out.with_name(f"{out.name}.scxtrimo-before")
        try:
            with warnings.catch_warnings(), fast_codecs():
                # All readers of AnnData in zarr know consolidated metadata.
                warnings.filterwarnings("ignore", message="Consolidated metadata")
                root = zarr.open_group(str(partial), mode="w", zarr_format=3)
                for name in SPLITS:
                    self._write(root.create_group(name), name)
                root.attrs.update({STORE_KEY: header | {"digest": self.digest.hexdigest()}})
                zarr.consolidate_metadata(root.store)
            if out.exists():
                os.replace(out, before)
            os.replace(partial, out)
            shutil.rmtree(before, ignore_errors=True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            message = f"The disk is full: {out} could not be written and was removed again. "
            message += "Free some space or choose another path"
            raise OSError(error.errno, message) from error
        finally:
            _open_file.cache_clear()
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, group: Any, split: str) -> None:
        """Write the cells of a split."""
        from annbatch import write_sharded

        rng = np.random.default_rng((self.seed, SPLITS.index(split)))
        rows = [np.flatnonzero(s.fate_c == FATES.index(split)) for s in self.sources]
        n_cells = sum(map(len, rows))
        with tqdm(total=n_cells, desc=f"Writing {split}", unit="cell", delay=3) as bar:
            for i, blocks in enumerate(self._deal(rows, rng)):
                cells = self._read(sorted(blocks, key=lambda block: (block[0], block[1][0])))
                cells = cells[rng.permutation(cells.n_obs)].copy()
                write_sharded(
                    group,
                    cells,
                    n_obs_per_chunk=min(CELLS_PER_CHUNK, cells.n_obs),
                    shard_size="256MB",
                    key=f"dataset_{i}",
                )
                bar.update(cells.n_obs)
        group.attrs.update(ANNBATCH_ENCODING)

    def _deal(
        self, rows: list[np.ndarray], rng: np.random.Generator
    ) -> Iterator[list[tuple[int, np.ndarray]]]:
        """Deal blocks of neighbouring cells (file, rows) to data sets at random and evenly."""
        blocks = [
            (i, part)
            for i, of_file in enumerate(rows)
            for part in np.split(of_file, range(BLOCK, len(of_file), BLOCK))
            if len(part)
        ]
        if not blocks:
            return
        n_tokens = np.array([self.sources[i].n_genes_c[part].sum() for i, part in blocks])
        n_datasets = -(-int(n_tokens.sum()) * BYTES_PER_TOKEN // self.memory)
        order = rng.permutation(len(blocks))
        for part in np.array_split(order, min(n_datasets, len(blocks))):
            yield [blocks[i] for i in part]

    def _read(self, blocks: list[tuple[int, np.ndarray]]) -> anndata.AnnData:
        """Read cells, with the genes of the vocabulary as columns."""
        matrices, tables = [], []
        for i, rows in blocks:
            source = self.sources[i]
            file, columns = _open_file(source.path, source.layer, self.obs_columns)
            ragged = to_ragged(file.read(rows), source.alignment.column_to_gene)
            counts, gene_ids = ragged["counts"].astype(self.dtype), ragged["gene_ids"]
            parts = (counts, gene_ids.astype(np.int32), ragged["cu_seqlens"])
            matrix = sparse.csr_matrix(parts, shape=(len(rows), len(self.genes)))
            matrix.sort_indices()
            matrices.append(matrix)
            origin = pd.DataFrame({SOURCE: source.path, SOURCE_ROW: rows}, index=rows)
            tables.append(origin.join(columns))
        obs = pd.concat(tables, ignore_index=True)
        for column in (SOURCE, *self.obs_columns):
            obs[column] = obs[column].astype(str).astype("category")
        obs.index = obs.index.astype(str)
        joined = sparse.vstack(matrices, format="csr")
        obs[CHECKSUM] = checksums(joined, gene_weights(len(self.genes)))
        self.digest.update(obs[CHECKSUM].to_numpy().tobytes())
        return anndata.AnnData(joined, obs, pd.DataFrame(index=list(self.genes.gene_ids)))
