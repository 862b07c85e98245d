"""Groups of cells with the same perturbation and population: names, fields and moments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ..data.columns import as_text, canonical, get_column, preview
from ..data.counts import RowReader, log_normalized
from ..data.fields import CategoryField

MIN_SD = 0.01
"""Lower bound of the standard deviation of a gene between cells, for genes without counts."""
Group = tuple[int, tuple[str, ...]]
"""Number of a population, and the perturbed genes."""
Perturbation = str | Sequence[str]


@dataclass(frozen=True)
class PerturbationNames:
    """How the names of perturbations are read.

    Parameters
    ----------
    control
        Name of unperturbed cells.
    separator
        Text between the genes of a combination.

    Examples
    --------
    >>> from scxtrimo.perturbation import PerturbationNames
    >>> names = PerturbationNames("control", "+")
    >>> names.targets("KLF1+BAK1"), names.targets("control")
    (('BAK1', 'KLF1'), ())
    >>> names.name(["KLF1", "BAK1"])
    'BAK1+KLF1'
    """

    control: str = "control"
    separator: str = "+"

    def __post_init__(self) -> None:
        object.__setattr__(self, "control", canonical(self.control))

    def targets(self, name: str | Sequence[str]) -> tuple[str, ...]:
        """Return the perturbed genes.

        Parameters
        ----------
        name
            A name, or genes in any order.

        Returns
        -------
        The sorted genes; none for control cells.
        """
        if isinstance(name, Real):
            name = canonical(name)
        if isinstance(name, str) and name.strip() == self.control:
            return ()  # before splitting: the name of the control may contain the separator
        parts = name.split(self.separator) if isinstance(name, str) else map(str, name)
        genes = [part.strip() for part in parts]
        if "" in genes or not genes:
            raise ValueError(
                f"The perturbation {name!r} has an empty gene name. Genes of a combination are "
                f"separated by {self.separator!r}, as in 'KLF1{self.separator}BAK1'; choose "
                "another separator with `separator=`."
            )
        genes = sorted(gene for gene in genes if gene != self.control)
        if twice := {gene for gene in genes if genes.count(gene) > 1}:
            raise ValueError(f"The perturbation {name!r} names {sorted(twice)} twice.")
        return tuple(genes)

    def name(self, targets: Iterable[str]) -> str:
        """Return the name of a perturbation.

        Parameters
        ----------
        targets
            The perturbed genes.

        Returns
        -------
        The sorted genes joined by the separator; without genes, the control.
        """
        return self.separator.join(sorted(targets)) or self.control


def parse_perturbations(
    names: PerturbationNames, perturbations: Perturbation | Sequence[Perturbation]
) -> list[tuple[str, ...]]:
    """Return the genes of perturbations to predict; each must be named once."""
    if isinstance(perturbations, str | tuple | Real):
        perturbations = [perturbations]
    targets = [names.targets(name) for name in perturbations]
    if not targets:
        raise ValueError("perturbations is empty: name at least one.")
    if twice := [names.name(t) for t in targets if targets.count(t) > 1]:
        raise ValueError(f"perturbations names {preview(set(twice))} more than once.")
    if () in targets:
        raise ValueError(
            f"perturbations has {names.control!r}, which is the control and has no effect: leave "
            "it out."
        )
    return targets


def choose_populations(
    known: Sequence[str], population: str | Sequence[str] | None
) -> tuple[list[str], np.ndarray]:
    """Return populations of the training, by default all, and their numbers."""
    known = asked = list(known)
    if population is not None:
        asked = [str(name) for name in np.atleast_1d(np.asarray(population, dtype=object))]
    if missing := [name for name in asked if name not in known]:
        raise ValueError(
            f"population={preview(missing)} is not one of the training, {preview(known)}. "
            "For other cells pass their control cells as `adata`."
        )
    if len(set(asked)) < len(asked) or not asked:
        raise ValueError(f"population={asked} must name at least one, each once.")
    return asked, np.array([known.index(name) for name in asked])


class PerturbationField(CategoryField):
    """A column of ``adata.obs`` with the perturbation of every cell."""

    of_unknown = "their effects are neither learned from nor needed"

    def __init__(self, obs_key: str, names: PerturbationNames) -> None:
        super().__init__("perturbation", obs_key)
        self.names = names

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Read all names; there must be control cells and perturbed cells."""
        group_cells(adata, self.names, self.obs_key, None)
        # A separator that is part of gene names, such as HLA-A, would split them.
        named = set(as_text(adata.obs[self.obs_key]).unique()) & set(adata.var_names)
        if split := sorted(name for name in named if self.names.separator in name):
            raise ValueError(
                f"separator={self.names.separator!r} is a part of the gene {split[0]!r}, which "
                f"adata.obs[{self.obs_key!r}] has as a perturbation. Choose another separator, "
                "and name combinations with it."
            )
        return super().register_field(adata)


