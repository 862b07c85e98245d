"""Gene identifiers: spellings, aliases of one gene, and the index of published checkpoints."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from .columns import preview

HGNC_URL = (
    "https://storage.googleapis.com/public-download-files/hgnc/tsv/tsv/hgnc_complete_set.txt"
)
COLUMNS = ("symbol", "ensembl_gene_id", "hgnc_id", "prev_symbol", "alias_symbol", "mouse_symbol")
"""Columns of the HGNC table, and orthologs; identifiers of earlier ones take precedence."""

# SHA-256 of the 19,264 symbols of the published checkpoints, in their order and sorted.
PUBLISHED_N_GENES = 19_264
PUBLISHED_ORDER = "6037e1bc9b3b48a5112ffdc29261383f747a3c3f8b568a8899b0c69d13565df8"
PUBLISHED_GENES = "e5322ead657fa5ac90d431e2d04e94edb56a1ecde3f4f94988404631ab436df1"

_ENSEMBL_VERSION = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+$")


def strip_version(identifier: str) -> str:
    """Remove the version of an Ensembl gene id, as in ``"ENSG00000112773.16"``."""
    return _ENSEMBL_VERSION.sub(r"\1", identifier)


def fold(identifier: str) -> str:
    """Return an identifier without version and surrounding spaces, in upper case."""
    return strip_version(identifier.strip()).upper()


class GeneTable:
    """Identifiers that mean the same gene.

    An identifier that is the approved symbol of one gene and a previous symbol or alias of another
    stands for the former. A previous symbol or alias of several genes stands for none of them.

    Parameters
    ----------
    table
        One gene per row, columns as in the table of HGNC: ``symbol`` and any of ``prev_symbol``,
        ``alias_symbol`` (several separated by ``|``), ``ensembl_gene_id`` and ``hgnc_id``; or
        ``mouse_symbol``, the ortholog of the mouse.

    Examples
    --------
    >>> row = {"symbol": "TENT5A", "prev_symbol": "C6orf37|FAM46A", "alias_symbol": ""}
    >>> table = scxtrimo.data.GeneTable(pd.DataFrame([row]))
    >>> table.translate(["TENT5A"], ["FAM46A"]), sorted(table.aliases_of(["FAM46A"]))
    ({'TENT5A': 'FAM46A'}, ['C6ORF37', 'FAM46A', 'TENT5A'])
    >>> table = scxtrimo.data.GeneTable.from_hgnc()  # doctest: +SKIP
    """

    def __init__(self, table: pd.DataFrame) -> None:
        others = COLUMNS[1:]
        missing = ["symbol"] if "symbol" not in table else [] if {*others} & {*table} else others
        if missing:
            raise ValueError(
                f"The gene table lacks the columns {[*missing]}; it has {list(table)[:8]}. Use "
                "the complete set of HGNC."
            )
        self._gene_of: dict[str, tuple[int, int]] = {}
        for rank, name in enumerate(COLUMNS):
            claimed: dict[str, int | None] = {}
            for gene, text in enumerate(table[name].fillna("") if name in table else []):
                for identifier in filter(None, map(fold, str(text).strip('"').split("|"))):
                    if claimed.setdefault(identifier, gene) != gene:
                        claimed[identifier] = None
            for identifier, owner in claimed.items():
                if owner is not None:
                    self._gene_of.setdefault(identifier, (owner, rank))

    @classmethod
    def from_hgnc(cls, path: str | os.PathLike | None = None) -> GeneTable:
        """Read the table of the HUGO Gene Nomenclature Committee (HGNC).

        Parameters
        ----------
        path
            The tab-separated table, by default downloaded once and cached.

        Returns
        -------
        The table.
        """
        path = Path(_fetch() if path is None else path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist.")
        try:
            table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} is not a tab-separated table: {error}") from error
        return cls(table)

    def aliases_of(self, vocabulary: Iterable[str]) -> dict[str, str]:
        """Return all names of the genes of a vocabulary.

        Parameters
        ----------
        vocabulary
            Identifiers as in the vocabulary.

        Returns
        -------
        Mapping from names, in upper case and without versions, to identifiers in the vocabulary.
        """
        return self.translate(self._gene_of, vocabulary)

    def translate(self, ids: Iterable[str], vocabulary: Iterable[str]) -> dict[str, str]:
        """Find the genes of a vocabulary under other identifiers.

        Parameters
        ----------
        ids, vocabulary
            Identifiers as in the data, and as in the vocabulary; case and versions are ignored.

        Returns
        -------
        Mapping from identifiers in the data to those in the vocabulary that mean the same gene.
        """
        best: dict[int | None, tuple[int, str | None]] = {}
        for known in vocabulary:
            if (found := self._gene_of.get(fold(known))) is None:
                continue
            gene, rank = found
            if gene not in best or rank < best[gene][0]:
                best[gene] = (rank, known)
            elif rank == best[gene][0]:
                best[gene] = (rank, None)  # two entries of the vocabulary are the same gene
        aliases = {}
        for identifier in ids:
            gene_or_none, _ = self._gene_of.get(fold(identifier), (None, 0))
            _, translated = best.get(gene_or_none, (0, None))
            if translated is not None:
                aliases[str(identifier)] = translated
        return aliases


GeneAliases: TypeAlias = Mapping[str, str] | GeneTable | str | os.PathLike | None


def read_aliases(aliases: GeneAliases) -> Mapping[str, str] | GeneTable:
    """Return a mapping or table, given one of these, ``"hgnc"`` or the path of a table."""
    if aliases is None:
        return {}
    if isinstance(aliases, Mapping | GeneTable):
        return aliases
    return GeneTable.from_hgnc(None if aliases == "hgnc" else aliases)


def _fetch() -> str:
    import pooch

    try:
        return pooch.retrieve(
            HGNC_URL,
            known_hash=None,  # updated every week; a cached copy is kept
            fname="hgnc_complete_set.txt",
            path=pooch.os_cache("scxtrimo"),
            progressbar=True,
        )
    except Exception as error:
        raise OSError(
            f"The gene table of HGNC could not be downloaded ({error}). Get it from {HGNC_URL} "
            'and pass its path: `gene_aliases="hgnc_complete_set.txt"`.'
        ) from error


def hash_genes(genes: Iterable[str]) -> str:
    """Return the SHA-256 of gene identifiers in their order."""
    return hashlib.sha256("\n".join(genes).encode()).hexdigest()


def read_gene_index(source: str | os.PathLike | Sequence[str], n_genes: int) -> tuple[str, ...]:
    """Read a gene index; other genes than those of a checkpoint, or another order, are refused.

    Parameters
    ----------
    source
        A table with the columns ``gene_name`` and ``index``, as published, a text file with one
        gene per line, or the genes themselves.
    n_genes
        Number of genes of the checkpoint.

    Returns
    -------
    Gene symbols by position.

    Examples
    --------
    >>> scxtrimo.data.read_gene_index(["CD3D", "MS4A1"], 2)
    ('CD3D', 'MS4A1')
    """
    if isinstance(source, str | os.PathLike):
        name, genes = str(source), read_genes(source)
    else:
        name, genes = "gene_index", [str(gene) for gene in source]
    unique, times = np.unique(genes, return_counts=True)
    start = f"(it starts with {preview(genes, 3)})"
    if len(genes) != n_genes:
        problem = f"{len(genes):,} genes, the checkpoint {n_genes:,}"
    elif len(unique) != n_genes:
        problem = f"genes twice: {preview(unique[times > 1])}"
    elif n_genes != PUBLISHED_N_GENES or hash_genes(genes) == PUBLISHED_ORDER:
        return tuple(genes)
    elif hash_genes(sorted(genes)) == PUBLISHED_GENES:
        problem = (
            f"the genes of the published checkpoints in another order {start}: genes would get "
            "the weights of other genes"
        )
    else:
        problem = f"{n_genes:,} genes, but not those of the published checkpoints {start}"
    raise ValueError(
        f"{name} has {problem}. Use the gene index that comes with the checkpoint, unchanged."
    )


def read_genes(path: str | os.PathLike) -> list[str]:
    """Read genes from a text file with one per line, a gene index, or a gene table."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file with genes.") from error
    header = lines[0].split("\t") if lines else []
    if "symbol" in header[:-1]:
        return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)["symbol"].tolist()
    if not lines or header[0] != "gene_name":
        return [line.strip() for line in lines if line.strip()]
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    if "index" in table and table["index"].tolist() != [str(i) for i in range(len(table))]:
        raise ValueError(
            f"The column 'index' of {path} does not count from 0 to {len(table) - 1} in the order "
            "of its lines: the table was sorted or truncated. Use the file that comes with the "
            "checkpoint."
        )
    return table["gene_name"].tolist()
