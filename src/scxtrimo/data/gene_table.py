"""Which identifiers mean the same gene: approved, previous and alias symbols, Ensembl ids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import pandas as pd

from .identifiers import fold

HGNC_URL = (
    "https://storage.googleapis.com/public-download-files/hgnc/tsv/tsv/hgnc_complete_set.txt"
)
HGNC = "hgnc"
# Columns of the HGNC table by how much their identifiers are to be trusted.
COLUMNS = ("symbol", "ensembl_gene_id", "hgnc_id", "prev_symbol", "alias_symbol")
REQUIRED = {"symbol", "prev_symbol", "alias_symbol"}


class GeneTable:
    """Identifiers that mean the same gene.

    An identifier that is the approved symbol of one gene and a previous symbol or alias of another
    means the former. A previous symbol or alias of several genes means none of them.

    Parameters
    ----------
    table
        One gene per row, columns as in the table of the HUGO Gene Nomenclature Committee:
        ``symbol``, ``prev_symbol`` and ``alias_symbol`` (several separated by ``|``) and, if
        there, ``ensembl_gene_id`` and ``hgnc_id``.

    Raises
    ------
    ValueError
        If a column is missing.

    Examples
    --------
    >>> import pandas as pd
    >>> from scxtrimo.data import GeneTable
    >>> row = {"symbol": "TENT5A", "prev_symbol": "C6orf37|FAM46A", "alias_symbol": ""}
    >>> row["ensembl_gene_id"] = "ENSG00000112773"
    >>> table = GeneTable(pd.DataFrame([row]))
    >>> table.translate(["ENSG00000112773.16", "TENT5A"], ["FAM46A"])
    {'ENSG00000112773.16': 'FAM46A', 'TENT5A': 'FAM46A'}
    >>> sorted(table.aliases_of(["FAM46A"]))
    ['C6ORF37', 'ENSG00000112773', 'FAM46A', 'TENT5A']
    """

    def __init__(self, table: pd.DataFrame) -> None:
        if missing := sorted(REQUIRED - set(table)):
            raise ValueError(
                f"The gene table lacks the columns {missing}; it has {list(table)[:8]}. Use the "
                "complete set of HGNC."
            )
        self._gene_of: dict[str, tuple[int, int]] = {}
        for rank, name in enumerate(COLUMNS):
            if name in table:
                self._add(table[name], rank)

    def _add(self, column: pd.Series, rank: int) -> None:
        """Add a column of identifiers, which those of earlier columns take precedence over."""
        claimed: dict[str, int | None] = {}
        texts = column.fillna("").astype(str).to_numpy()
        for gene, text in enumerate(texts):
            for identifier in filter(None, map(fold, text.strip('"').split("|"))):
                if claimed.setdefault(identifier, gene) != gene:
                    claimed[identifier] = None
        for identifier, owner in claimed.items():
            if owner is not None:
                self._gene_of.setdefault(identifier, (owner, rank))

    @classmethod
    def from_hgnc(cls, path: str | os.PathLike | None = None) -> GeneTable:
        r"""Read the table of HGNC.

        Parameters
        ----------
        path
            The table, tab-separated, compressed or not. By default it is downloaded once and kept
            in the user's cache directory.

        Returns
        -------
        The table.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        OSError
            If the table cannot be downloaded; the message says where to get it.
        ValueError
            If the file is not such a table.

        Examples
        --------
        >>> import pandas as pd
        >>> from scxtrimo.data import GeneTable
        >>> row = {"symbol": "TENT5A", "prev_symbol": "C6orf37|FAM46A", "alias_symbol": ""}
        >>> row["ensembl_gene_id"] = "ENSG00000112773"
        >>> pd.DataFrame([row]).to_csv("hgnc_complete_set.txt", sep="\t", index=False)
        >>> table = GeneTable.from_hgnc("hgnc_complete_set.txt")
        >>> table = GeneTable.from_hgnc()  # doctest: +SKIP
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
        From names, in upper case and without versions, to identifiers in the vocabulary.
        """
        return self.translate(self._gene_of, vocabulary)

    def translate(self, ids: Iterable[str], vocabulary: Iterable[str]) -> dict[str, str]:
        """Find the genes of a vocabulary under other identifiers.

        Parameters
        ----------
        ids
            Identifiers as in the data; versions of Ensembl ids and case are ignored.
        vocabulary
            Identifiers as in the vocabulary.

        Returns
        -------
        From identifiers in the data to those in the vocabulary, where both mean the same gene.
        """
        best: dict[int, tuple[int, str | None]] = {}
        for known in vocabulary:
            if (found := self._gene_of.get(fold(known))) is None:
                continue
            gene, rank = found
            if gene not in best or rank < best[gene][0]:
                best[gene] = (rank, known)
            elif rank == best[gene][0]:
                best[gene] = (rank, None)  # two genes of the vocabulary that are one by now
        aliases = {}
        for identifier in ids:
            found = self._gene_of.get(fold(identifier))
            translated = best.get(found[0], (0, None))[1] if found else None
            if translated is not None:
                aliases[str(identifier)] = translated
        return aliases


GeneAliases: TypeAlias = Mapping[str, str] | GeneTable | str | os.PathLike | None


def read_aliases(aliases: GeneAliases) -> Mapping[str, str] | GeneTable:
    """Turn ``"hgnc"``, the path of a table, a table or a mapping into one of the latter two."""
    if aliases is None:
        return {}
    if isinstance(aliases, Mapping | GeneTable):
        return aliases
    return GeneTable.from_hgnc(None if aliases == HGNC else aliases)


def _fetch() -> str:
    import pooch

    try:
        return pooch.retrieve(
            HGNC_URL,
            known_hash=None,  # HGNC changes it every week; a copy that is there is kept
            fname="hgnc_complete_set.txt",
            path=pooch.os_cache("scxtrimo"),
            progressbar=True,
        )
    except Exception as error:
        raise OSError(
            f"The gene table of HGNC could not be downloaded ({error}). Get it from {HGNC_URL} "
            'and pass its path: `gene_aliases="hgnc_complete_set.txt"`.'
        ) from error
