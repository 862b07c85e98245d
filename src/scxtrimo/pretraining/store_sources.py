"""What is known of the files that a store is made of: their genes, and the fate of their cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd

from ..data.counts import CHUNK, problem_with
from ..data.dataset import to_ragged
from ..data.gene_table import GeneTable
from ..data.vocabulary import (
    VAR_NAMES,
    GeneAlignment,
    GeneVocabulary,
    align_genes,
    ambiguous_error,
    own_identifiers,
    preview,
    warn_of_source,
)
from .cell_file import CellFile
from .checksums import hash_cells
from .store import NOT_DAMAGE

MAX_VALIDATION_CELLS = 20_000
KEPT, TOO_FEW_GENES, TOO_MANY_GENES, DUPLICATE = range(4)
FATES = {TOO_FEW_GENES: "too_few_genes", TOO_MANY_GENES: "too_many_genes", DUPLICATE: "duplicate"}


@dataclass
class Source:
    """What is known of a file: its genes after the first look, its cells after the second."""

    path: str
    layer: str
    n_cells: int
    var: pd.DataFrame
    alignment: GeneAlignment | None = None
    n_genes_c: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    hash_c: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    fate_c: np.ndarray = field(default_factory=lambda: np.empty(0, np.int8))

    @property
    def column_to_gene(self) -> np.ndarray:
        """Positions of the columns in the vocabulary."""
        assert self.alignment is not None
        return self.alignment.column_to_gene

    def report(self, is_validation_c: np.ndarray) -> dict[str, Any]:
        """Return what became of cells and genes, given which cells are held out."""
        assert self.alignment is not None
        kept = self.fate_c == KEPT
        return {
            "file": self.path,
            "layer": self.layer,
            "cells": self.n_cells,
            "train": int((kept & ~is_validation_c).sum()),
            "validation": int((kept & is_validation_c).sum()),
            **{name: int((self.fate_c == fate).sum()) for fate, name in FATES.items()},
            **self.alignment.counts(),
        }


def align_sources(
    sources: list[Source],
    given: GeneVocabulary | None,
    gene_id_key: str | None,
    aliases: Mapping[str, str] | GeneTable,
    min_overlap: float,
    refuse: Callable[[str, Exception], None],
) -> tuple[list[Source], GeneVocabulary]:
    """Align all files to one vocabulary, by default the union of their genes."""
    accepted, genes = [], given
    for source in sources:
        key = gene_id_key if gene_id_key in source.var or gene_id_key == VAR_NAMES else None
        alignment = None if genes is None else align_genes(genes, source.var, key, aliases)
        if given is None or alignment is None:  # its genes become part of the vocabulary
            column = key if alignment is None else alignment.source
            try:
                found = own_identifiers(source.var, column, f"{source.path}: var")
                ids = tuple(found[found != ""])
            except ValueError as error:
                refuse(source.path, error)
                continue
        elif alignment.repeated:
            refuse(source.path, _repeated(source, alignment))
            continue
        if genes is None or alignment is None:
            genes = GeneVocabulary(ids, ids)
            alignment = align_genes(genes, source.var, key, aliases)
        n_found = int((alignment.column_to_gene >= 0).sum())
        overlap = n_found / max(1, min(len(genes), len(source.var)))
        if n_found == 0 or overlap < min_overlap:
            refuse(source.path, _other_genes(source, genes, n_found, min_overlap, given is None))
            continue
        if given is None:
            new = tuple(gene for gene in alignment.unused if gene)
            genes = GeneVocabulary(genes.gene_ids + new, genes.gene_ids + new)
        accepted.append(source)
    if genes is None or not accepted:
        raise ValueError("No file is left: see the messages above.")
    for source in accepted:
        key = gene_id_key if gene_id_key in source.var or gene_id_key == VAR_NAMES else None
        source.alignment = align_genes(genes, source.var, key, aliases)
        warn_of_source(source.alignment, key, f"{source.path}: var")
        if source.alignment.repeated:  # under names that later files brought
            refuse(source.path, _repeated(source, source.alignment))
            accepted = [other for other in accepted if other is not source]
        source.var = pd.DataFrame()
    return accepted, genes


def scan_cells(source: Source, n_genes: int, bar: Any) -> tuple[np.ndarray, float]:
    """Check all counts of a file, and count the genes of its cells."""
    reader = CellFile(source.path, source.layer).reader
    totals, largest = np.zeros(n_genes), 0.0
    lengths, hashes = [], []
    for start in range(0, source.n_cells, CHUNK):
        place = f"cells {start} to {min(start + CHUNK, source.n_cells) - 1}"
        try:
            chunk = reader.read(slice(start, start + CHUNK))
        except NOT_DAMAGE:
            raise
        except Exception as error:  # every codec and file system has its own
            raise ValueError(
                f"{source.path}, {source.layer}, {place}, cannot be read: {error}"
            ) from error
        if (problem := problem_with(chunk.data)) is not None:
            raise ValueError(f"{source.path}, {source.layer}, {place}, {problem}")
        ragged = to_ragged(chunk, source.column_to_gene)
        totals += np.bincount(ragged["gene_ids"], ragged["counts"], minlength=n_genes)
        largest = max(largest, float(ragged["counts"].max(initial=0)))
        lengths.append(np.diff(ragged["cu_seqlens"]))
        hashes.append(hash_cells(ragged["counts"], ragged["gene_ids"], ragged["cu_seqlens"]))
        bar.update(chunk.shape[0])
    source.n_genes_c = np.concatenate(lengths).astype(np.int32)
    source.hash_c = np.concatenate(hashes)
    return totals, largest


def decide(
    sources: list[Source], min_genes: int, max_genes: int | None, drop_duplicates: bool
) -> None:
    """Say of every cell whether it is kept, and why not."""
    for source in sources:
        source.fate_c = np.full(source.n_cells, KEPT, dtype=np.int8)
        source.fate_c[source.n_genes_c < max(1, min_genes)] = TOO_FEW_GENES
        if max_genes is not None:
            source.fate_c[source.n_genes_c > max_genes] = TOO_MANY_GENES
    if not drop_duplicates or not sources:
        return
    hashes = np.concatenate([source.hash_c for source in sources])
    kept = np.flatnonzero(np.concatenate([source.fate_c for source in sources]) == KEPT)
    first = kept[np.unique(hashes[kept], return_index=True)[1]]
    is_duplicate = np.zeros(len(hashes), dtype=bool)
    is_duplicate[kept] = True
    is_duplicate[first] = False
    ends = list(accumulate(source.n_cells for source in sources))
    for source, part in zip(sources, np.split(is_duplicate, ends[:-1]), strict=True):
        source.fate_c[part] = DUPLICATE


def drop_silent(
    sources: list[Source], genes: GeneVocabulary, totals: np.ndarray
) -> GeneVocabulary:
    """Leave out genes that no cell expresses."""
    expressed = np.flatnonzero(totals > 0)
    new_place = np.full(len(genes) + 1, -1, dtype=np.int64)  # the last entry is for "none", -1
    new_place[expressed] = np.arange(len(expressed))
    for source in sources:
        assert source.alignment is not None
        source.alignment = source.alignment.onto(new_place, genes)
    ids = tuple(genes.gene_ids[i] for i in expressed)
    return GeneVocabulary(ids, ids)


def draw_validation(
    sources: list[Source], held_out: set[str], size: float, seed: int
) -> list[np.ndarray]:
    """Return which cells are held out, a mask per file."""
    rng = np.random.default_rng(seed)
    n_kept = sum(int((source.fate_c == KEPT).sum()) for source in sources)
    size = min(size, MAX_VALIDATION_CELLS / max(n_kept, 1))
    masks = []
    for source in sources:
        if source.path in held_out:
            masks.append(np.ones(source.n_cells, dtype=bool))
        else:
            masks.append(rng.random(source.n_cells) < size)
    return masks


def _repeated(source: Source, alignment: GeneAlignment) -> ValueError:
    return ambiguous_error(alignment, f"{source.path}: var")


def _other_genes(
    source: Source, genes: GeneVocabulary, found: int, min_overlap: float, is_union: bool
) -> ValueError:
    of_what = "the files before it" if is_union else "the vocabulary"
    return ValueError(
        f"{source.path} has other genes: only {found:,} of its {len(source.var):,} are among the "
        f"{len(genes):,} of {of_what}, at least {min_overlap:.0%} are needed. It has "
        f"{preview(source.var.index, 3)}, the others {preview(genes.gene_ids, 3)}. Pass "
        '`gene_aliases="hgnc"` to translate identifiers, `gene_id_key=` to name their column, '
        'lower `min_gene_overlap`, or leave such files out with `on_bad_file="skip"`.'
    )
