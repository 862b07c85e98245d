"""From files of any size to a store of shuffled cells that training streams from."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
import zarr
from scipy import sparse
from tqdm.auto import tqdm

from .._logging import logger
from ..data.counts import CHUNK
from ..data.dataset import to_ragged
from ..data.gene_table import GeneAliases, read_aliases
from ..data.vocabulary import DEFAULT_MIN_GENE_OVERLAP, GeneVocabulary, preview
from .annbatch_access import fast_codecs, require_annbatch
from .cell_file import AUTO, CellFile
from .checksums import checksums, gene_weights
from .store import ANNBATCH_ENCODING, CHECKSUM, FORMAT_VERSION, STORE_KEY, CellStore, is_store
from .store_sources import (
    KEPT,
    Source,
    align_sources,
    decide,
    draw_validation,
    drop_silent,
    scan_cells,
)

BLOCK = 256  # neighbouring cells of a file that are moved together before the last shuffle
CELLS_PER_CHUNK = 64
BYTES_PER_TOKEN = 32  # of a data set while it is shuffled and written
SOURCE, SOURCE_ROW = "source", "source_row"
SPLITS = ("train", "validation")


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
    obs_columns: Sequence[str] = (),
    on_bad_file: Literal["raise", "skip"] = "raise",
    memory: float = 5e8,
    seed: int = 0,
    overwrite: bool = False,
) -> CellStore:
    """Shuffle the cells of many files into one store, on one gene vocabulary.

    Every file is read twice, a thousand cells at a time: once to check and count its cells, once
    to write them. The store is a pair of collections of
    `annbatch <https://annbatch.readthedocs.io>`__, ``train`` and ``validation``, of sharded zarr
    with a checksum per cell.

    Parameters
    ----------
    files
        ``.h5ad`` files and AnnData zarr stores, paths or URLs.
    out
        Path of the store, ending in ``.zarr``.
    vocabulary
        The genes of the store. By default all genes of all files that a cell expresses, in the
        order in which they are met.
    layer
        Where the raw counts are: ``"X"``, ``"raw"``, a layer, or ``"auto"`` for the first of these
        that looks like raw counts.
    gene_id_key, gene_aliases
        See :func:`~scxtrimo.data.align_genes`.
    min_gene_overlap
        Smallest acceptable fraction of the genes of a file found in the vocabulary, or of the
        vocabulary found in the file, whichever is larger.
    min_genes, max_genes
        Cells that express fewer or more genes of the vocabulary are left out.
    drop_duplicates
        Leave out cells with the same counts of the same genes as an earlier one.
    validation_size
        Fraction of the cells, drawn at random, that are held out; at most 20,000.
    validation_files
        Files of which all cells are held out, besides.
    obs_columns
        Columns of ``obs`` to keep, as text, beside ``source`` and ``source_row``.
    on_bad_file
        What to do with a file that cannot be read or has other genes: ``"raise"``, or ``"skip"``
        it and say so in the report.
    memory
        Bytes for the cells that are shuffled at a time. More shuffles better.
    seed
        Seed of the order and of the held-out cells.
    overwrite
        Replace a store that is there.

    Returns
    -------
    The store, opened. ``store.report`` has a row per file: cells kept for either split and left
    out by reason, and the coverage of the vocabulary.

    Raises
    ------
    ImportError
        If annbatch is not installed, which needs Python 3.12 or newer.
    FileExistsError
        If there is something at ``out`` and ``overwrite`` is false.
    ValueError
        If a file cannot be read, has no raw counts or other genes, or no cell is left. The message
        names the file and the way out.
    OSError
        If the disk is full; nothing is left behind.

    Examples
    --------
    >>> import scxtrimo
    >>> adata[:400].write_h5ad("a.h5ad")
    >>> adata[400:].write_h5ad("b.h5ad")
    >>> store = scxtrimo.pretraining.write_store(["a.h5ad", "b.h5ad"], "both.zarr", min_genes=1)
    >>> store.report[["file", "cells", "train", "validation"]]
         file  cells  train  validation
    0  a.h5ad    400    396           4
    1  b.h5ad    300    296           4
    """
    require_annbatch()
    paths = [str(path) for path in files]
    held_out = {str(path) for path in validation_files}
    _check(out, set(obs_columns), paths, held_out, overwrite, validation_size, on_bad_file)
    out = Path(out)
    skipped: dict[str, str] = {}

    def refuse(path: str, error: Exception) -> None:
        if on_bad_file == "raise":
            raise error
        logger.warning(f"Skipped: {error}")
        skipped[path] = str(error)

    sources = []
    for path in tqdm(paths, desc="Looking at genes", unit="file", delay=3):
        try:
            file = CellFile(path, layer)
            sources.append(Source(path, file.layer, file.n_cells, file.var))
        except (ValueError, OSError) as error:
            refuse(path, error)
    aliases = read_aliases(gene_aliases)
    given = _as_vocabulary(vocabulary)
    sources, genes = align_sources(sources, given, gene_id_key, aliases, min_gene_overlap, refuse)
    totals = np.zeros(len(genes))
    largest = 0.0
    with tqdm(total=sum(s.n_cells for s in sources), desc="Checking", unit="cell", delay=3) as bar:
        for source in list(sources):
            try:
                of_file, high = scan_cells(source, len(genes), bar)
            except (ValueError, OSError) as error:
                sources.remove(source)
                refuse(source.path, error)
                continue
            totals += of_file
            largest = max(largest, high)
    if largest >= 2**32:
        raise ValueError(f"The largest count is {largest:g}: counts must be below 2^32.")
    if len(skipped) > len(paths) / 2:
        logger.warning(
            f"{len(skipped)} of {len(paths)} files were left out. The first file that can be read "
            "says which genes there are: if it is the odd one, name another first."
        )
    decide(sources, min_genes, max_genes, drop_duplicates)
    if given is None:
        genes = drop_silent(sources, genes, totals)
    validation = draw_validation(sources, held_out, validation_size, seed)
    kept = sum(int((source.fate_c == KEPT).sum()) for source in sources)
    n_validation = sum(int(v.sum()) for v in validation)
    if kept - n_validation < 1:
        raise ValueError(
            f"No cell is left to train on: of {sum(s.n_cells for s in sources):,} cells in "
            f"{len(sources)} files, {kept:,} pass the filters (min_genes={min_genes}, "
            f"max_genes={max_genes}) and {n_validation:,} are held out."
        )
    report = [s.report(v) for s, v in zip(sources, validation, strict=True)]
    report += [{"file": path, "error": error} for path, error in skipped.items()]
    header = {
        "format_version": FORMAT_VERSION,
        "vocabulary": genes.to_dict(),
        "report": report,
        "settings": {
            "min_genes": min_genes,
            "max_genes": max_genes,
            "drop_duplicates": drop_duplicates,
            "seed": seed,
        },
    }
    dtype = np.uint16 if largest < 2**16 else np.uint32
    partial = out.with_name(f"{out.name}.scxtrimo-partial")
    writer = _Writer(sources, genes, list(obs_columns), dtype, max(1, int(memory)), seed)
    try:
        with warnings.catch_warnings(), fast_codecs():
            # of consolidated metadata, which all readers of AnnData in zarr know
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            _write(partial, writer, sources, validation, header)
        _put_in_place(partial, out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"The disk is full: {out} could not be written and was removed again. Free some "
                "space or choose another path",
            ) from error
        raise
    finally:
        _open_file.cache_clear()
        shutil.rmtree(partial, ignore_errors=True)
    return CellStore(out)


def _write(
    path: Path,
    writer: _Writer,
    sources: list[Source],
    validation: list[np.ndarray],
    header: dict[str, Any],
) -> None:
    """Write both splits, and last what makes them a store."""
    root = zarr.open_group(str(path), mode="w", zarr_format=3)
    for name, is_wanted in zip(SPLITS, (False, True), strict=True):
        rows = [
            np.flatnonzero((source.fate_c == KEPT) & (is_validation == is_wanted))
            for source, is_validation in zip(sources, validation, strict=True)
        ]
        writer.write(root.create_group(name), rows, name)
    root.attrs.update({STORE_KEY: header | {"digest": writer.digest.hexdigest()}})
    zarr.consolidate_metadata(root.store)


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename a complete store; the one before goes only then."""
    before = out.with_name(f"{out.name}.scxtrimo-before")
    if out.exists():
        os.replace(out, before)
    os.replace(partial, out)
    shutil.rmtree(before, ignore_errors=True)


