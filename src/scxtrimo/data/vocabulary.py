"""The genes of a model, and how columns of an AnnData map to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from .._logging import logger
from .columns import MISSING, as_text, get_column, preview
from .gene_table import GeneTable, fold, strip_version

COVERAGE_KEY = "scxtrimo_gene_coverage"
DEFAULT_MIN_GENE_OVERLAP = 0.25
VAR_NAMES = "var_names"
Aliases: TypeAlias = Mapping[str, str] | GeneTable | None


@dataclass(frozen=True)
class GeneVocabulary:
    """The genes of a model, in the order of its gene embeddings.

    Examples
    --------
    >>> genes = scxtrimo.data.GeneVocabulary(("ENSG00000167286",), ("CD3D",))
    >>> genes.index_of(["CD3D"]), genes.lookup()["ENSG00000167286"]
    (array([0]), 0)
    >>> genes.from_dict(genes.to_dict()) == genes
    True
    """

    gene_ids: tuple[str, ...]
    """Unique identifiers, those that the model was set up with."""
    gene_names: tuple[str, ...]
    """A second identifier per gene, such as its symbol, or once more ``gene_ids``."""

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
        int64, ``(n_genes,)``.
        """
        genes = [genes] if isinstance(genes, str) else list(genes)
        lookup = self.lookup()
        unknown = [gene for gene in genes if not isinstance(gene, str) or gene not in lookup]
        if not unknown:
            return np.array([lookup[gene] for gene in genes], dtype=np.int64)
        folded = fold_lookup(lookup)
        texts = dict.fromkeys(fold(gene) for gene in unknown if isinstance(gene, str))
        similar = [self.gene_ids[folded[text]] for text in texts if text in folded]
        hint = f" Did you mean {preview(similar)}?" if similar else ""
        raise ValueError(
            f"{len(unknown)} of {len(genes)} genes are not in the model's vocabulary of "
            f"{len(self):,} genes: {preview(unknown)}.{hint} Choose from "
            "`model.vocabulary.gene_ids`; genes without counts in the data that the model was "
            "set up with are not part of it."
        )

    def lookup(self) -> Mapping[str, int]:
        """Return the position of every id, and of every name that belongs to one gene only.

        Returns
        -------
        Mapping from ids and names to positions.
        """
        return self._places

    @cached_property
    def _places(self) -> Mapping[str, int]:
        times = Counter(self.gene_names)
        names = {name: i for i, name in enumerate(self.gene_names) if times[name] == 1}
        return MappingProxyType(names | {gene: i for i, gene in enumerate(self.gene_ids)})

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the cached mapping, which cannot be pickled."""
        return {"gene_ids": self.gene_ids, "gene_names": self.gene_names}

    def to_dict(self) -> dict[str, list[str]]:
        """Return plain lists, for JSON.

        Returns
        -------
        ``gene_ids`` and ``gene_names``, which are left empty if they equal the ids.
        """
        names = [] if self.gene_names == self.gene_ids else list(self.gene_names)
        return {"gene_ids": list(self.gene_ids), "gene_names": names}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Iterable[str]]) -> GeneVocabulary:
        """Make a vocabulary from plain lists.

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
    """The columns of an AnnData that hold the genes of a vocabulary.

    Examples
    --------
    >>> names = ("CD3D", "MS4A1")
    >>> vocabulary = GeneVocabulary(names, names)
    >>> alignment = align_genes(vocabulary, pd.DataFrame(index=["MS4A1", "Cd3d", "XIST"]))
    >>> alignment.column_to_gene, alignment.overlap, alignment.renamed
    (array([ 1,  0, -1]), 1.0, (('Cd3d', 'CD3D'),))
    >>> alignment.counts()["n_unused"], list(alignment.to_uns()["unused"])
    (1, ['XIST'])
    >>> alignment.onto(np.array([-1, 0, -1]), vocabulary).column_to_gene  # only MS4A1 stays
    array([ 0, -1, -1])
    """

    column_to_gene: np.ndarray
    """Position in the vocabulary of every column, -1 for columns that are not used."""
    source: str
    """Where the identifiers were found: ``"var_names"`` or a column of ``adata.var``."""
    matched: int
    """Number of genes found under their own identifier."""
    renamed: tuple[tuple[str, str], ...] = field(repr=False)
    """``(identifier in the data, identifier in the vocabulary)`` of genes found otherwise."""
    missing: tuple[str, ...] = field(repr=False)
    """Genes of the vocabulary that are not in the data."""
    unused: tuple[str, ...] = field(repr=False)
    """Identifiers in the data that are not in the vocabulary."""
    repeated: tuple[str, ...] = field(default=(), repr=False)
    """Genes of the vocabulary that match several columns."""
    n_case: int = 0
    """Number of genes found only because upper and lower case were ignored."""
    shadowed: tuple[str, ...] = field(default=(), repr=False)
    """Identifiers of columns of a gene that is read from another column, under another alias."""

    @property
    def overlap(self) -> float:
        """Fraction of the vocabulary that was found."""
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
        Source, overlap and numbers of genes.
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
        """Restrict the alignment to a part of the vocabulary.

        Parameters
        ----------
        new_place, vocabulary
            New positions of the genes, -1 for those that are removed, with a last entry of -1; and
            the previous vocabulary.

        Returns
        -------
        The alignment; removed genes are not counted as missing.
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
    gene_aliases: Aliases = None,
) -> GeneAlignment:
    """Find the genes of a vocabulary among the columns of an AnnData, by identifier.

    A gene is found under its id or name, else under an alias, without Ensembl version, or
    regardless of case where that is unambiguous.

    Parameters
    ----------
    vocabulary, var
        The genes to look for, and ``adata.var`` of the data.
    gene_id_key
        Column of ``var`` with the identifiers, or ``"var_names"`` for its index. By default, the
        index or, if no gene is found there, the text column with most genes.
    gene_aliases
        Mapping from identifiers in the data to those in the vocabulary, or a :class:`GeneTable`.

    Returns
    -------
    The alignment. Every gene of the vocabulary is assigned to one column at most.

    Examples
    --------
    >>> vocabulary = scxtrimo.data.GeneVocabulary(("CD3D", "MS4A1"), ("CD3D", "MS4A1"))
    >>> var = pd.DataFrame(index=["MS4A1", "Cd3d", "XIST"])
    >>> print(scxtrimo.data.align_genes(vocabulary, var))
    1 genes matched, 1 renamed, 0 missing, 1 columns unused
    (100.0% of the model's genes, identifiers from 'var_names')
    """
    if gene_id_key is not None and not (gene_id_key == VAR_NAMES and VAR_NAMES not in var):
        column = get_column(var, "adata.var", gene_id_key)
        return _align(vocabulary, gene_id_key, column, gene_aliases)
    alignment = _align(vocabulary, VAR_NAMES, var.index.to_series(), gene_aliases)
    if gene_id_key is not None or alignment.overlap > 0:
        return alignment
    return _best(alignment, vocabulary, var, gene_aliases)


def find_genes(
    vocabulary: GeneVocabulary,
    var: pd.DataFrame,
    gene_id_key: str | None,
    gene_aliases: Aliases,
    min_overlap: float,
) -> GeneAlignment:
    """Align genes; refuse ambiguous columns or too few genes, and warn of a guessed column."""
    alignment = align_genes(vocabulary, var, gene_id_key, gene_aliases)
    if alignment.repeated:
        raise ambiguous_error(alignment)
    if alignment.overlap == 0 or alignment.overlap < min_overlap:
        best = _best(alignment, vocabulary, var, gene_aliases)
        hint = ""
        if best is not alignment:
            hint = f" adata.var[{best.source!r}] has {best.overlap:.1%} of them."
        raise ValueError(
            f"Only {alignment.overlap:.1%} of the model's {len(vocabulary):,} genes are among the "
            f"{len(var):,} genes of adata.var, at least {min_overlap:.0%} are needed. The model "
            f"has {preview(vocabulary.gene_ids, 3)}; the data have {preview(var.index, 3)}.{hint} "
            'If they are other names of the same genes, pass `gene_aliases="hgnc"`; if the '
            "identifiers are in a column of adata.var, `gene_id_key=...`; to accept fewer genes, "
            "lower `min_gene_overlap`. These are arguments of `model.prepare_query_anndata`, "
            "`load` and `from_scfoundation`."
        )
    warn_of_source(alignment, gene_id_key)
    return alignment


def _best(
    alignment: GeneAlignment, vocabulary: GeneVocabulary, var: pd.DataFrame, aliases: Aliases
) -> GeneAlignment:
    """Return the alignment with most genes, this one or that to a text column."""
    once = var.loc[:, ~var.columns.duplicated(keep=False)]
    texts = [name for name in once if not pd.api.types.is_numeric_dtype(once[name])]
    others = [_align(vocabulary, str(name), once[name], aliases) for name in texts]
    return max([alignment, *others], key=lambda other: other.overlap)


def warn_of_source(
    alignment: GeneAlignment, gene_id_key: str | None, what: str = "adata.var"
) -> None:
    """Warn if identifiers were taken from a column that was not asked for."""
    if gene_id_key is None and alignment.source != VAR_NAMES:
        found = alignment.matched + len(alignment.renamed)
        logger.warning(
            f"No identifier in {what}_names matches a gene of the model. Identifiers are taken "
            f"from {what}[{alignment.source!r}], which has {found:,} of its "
            f"{found + len(alignment.missing):,} genes. To be sure, pass "
            f"`gene_id_key={alignment.source!r}`."
        )


def _align(
    vocabulary: GeneVocabulary, source: str, column: pd.Series, aliases: Aliases
) -> GeneAlignment:
    ids = identifiers(column)
    if isinstance(aliases, GeneTable):
        aliases = aliases.translate(ids, vocabulary.gene_ids)
    aliases = aliases or {}
    exact = vocabulary.lookup()
    folded = fold_lookup(exact)
    columns = np.array([exact.get(name, -1) if name else -1 for name in ids], dtype=np.int64)
    # The same identifier twice, or id and name of one gene: the first column is read.
    is_again = pd.Series(columns).duplicated().to_numpy() & (columns >= 0)
    repeated = columns[is_again].tolist()
    columns[is_again] = -1
    exactly = set(columns.tolist()) - {-1}
    taken = set(exactly)
    renamed, shadowed, n_case = [], [], 0

    def alias_of(identifier: str) -> str | None:
        spellings = (identifier, strip_version(identifier), fold(identifier))
        return next((aliases[s] for s in spellings if s in aliases), None)

    places = np.flatnonzero((columns < 0) & (ids != "")).tolist()
    of_others = [(place, str(ids[place]), alias_of(str(ids[place]))) for place in places]
    # After all exact matches, so that a column with the gene's own identifier wins, and one that
    # has it in another case before one with an alias.
    for place, identifier, alias in sorted(of_others, key=lambda item: item[2] is not None):
        bare = strip_version(identifier)
        gene = folded.get(fold(identifier)) if alias is None else exact.get(alias)
        if gene is None:
            continue
        if gene not in taken:
            taken.add(gene)
            columns[place] = gene
            renamed.append((identifier, vocabulary.gene_ids[gene]))
            n_case += bare not in exact and fold(identifier) == fold(vocabulary.gene_ids[gene])
        elif alias is not None and gene not in exactly:
            shadowed.append(identifier)
        elif alias is None and (gene not in exactly or bare != identifier):
            repeated.append(gene)  # e.g. two versions of one Ensembl id
    return GeneAlignment(
        column_to_gene=columns,
        source=source,
        matched=len(exactly),
        renamed=tuple(renamed),
        missing=tuple(name for i, name in enumerate(vocabulary.gene_ids) if i not in taken),
        unused=tuple(str(identifier) for identifier in ids[columns < 0]),
        repeated=tuple(vocabulary.gene_ids[gene] for gene in dict.fromkeys(repeated)),
        n_case=n_case,
        shadowed=tuple(shadowed),
    )


def identifiers(column: pd.Series | pd.Index) -> np.ndarray:
    """Return identifiers as text, empty where one is missing."""
    if isinstance(column, pd.MultiIndex):
        raise ValueError(
            f"adata.var_names has several levels, {list(column.names)}. Join them: "
            '`adata.var_names = adata.var_names.map("_".join)`.'
        )
    texts = as_text(column)
    return texts.where(texts.notna() & ~texts.isin(MISSING), "").to_numpy(dtype=object)


def own_identifiers(var: pd.DataFrame, key: str | None, what: str = "adata.var") -> np.ndarray:
    """Return unique identifiers of genes; missing ones are empty, with a warning."""
    is_index = key is None or (key == VAR_NAMES and VAR_NAMES not in var)
    field = f"{what}_names" if is_index else f"{what}[{key!r}]"
    ids = identifiers(var.index if is_index else get_column(var, what, str(key)))
    if len(missing := np.flatnonzero(ids == "")):
        if len(missing) == len(ids):
            raise ValueError(f"{field} holds no identifiers. Choose another `gene_id_key`.")
        logger.warning(
            f"{field} lacks the identifier of {len(missing):,} of {len(ids):,} genes (columns "
            f"{preview(missing)}): they are left out."
        )
    warn_of_numbers(ids, field)
    index = pd.Index(ids[ids != ""])
    if not index.is_unique:
        raise _repeated(index[index.duplicated()].unique(), field)
    return ids


def warn_of_numbers(ids: np.ndarray, field: str) -> None:
    """Warn if identifiers are row numbers, as in a table without names."""
    if ids.tolist() == [str(i) for i in range(len(ids))]:
        logger.warning(
            f"{field} look like default row numbers, from 0 to {len(ids) - 1}: genes would be "
            "matched by position. Set the names of the genes."
        )


def ambiguous_error(alignment: GeneAlignment, what: str = "adata.var") -> ValueError:
    """Return the error of an alignment with genes that match several columns."""
    is_index = alignment.source == VAR_NAMES
    field = f"{what}_names" if is_index else f"{what}[{alignment.source!r}]"
    return _repeated(alignment.repeated, field)


def _repeated(repeated: Sequence[str] | pd.Index, field: str) -> ValueError:
    is_column = field.endswith("]")
    way_out = "choose another `gene_id_key`" if is_column else "`adata.var_names_make_unique()`"
    return ValueError(
        f"{field} has {len(repeated):,} duplicate gene identifiers, for instance "
        f"{preview(repeated)}. Merge or rename these genes first ({way_out})."
    )


def fold_lookup(exact: Mapping[str, int]) -> dict[str, int]:
    """Look up genes regardless of case and version, without spellings shared by two genes."""
    lookup: dict[str, int] = {}
    for identifier, gene in exact.items():
        spelling = fold(identifier)
        lookup[spelling] = gene if lookup.get(spelling, gene) == gene else -1
    return {spelling: gene for spelling, gene in lookup.items() if gene >= 0}
