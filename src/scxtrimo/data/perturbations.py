"""Which genes were perturbed in which cells, and the mean expression of such groups of cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scvi.data import _constants
from scvi.data.fields import BaseAnnDataField

from .fields import UNKNOWN_CATEGORY, CategoryField, get_column
from .vocabulary import preview

PERTURBATION = "perturbation"
POPULATION = "population"
LIBRARY_SIZE = "library_size"
SCALE = 1e4


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
    >>> names = PerturbationNames("control", "+")
    >>> names.targets("KLF1+BAK1"), names.targets("control")
    (('BAK1', 'KLF1'), ())
    """

    control: str = "control"
    separator: str = "+"

    def targets(self, name: str | Sequence[str]) -> tuple[str, ...]:
        """Return the perturbed genes, sorted; the order in which they were named is no matter.

        Parameters
        ----------
        name
            A name, or the genes. The control as a part of a combination, as in
            ``"KLF1+control"``, is no gene.

        Raises
        ------
        ValueError
            If a name is empty or a gene is named twice.
        """
        parts = str(name).split(self.separator) if isinstance(name, str) else map(str, name)
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
        self.validate_field(adata)
        found = sorted(adata.obs[self.obs_key].astype(str).unique())
        targets = [self.names.targets(name) for name in found]
        if () not in targets:
            raise ValueError(
                f"adata.obs[{self.obs_key!r}] has no control cells {self.names.control!r}; it has "
                f"{preview(found)}. Name them with `control=`."
            )
        if not any(targets):
            raise ValueError(f"adata.obs[{self.obs_key!r}] has control cells only.")
        return self._encode(adata, np.array(found))

    def _encode(self, adata: AnnData, mapping: np.ndarray) -> dict[str, Any]:
        codes = np.full(adata.n_obs, UNKNOWN_CATEGORY)
        if self.obs_key in adata.obs:  # names may be numbers
            codes = pd.Index(mapping).get_indexer(pd.Index(adata.obs[self.obs_key].astype(str)))
        return {
            self.MAPPING_KEY: mapping,
            self.ORIGINAL_KEY: self.obs_key,
            self.CODES_KEY: codes.astype(np.int64),
        }

    def _unknown_get(self) -> str:
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
    values = pd.to_numeric(get_column(adata.obs, "obs", key), errors="coerce").to_numpy(float)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise ValueError(
            f"adata.obs[{key!r}] must hold the total counts of every cell, positive numbers, but "
            f"holds {adata.obs[key].iloc[bad[0]]!r} for {len(bad):,} cells, for instance "
            f"{adata.obs_names[bad[0]]!r}."
        )
    return values


class GroupMoments(NamedTuple):
    """Log-normalised expression of groups of cells.

    Parameters
    ----------
    n_cells
        Cells of every group, int64, shape ``(n_groups,)``.
    mean
        float64, shape ``(n_groups, n_genes)``.
    variance
        Variance within groups, float64, shape ``(n_groups, n_genes)``.
    expressing
        Fraction of the cells that express a gene, float64, shape ``(n_groups, n_genes)``.
    """

    n_cells: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    expressing: np.ndarray


def group_moments(
    chunks: Iterable[sparse.csr_matrix],
    codes: np.ndarray,
    n_groups: int,
    totals: np.ndarray | None = None,
) -> GroupMoments:
    """Return means and variances of ``log1p`` of counts per 10,000, group by group.

    Parameters
    ----------
    chunks
        Counts of all cells in their order, a part of them at a time.
    codes
        Group of every cell, int64, shape ``(n_cells,)``; -1 for none.
    n_groups
        Number of groups.
    totals
        Total counts of the cells, shape ``(n_cells,)``; by default the sums of the rows.
    """
    sums: list[Any] = [0.0, 0.0, 0.0]
    start = 0
    for chunk in chunks:
        rows = slice(start, start := start + chunk.shape[0])
        logged = log_normalized(chunk, None if totals is None else totals[rows])
        squares, ones = logged.copy(), logged.copy()
        squares.data, ones.data = np.square(logged.data), np.ones_like(logged.data)
        members = np.flatnonzero(codes[rows] >= 0)
        of_group = sparse.csr_matrix(
            (np.ones(len(members)), (codes[rows][members], members)),
            shape=(n_groups, chunk.shape[0]),
        )
        for i, values in enumerate((logged, squares, ones)):
            sums[i] = sums[i] + (of_group @ values).toarray()
    n_cells = np.bincount(codes[codes >= 0], minlength=n_groups)
    mean, mean_square, expressing = (total / np.maximum(n_cells, 1)[:, None] for total in sums)
    variance = np.maximum(mean_square - mean**2, 0)
    variance *= (n_cells / np.maximum(n_cells - 1, 1))[:, None]
    return GroupMoments(n_cells, mean, variance, expressing)


def log_normalized(
    counts: sparse.csr_matrix, totals: np.ndarray | None = None
) -> sparse.csr_matrix:
    """Return ``log1p`` of counts per 10,000, float64.

    Parameters
    ----------
    counts
        Raw counts, shape ``(n_cells, n_genes)``.
    totals
        Total counts of the cells, shape ``(n_cells,)``; by default the sums of the rows.
    """
    if totals is None:
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    logged = sparse.csr_matrix(
        sparse.diags_array(SCALE / np.maximum(totals, 1e-9)) @ counts.astype(np.float64)
    )
    logged.data = np.log1p(logged.data)
    return logged