def _check(
    given: str | os.PathLike,
    obs_columns: set[str],
    paths: list[str],
    held_out: set[str],
    overwrite: bool,
    validation_size: float,
    on_bad_file: str,
) -> None:
    out = Path(given)
    if not paths:
        raise ValueError("files is empty: name at least one.")
    resolved = [path if "://" in path else os.path.realpath(path) for path in paths]
    if repeated := repeated_of(resolved):
        raise ValueError(f"files has {preview(repeated)} more than once.")
    if unknown := sorted(held_out - set(paths)):
        raise ValueError(f"validation_files has {preview(unknown)}, which are not among `files`.")
    if out.suffix != ".zarr":
        raise ValueError(f"out={str(out)!r} must end in .zarr.")
    if "://" in str(given):
        raise ValueError(
            f"out={given!r} must be a local path. Copy the store when it is complete."
        )
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists. Choose another path, or pass `overwrite=True`.")
    if out.exists() and not is_store(out):
        raise FileExistsError(f"{out} is no store of scxtrimo and is not replaced.")
    if reserved := sorted({SOURCE, SOURCE_ROW, CHECKSUM} & obs_columns):
        raise ValueError(f"obs_columns has {reserved}, which every store has of its own.")
    if not 0 <= validation_size < 1:
        raise ValueError(f"validation_size={validation_size} must be at least 0 and below 1.")
    if on_bad_file not in ("raise", "skip"):
        raise ValueError(f"on_bad_file={on_bad_file!r} must be 'raise' or 'skip'.")


