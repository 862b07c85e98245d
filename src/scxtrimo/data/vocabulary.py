"""The genes a model knows, and how the columns of an AnnData map onto them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from .gene_table import GeneTable
from .identifiers import fold, strip_version

COVERAGE_KEY = "scxtrimo_gene_coverage"
DEFAULT_MIN_GENE_OVERLAP = 0.25
VAR_NAMES = "var_names"


@dataclass(frozen=True)
class GeneVocabulary:
    """The genes of a model, in the order of its gene embeddings.

    Parameters
    ----------
    gene_ids
        Unique identifiers, the ones the model was set up with.
    gene_names
        A second identifier per gene (for instance symbols beside Ensembl ids). Equal to
        ``gene_ids`` where there is none.

    Examples
    --------
    >>> from scxtrimo.data import GeneVocabulary
    >>> vocabulary = GeneVocabulary(("ENSG00000167286", "ENSG00000156738"), ("CD3D", "MS4A1"))
    >>> vocabulary.index_of(["MS4A1", "ENSG00000167286"])
    array([1, 0])
    >>> vocabulary.lookup()["CD3D"], len(vocabulary)
    (0, 2)
    >>> GeneVocabulary.from_dict(vocabulary.to_dict()) == vocabulary
    True
    """

    gene_ids: tuple[str, ...]
    gene_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.gene_ids)

    def index_of(self, genes: Iterable[str]) -> np.ndarray:
        """Return the positions of genes.

        Parameters
        ----------
        genes
            Ids or names.

        Returns
        -------
        int64, shape ``(n_genes,)``.

        Raises
        ------
        ValueError
            If a gene is not in the vocabulary; all such genes are counted and some are named.
        """
        genes = [genes] if isinstance(genes, str) else list(genes)
        lookup = self.lookup()
        unknown = [gene for gene in genes if gene not in lookup]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(genes)} genes are not in the model's vocabulary of "
                f"{len(self):,} genes: {preview(unknown)}.{self._suggestion(unknown)} See "
                "`model.vocabulary.gene_ids`; genes without a single count in the data that a "
                "model was made from are not part of it."
            )
        return np.array([lookup[gene] for gene in genes], dtype=np.int64)

    def _suggestion(self, unknown: list[str]) -> str:
        """Name genes that differ in case only."""
        folded = fold_lookup(self.lookup())
        similar = {gene: folded[fold(gene)] for gene in unknown if fold(gene) in folded}
        if not similar:
            return ""
        return f" Did you mean {preview(self.gene_ids[i] for i in similar.values())}?"

    def lookup(self) -> dict[str, int]:
        """Return the position of every id, and of every name that only one gene has.

        Returns
        -------
        From ids and names to positions.
        """
        times = Counter(self.gene_names)
        names = {name: i for i, name in enumerate(self.gene_names) if times[name] == 1}
        return names | {gene_id: i for i, gene_id in enumerate(self.gene_ids)}

    def to_dict(self) -> dict[str, list[str]]:
        """Return plain lists, for JSON.

        Returns
        -------
        ``gene_ids`` and ``gene_names``; the latter are empty where they are the same.
        """
        names = [] if self.gene_names == self.gene_ids else list(self.gene_names)
        return {"gene_ids": list(self.gene_ids), "gene_names": names}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Iterable[str]]) -> GeneVocabulary:
        """Make a vocabulary of plain lists.

        Parameters
        ----------
        stored
            What :meth:`to_dict` returned.

        Returns
        -------
        The vocabulary.
        """
        gene_ids = tuple(stored["gene_ids"])
        return cls(gene_ids, tuple(stored["gene_names"]) or gene_ids)


@dataclass(frozen=True)
class GeneAlignment:
    """Which column of an AnnData holds which gene of a vocabulary.

    Parameters
    ----------
    column_to_gene
        Position in the vocabulary of every column, -1 for columns that are not used.
    source
        Where the identifiers were found: ``"var_names"`` or a column of ``adata.var``.
    matched
        Number of genes found under their own identifier.
    renamed
        ``(identifier in the data, identifier in the vocabulary)`` of genes found under another
        spelling or an alias.
    missing
        Genes of the vocabulary that the data do not have.
    unused
        Identifiers of the data that the vocabulary does not have.
    repeated
        Genes of the vocabulary whose identifier several columns have.
    n_case
        How many genes were found only because upper and lower case were ignored.

    Examples
    --------
    >>> import pandas as pd
    >>> from scxtrimo.data import GeneVocabulary, align_genes
    >>> vocabulary = GeneVocabulary(("CD3D", "MS4A1"), ("CD3D", "MS4A1"))
    >>> alignment = align_genes(vocabulary, pd.DataFrame(index=["MS4A1", "Cd3d", "XIST"]))
    >>> alignment.column_to_gene, alignment.overlap, alignment.renamed
    (array([ 1,  0, -1]), 1.0, (('Cd3d', 'CD3D'),))
    >>> alignment.counts()["n_unused"], list(alignment.to_uns()["unused"])
    (1, ['XIST'])
    """

    column_to_gene: np.ndarray
    source: str
    matched: int
    renamed: tuple[tuple[str, str], ...] = field(repr=False)
    missing: tuple[str, ...] = field(repr=False)
    unused: tuple[str, ...] = field(repr=False)
    repeated: tuple[str, ...] = field(default=(), repr=False)
    n_case: int = 0

    @property
    def overlap(self) -> float:
        """Fraction of the vocabulary that the data have."""
        found = self.matched + len(self.renamed)
        return found / max(found + len(self.missing), 1)

    def __str__(self) -> str:
        return (
            f"{self.matched:,} genes matched, {len(self.renamed):,} renamed, "
            f"{len(self.missing):,} missing, {len(self.unused):,} columns unused "
            f"({self.overlap:.1%} of the model's genes, identifiers from {self.source!r})"
        )

    def counts(self) -> dict[str, Any]:
        """Return the coverage in numbers.

        Returns
        -------
        Its source, overlap and numbers of genes.
        """
        return {
            "source": self.source,
            "overlap": self.overlap,
            "n_matched": self.matched,
            "n_renamed": len(self.renamed),
            "n_missing": len(self.missing),
            "n_unused": len(self.unused),
        }

    def onto(self, new_place: np.ndarray, vocabulary: GeneVocabulary) -> GeneAlignment:
        """Return the same alignment to a part of the vocabulary.

        Parameters
        ----------
        new_place
            New positions of the genes, -1 for those that go; its last entry is -1.
        vocabulary
            The vocabulary before.

        Returns
        -------
        The alignment; genes that go are not counted as missing.

        Examples
        --------
        >>> import numpy as np
        >>> import pandas as pd
        >>> from scxtrimo.data import GeneVocabulary, align_genes
        >>> vocabulary = GeneVocabulary(("CD3D", "MS4A1"), ("CD3D", "MS4A1"))
        >>> alignment = align_genes(vocabulary, pd.DataFrame(index=["MS4A1", "Cd3d", "XIST"]))
        >>> new_place = np.array([-1, 0, -1])  # only MS4A1 stays
        >>> alignment.onto(new_place, vocabulary).column_to_gene
        array([ 0, -1, -1])
        """
        columns = new_place[self.column_to_gene]
        stays = {g for g, place in zip(vocabulary.gene_ids, new_place, strict=False) if place >= 0}
        renamed = tuple(pair for pair in self.renamed if pair[1] in stays)
        return replace(
            self,
            column_to_gene=columns,
            matched=int((columns >= 0).sum()) - len(renamed),
            renamed=renamed,
            missing=tuple(gene for gene in self.missing if gene in stays),
        )

    def to_uns(self) -> dict[str, Any]:
        """Return the coverage report as it is stored in ``adata.uns``.

        Returns
        -------
        The numbers, and the genes themselves as arrays.
        """
        return self.counts() | {
            "renamed_from": np.array([old for old, _ in self.renamed], dtype=object),
            "renamed_to": np.array([new for _, new in self.renamed], dtype=object),
            "missing": np.array(self.missing, dtype=object),
            "unused": np.array(self.unused, dtype=object),
        }


def align_genes(
    vocabulary: GeneVocabulary,
    var: pd.DataFrame,
    gene_id_key: str | None = None,
    gene_aliases: Mapping[str, str] | GeneTable | None = None,
) -> GeneAlignment:
    """Find the genes of a vocabulary among the columns of an AnnData, by identifier.

    Identifiers are looked for in ``var[gene_id_key]`` if given, else in the index of ``var`` and
    then in its other text columns; whichever finds most genes is used. A gene is found under
    its id or its name, after that under an alias, without Ensembl version suffix, or regardless
    of upper and lower case where that is unambiguous.

    Parameters
    ----------
    vocabulary
        The genes to look for.
    var
        ``adata.var`` of the data.
    gene_id_key
        Column of ``var`` with the identifiers, or ``"var_names"`` for its index.
    gene_aliases
        From identifiers as in the data to identifiers as in the vocabulary, or a table of
        identifiers that mean the same gene.

    Returns
    -------
    The alignment. No gene of the vocabulary is assigned to two columns.

    Examples
    --------
    >>> import pandas as pd
    >>> from scxtrimo.data import GeneVocabulary, align_genes
    >>> vocabulary = GeneVocabulary(("CD3D", "MS4A1"), ("CD3D", "MS4A1"))
    >>> alignment = align_genes(vocabulary, pd.DataFrame(index=["MS4A1", "Cd3d", "XIST"]))
    >>> print(alignment)
    1 genes matched, 1 renamed, 0 missing, 1 columns unused
    (100.0% of the model's genes, identifiers from 'var_names')
    """
    if gene_id_key == VAR_NAMES and VAR_NAMES not in var:
        candidates = {VAR_NAMES: var.index.to_series()}
    elif gene_id_key is not None:
        candidates = {gene_id_key: var[gene_id_key]}
    else:
        texts = [name for name in var if not pd.api.types.is_numeric_dtype(var[name])]
        candidates = {VAR_NAMES: var.index.to_series()} | {name: var[name] for name in texts}
    alignments = [
        _align(vocabulary, source, _as_text(ids), gene_aliases or {})
        for source, ids in candidates.items()
    ]
    best = max(alignments, key=lambda alignment: alignment.overlap)  # the first of equals
    # Identifiers that are unique are better than a few more that are not.
    enough = [a for a in alignments if a.overlap >= 0.9 * best.overlap]
    return next((a for a in enough if not a.repeated), best) if best.repeated else best


def _align(
    vocabulary: GeneVocabulary,
    source: str,
    ids: np.ndarray,
    aliases: Mapping[str, str] | GeneTable,
) -> GeneAlignment:
    if isinstance(aliases, GeneTable):
        aliases = aliases.translate(ids, vocabulary.gene_ids)
    exact = vocabulary.lookup()
    folded = fold_lookup(exact)
    columns = np.full(len(ids), -1, dtype=np.int64)
    taken: dict[int, int] = {}
    for column, identifier in enumerate(ids):
        gene = exact.get(identifier)
        if gene is not None and gene not in taken:
            taken[gene], columns[column] = column, gene
    n_matched = len(taken)
    times = Counter(ids.tolist())
    repeated = tuple(vocabulary.gene_ids[g] for g, c in taken.items() if times[ids[c]] > 1)
    renamed = []
    n_case = 0
    # After all exact matches, so that a column with the gene's own identifier always wins.
    for column in np.flatnonzero(columns < 0).tolist():
        identifier = ids[column]
        spellings = (identifier, strip_version(identifier), fold(identifier))
        alias = next((aliases[s] for s in spellings if s in aliases), None)
        gene = folded.get(fold(identifier)) if alias is None else exact.get(alias)
        if gene is not None and gene not in taken:
            taken[gene], columns[column] = column, gene
            renamed.append((str(identifier), vocabulary.gene_ids[gene]))
            same_letters = fold(identifier) == fold(vocabulary.gene_ids[gene])
            n_case += same_letters and strip_version(identifier) not in exact
    return GeneAlignment(
        column_to_gene=columns,
        source=source,
        matched=n_matched,
        renamed=tuple(renamed),
        missing=tuple(g for i, g in enumerate(vocabulary.gene_ids) if i not in taken),
        unused=tuple(str(identifier) for identifier in ids[columns < 0]),
        repeated=repeated,
        n_case=n_case,
    )


def _as_text(ids: pd.Series) -> np.ndarray:
    """Return identifiers as text; a missing one is empty and matches nothing."""
    return ids.astype(object).where(ids.notna(), "").astype(str).to_numpy(dtype=object)


def fold_lookup(exact: Mapping[str, int]) -> dict[str, int]:
    """Look up genes regardless of case and version; spellings of two genes are left out."""
    lookup: dict[str, int] = {}
    ambiguous = set()
    for identifier, gene in exact.items():
        if lookup.setdefault(fold(identifier), gene) != gene:
            ambiguous.add(fold(identifier))
    return {folded: gene for folded, gene in lookup.items() if folded not in ambiguous}


def preview(items: Iterable[object], n: int = 5) -> str:
    """Name the first few of many items, for an error message."""
    items = list(items)
    shown = ", ".join(map(repr, map(str, items[:n])))
    return shown if len(items) <= n else f"{shown}, ..."