class LibrarySizeField(CategoryField):
    """A column of ``adata.obs`` with the total counts of the cells; nothing is learned from it."""

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Check that the column holds positive numbers."""
        library_sizes(adata, self.obs_key)
        return {}

    def transfer_field(
        self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Check the column of other data if they have it; embedding does not need it."""
        return self.register_field(adata_target) if self.obs_key in adata_target.obs else {}

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Return nothing."""
        return {}


def library_sizes(adata: AnnData, key: str | None) -> np.ndarray | None:
    """Return the total counts of cells from ``adata.obs[key]``, float64; none without a key."""
    if key is None:
        return None
    column = get_column(adata.obs, "adata.obs", key)
    values = pd.to_numeric(column, errors="coerce").to_numpy(float)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise ValueError(
            f"adata.obs[{key!r}] must hold the total counts of every cell, positive numbers, but "
            f"holds {column.iloc[bad[0]]!r} for {len(bad):,} cells, for instance "
            f"{adata.obs_names[bad[0]]!r}."
        )
    return values


class CellGroups(NamedTuple):
    """Groups of perturbed cells; codes are the group (or control population) of a cell, or -1."""

    groups: list[Group]
    codes: np.ndarray
    control_codes: np.ndarray
    populations: list[str]

    @property
    def targets(self) -> list[str]:
        """The perturbed genes, sorted."""
        return sorted({target for _, targets in self.groups for target in targets})


def group_cells(
    adata: AnnData, names: PerturbationNames, key: str | None, population_key: str | None
) -> CellGroups:
    """Group cells by perturbation and population; every population needs control cells."""
    label, labels = pd.factorize(complete_column(adata, key))
    targets = [names.targets(name) for name in labels]
    population, populations = population_codes(adata, population_key)
    conditions = sorted(set(targets))
    condition = np.array([conditions.index(genes) for genes in targets])[label]
    is_control = np.array([not genes for genes in targets])[label]
    if is_control.all():
        raise ValueError(f"adata.obs[{key!r}] has control cells only.")
    control_codes = np.where(is_control, population, -1)
    without = sorted(set(range(len(populations))) - set(control_codes.tolist()))
    if without and population_key is None:
        raise ValueError(
            f"adata.obs[{key!r}] has no control cells {names.control!r}; it has "
            f"{preview(labels)}. Name them with `control=`."
        )
    if without:
        raise ValueError(
            f"The populations {preview([populations[i] for i in without])} of "
            f"adata.obs[{population_key!r}] have no control cells {names.control!r} to compare "
            "perturbed cells with. Leave these cells out, or name the control with `control=`."
        )
    pair = population * len(conditions) + condition
    codes = np.full(adata.n_obs, -1)
    distinct, codes[~is_control] = np.unique(pair[~is_control], return_inverse=True)
    places = np.divmod(distinct, len(conditions))
    groups = [(int(p), conditions[c]) for p, c in zip(*places, strict=True)]
    return CellGroups(groups, codes, control_codes, populations)


def complete_column(adata: AnnData, key: str | None) -> pd.Series:
    """Return a column of ``adata.obs`` as text; raise if it has missing values."""
    CategoryField("perturbation", key).validate_field(adata)
    return as_text(adata.obs[key])


def population_codes(adata: AnnData, key: str | None) -> tuple[np.ndarray, list[str]]:
    """Return the population of every cell and the names; without a key all are one population."""
    if key is None:
        return np.zeros(adata.n_obs, dtype=np.int64), ["all"]
    codes, names = pd.factorize(complete_column(adata, key), sort=True)
    return codes.astype(np.int64), [str(name) for name in names]


class GroupMoments(NamedTuple):
    """Mean, variance within groups and fraction of expressing cells, ``(n_groups, n_genes)``."""

    n_cells: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    expressing: np.ndarray


def group_moments(
    chunks: Iterable[sparse.csr_matrix],
    codes: np.ndarray,
    n_groups: int,
    totals: np.ndarray | None = None,
    columns: np.ndarray | None = None,
) -> GroupMoments:
    """Return moments of log-normalised counts, NaN where a column is -1, of groups from 0 on."""
    sums: np.ndarray = np.zeros((3, n_groups, 0))
    start = 0
    for chunk in chunks:
        rows = slice(start, start := start + chunk.shape[0])
        logged = log_normalized(chunk, None if totals is None else totals[rows])
        if columns is not None:
            logged = logged[:, columns]
        if not rows.start:
            sums = np.zeros((3, n_groups, logged.shape[1]))
        squares, ones = logged.copy(), logged.copy()
        squares.data, ones.data = np.square(logged.data), np.ones_like(logged.data)
        members = np.flatnonzero(codes[rows] >= 0)
        present, place = np.unique(codes[rows][members], return_inverse=True)
        of_group = sparse.csr_matrix(
            (np.ones(len(members)), (place, members)), shape=(len(present), chunk.shape[0])
        )
        for total, values in zip(sums, (logged, squares, ones), strict=True):
            total[present] += (of_group @ values).toarray()
    if columns is not None:
        sums[:, :, columns < 0] = np.nan
    n_cells = np.bincount(codes[codes >= 0], minlength=n_groups)
    mean, mean_square, expressing = sums / np.maximum(n_cells, 1)[:, None]
    variance = np.maximum(mean_square - mean**2, 0)
    variance *= (n_cells / np.maximum(n_cells - 1, 1))[:, None]
    return GroupMoments(n_cells, mean, variance, expressing)


def pooled_sd(*groups: GroupMoments) -> np.ndarray:
    """Return the standard deviation of genes within groups of cells, shape ``(n_genes,)``."""
    degrees = [moments.n_cells - 1 for moments in groups]
    within = sum(d @ moments.variance for d, moments in zip(degrees, groups, strict=True))
    return np.sqrt(within / max(sum(d.sum() for d in degrees), 1) + MIN_SD**2)


class CellCounts(NamedTuple):
    """Counts of cells, with genes as positions in a vocabulary."""

    reader: RowReader
    columns: np.ndarray  # column of every gene, -1 if the data lack it
    totals: np.ndarray | None  # of the cells, if they are not the sums of the rows

    def moments(self, codes: np.ndarray, genes: np.ndarray) -> GroupMoments:
        """Return moments of log-normalised expression of groups; the code -1 is none of them."""
        chunks, n_groups = self.reader.chunks(), int(codes.max()) + 1
        return group_moments(chunks, codes, n_groups, self.totals, self.columns[genes])

    def expression(self, rows: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return log-normalised expression of some cells; 0 for genes that the data lack."""
        columns = self.columns[genes]
        totals = None if self.totals is None else self.totals[rows]
        logged = log_normalized(self.reader.read(rows), totals)
        return np.where(columns >= 0, logged[:, columns].toarray(), 0.0)