def repeated_of(names: Sequence[str]) -> list[str]:
    """Return the names that are there more than once."""
    index = pd.Index(names)
    return list(index[index.duplicated()].unique())


def _as_vocabulary(genes: GeneVocabulary | Sequence[str] | None) -> GeneVocabulary | None:
    if genes is None or isinstance(genes, GeneVocabulary):
        return genes
    ids = tuple(map(str, genes))
    if repeated := repeated_of(ids):
        raise ValueError(f"vocabulary has genes twice: {preview(repeated)}.")
    return GeneVocabulary(ids, ids)


@lru_cache(maxsize=8)
def _open_file(path: str, layer: str) -> CellFile:
    return CellFile(path, layer)


def _read_rows(file: CellFile, rows: np.ndarray) -> sparse.csr_matrix:
    """Read rows in runs, with what is left out in between, but never far more than is needed."""
    far = np.flatnonzero(np.diff(rows // CHUNK)) + 1
    parts = []
    for part in np.split(rows, far):
        run = file.reader.read(slice(int(part[0]), int(part[-1]) + 1))
        parts.append(run[part - part[0]])
    return sparse.vstack(parts, format="csr")


class _Writer:
    """Write cells of many files in random order, a data set that fits in memory at a time."""

    def __init__(
        self,
        sources: list[Source],
        genes: GeneVocabulary,
        obs_columns: list[str],
        dtype: Any,
        memory: int,
        seed: int,
    ) -> None:
        self.sources, self.genes, self.obs_columns = sources, genes, obs_columns
        self.dtype, self.memory, self.seed = dtype, memory, seed
        self.weights = gene_weights(len(genes))
        self.digest = hashlib.sha256()  # of what is written, in its order

    def write(self, group: Any, rows: list[np.ndarray], name: str) -> None:
        """Write the given rows of every file."""
        from annbatch import write_sharded

        rng = np.random.default_rng((self.seed, SPLITS.index(name)))
        n_cells = sum(map(len, rows))
        with tqdm(total=n_cells, desc=f"Writing {name}", unit="cell", delay=3) as bar:
            for i, blocks in enumerate(self._groups(rows, rng)):
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

    def _groups(
        self, rows: list[np.ndarray], rng: np.random.Generator
    ) -> Iterator[list[tuple[int, np.ndarray]]]:
        """Deal blocks of neighbouring cells to data sets at random, as evenly as they go."""
        blocks = [
            (i, part)
            for i, of_file in enumerate(rows)
            for part in np.split(of_file, range(BLOCK, len(of_file), BLOCK))
            if len(part)
        ]
        if not blocks:
            return
        n_tokens = np.array([self.sources[i].n_genes_c[part].sum() for i, part in blocks])
        n_groups = -(-int(n_tokens.sum()) * BYTES_PER_TOKEN // self.memory)
        order = rng.permutation(len(blocks))
        for part in np.array_split(order, min(n_groups, len(blocks))):
            yield [blocks[i] for i in part]

    def _read(self, blocks: list[tuple[int, np.ndarray]]) -> anndata.AnnData:
        """Return cells on the vocabulary."""
        matrices, tables = [], []
        for i, rows in blocks:
            source = self.sources[i]
            file = _open_file(source.path, source.layer)
            ragged = to_ragged(_read_rows(file, rows), source.column_to_gene)
            matrix = sparse.csr_matrix(
                (
                    ragged["counts"].astype(self.dtype),
                    ragged["gene_ids"].astype(np.int32),
                    ragged["cu_seqlens"],
                ),
                shape=(len(rows), len(self.genes)),
            )
            matrix.sort_indices()
            matrices.append(matrix)
            origin = pd.DataFrame({SOURCE: source.path, SOURCE_ROW: rows}, index=rows)
            tables.append(origin.join(file.obs(self.obs_columns)))
        obs = pd.concat(tables, ignore_index=True)
        for column in (SOURCE, *self.obs_columns):
            obs[column] = obs[column].astype(str).astype("category")
        obs.index = obs.index.astype(str)
        counts = sparse.vstack(matrices, format="csr")
        obs[CHECKSUM] = checksums(counts, self.weights)
        self.digest.update(obs[CHECKSUM].to_numpy().tobytes())
        return anndata.AnnData(counts, obs, pd.DataFrame(index=list(self.genes.gene_ids)))
