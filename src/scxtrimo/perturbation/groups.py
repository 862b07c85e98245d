"""Which genes were perturbed in which cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.data import _constants
from scvi.data.fields import BaseAnnDataField

from ..data.columns import as_text, canonical, get_column
from ..data.fields import CategoryField
from ..data.vocabulary import preview

PERTURBATION = "perturbation"
POPULATION = "population"
LIBRARY_SIZE = "library_size"
ALL_CELLS = "all"
Group = tuple[int, tuple[str, ...]]
"""Number of a population, and the perturbed genes."""


@dataclass(frozen=True)
class PerturbationNames:
    """How the names of perturbations are read.

    Parameters
    ----------
    control
        Name of unperturbed cells.
    separator
        What stands between the genes of a combination.

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

        Their order does not matter.

        Parameters
        ----------
        name
            A name, or the genes. The control as a part of a combination, as in
            ``"KLF1+control"``, is no gene.

        Returns
        -------
        The genes, sorted; none for control cells.

        Raises
        ------
        ValueError
            If a name is empty or a gene is named twice.
        """
        if isinstance(name, Real):
            name = canonical(name)
        if isinstance(name, str) and name.strip() == self.control:
            return ()  # before splitting: the name of the control may hold the separator
        parts = name.split(self.separator) if isinstance(name, str) else map(str, name)
        genes = [part.strip() for part in parts]
        if "" in genes or not genes:
            raise ValueError(
                f"The perturbation {name!r} has an empty gene name. Genes of a combination are "
                f"separated by {self.separator!r}, as in 'KLF1{self.separator}BAK1'; choose "
                "another with `separator=`."
            )
        genes = sorted(gene for gene in genes if gene != self.control)
        if twice := {gene for gene in genes if genes.count(gene) > 1}:
            raise ValueError(f"The perturbation {name!r} names {sorted(twice)} twice.")
        return tuple(genes)

    def name(self, targets: Iterable[str]) -> str:
        """Return the name of a perturbation of these genes.

        Parameters
        ----------
        targets
            Perturbed genes; none for control cells.

        Returns
        -------
        The genes, sorted, with the separator between them; that of the control if there are none.
        """
        return self.separator.join(sorted(targets)) or self.control


class PerturbationField(CategoryField):
    """A column of ``adata.obs`` with the perturbation of every cell.

    Parameters
    ----------
    obs_key
        Column of ``adata.obs``.
    names
        How its values are read.
    """

    def __init__(self, obs_key: str, names: PerturbationNames) -> None:
        super().__init__(PERTURBATION, obs_key)
        self.names = names

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Read all names; there must be control cells and perturbed ones."""
        assert self.obs_key is not None
        group_cells(adata, self.names, self.obs_key, None)
        self._check_separator(adata)
        return super().register_field(adata)

    def _check_separator(self, adata: AnnData) -> None:
        """Refuse to split names of genes, such as HLA-A."""
        named = set(as_text(adata.obs[self.obs_key]).unique()) & set(adata.var_names)
        if split := sorted(name for name in named if self.names.separator in name):
            raise ValueError(
                f"separator={self.names.separator!r} is a part of the gene {split[0]!r}, which "
                f"adata.obs[{self.obs_key!r}] has as a perturbation. Choose another separator, "
                "and name combinations with it."
            )

    def _consequence(self) -> str:
        return "their effects are neither learned from nor needed."


class LibrarySizeField(BaseAnnDataField):
    """A column of ``adata.obs`` with the total counts of the cells, of all genes.

    Parameters
    ----------
    obs_key
        Column of ``adata.obs``.
    """

    registry_key = LIBRARY_SIZE
    attr_name = _constants._ADATA_ATTRS.OBS
    is_empty = False

    def __init__(self, obs_key: str) -> None:
        super().__init__()
        self.obs_key = obs_key

    @property
    def attr_key(self) -> str:
        """Column of ``adata.obs``."""
        return self.obs_key

    def sources(self, adata: AnnData, state: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the column."""
        return [("obs", self.obs_key)]

    def validate_field(self, adata: AnnData) -> None:
        """Make sure that the column holds positive numbers."""
        library_sizes(adata, self.obs_key)

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Check the column."""
        self.validate_field(adata)
        return {}

    def transfer_field(
        self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Check the column of other data, if they have it; embedding does without."""
        return self.register_field(adata_target) if self.obs_key in adata_target.obs else {}

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Nothing to count."""
        return {}

    def view_state_registry(self, state_registry: dict[str, Any]) -> None:
        """Nothing to show."""


def library_sizes(adata: AnnData, key: str) -> np.ndarray:
    """Return the total counts of the cells from a column of ``adata.obs``.

    Parameters
    ----------
    adata
        The data.
    key
        Name of the column.

    Returns
    -------
    float64, shape ``(n_cells,)``.

    Raises
    ------
    ValueError
        If there is no such column, or a value is not a positive number.
    """
    values = pd.to_numeric(get_column(adata.obs, "adata.obs", key), errors="coerce").to_numpy(
        float
    )
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise ValueError(
            f"adata.obs[{key!r}] must hold the total counts of every cell, positive numbers, but "
            f"holds {adata.obs[key].iloc[bad[0]]!r} for {len(bad):,} cells, for instance "
            f"{adata.obs_names[bad[0]]!r}."
        )
    return values


class CellGroups(NamedTuple):
    """Cells with the same perturbation and population.

    Parameters
    ----------
    groups
        Population and perturbed genes of every group of perturbed cells.
    codes
        Group of every cell, -1 for control cells, int64, shape ``(n_cells,)``.
    control_codes
        Population of every control cell, -1 for perturbed ones, of the same shape.
    populations
        Names of the populations.
    """

    groups: list[Group]
    codes: np.ndarray
    control_codes: np.ndarray
    populations: list[str]


def group_cells(
    adata: AnnData, names: PerturbationNames, perturbation_key: str, population_key: str | None
) -> CellGroups:
    """Sort cells by what was done to them.

    Parameters
    ----------
    adata
        Control and perturbed cells.
    names
        How the names of perturbations are read.
    perturbation_key, population_key
        Columns of ``adata.obs``.

    Raises
    ------
    ValueError
        If a column is missing or has missing values, there are only control cells, or a
        population has none.
    """
    labels = complete_column(adata, perturbation_key)
    targets = {label: names.targets(label) for label in labels.unique()}
    population, populations = population_codes(adata, population_key)
    conditions = sorted(set(targets.values()))
    condition = labels.map({label: conditions.index(t) for label, t in targets.items()}).to_numpy()
    is_control = np.array([not conditions[c] for c in condition])
    if is_control.all():
        raise ValueError(f"adata.obs[{perturbation_key!r}] has control cells only.")
    control_codes = np.where(is_control, population, -1)
    without = sorted(set(range(len(populations))) - set(control_codes.tolist()))
    if without and population_key is None:
        raise ValueError(
            f"adata.obs[{perturbation_key!r}] has no control cells {names.control!r}; it has "
            f"{preview(targets)}. Name them with `control=`."
        )
    if without:
        raise ValueError(
            f"The populations {preview([populations[i] for i in without])} of "
            f"adata.obs[{population_key!r}] have no control cells {names.control!r}: effects need "
            "something to be compared with. Leave these cells out, or name the control with "
            "`control=`."
        )
    pairs = list(zip(population.tolist(), condition.tolist(), strict=True))
    distinct = sorted({pair for pair in pairs if conditions[pair[1]]})
    place = {pair: i for i, pair in enumerate(distinct)}
    codes = np.array([place.get(pair, -1) for pair in pairs])
    groups = [(population, conditions[condition]) for population, condition in distinct]
    return CellGroups(groups, codes, control_codes, populations)


def complete_column(adata: AnnData, key: str) -> pd.Series:
    """Return a column of ``adata.obs`` as text; missing values are refused."""
    CategoryField(PERTURBATION, key).validate_field(adata)
    return as_text(adata.obs[key])


def population_codes(adata: AnnData, key: str | None) -> tuple[np.ndarray, list[str]]:
    """Return the population of every cell, and the names of the populations.

    Parameters
    ----------
    adata
        The cells.
    key
        Column of ``adata.obs``; without one all cells are one population.
    """
    if key is None:
        return np.zeros(adata.n_obs, dtype=np.int64), [ALL_CELLS]
    codes, names = pd.factorize(complete_column(adata, key), sort=True)
    return codes.astype(np.int64), [str(name) for name in names]
