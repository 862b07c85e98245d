"""From registered AnnData to ragged batches."""

from __future__ import annotations

import copy
import os
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import joblib
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from torch.utils.data import DataLoader, Dataset, Subset

from .counts import RowReader, as_rows, get_layer, looks_raw, rows_of
from .fields import CategoryField, CountsField
from .vocabulary import COVERAGE_KEY

T = TypeVar("T")
END: Any = object()
MAX_PRELOADED_BYTES = 2**28  # of large data a training reads few cells twice
WORTH_SHARING = 128  # width of a network from which work is worth dividing among threads

CATEGORICAL_PREFIX = "covariate_"
"""Registry keys of categorical covariates other than the batch start with this."""


def state_of(adata_manager: AnnDataManager, registry_key: str) -> dict[str, Any]:
    """Return what a field keeps in the registry.

    scvi-tools' own method copies it, which for a vocabulary takes a tenth of a second.
    """
    return adata_manager.registry["field_registries"][registry_key]["state_registry"]


class RaggedDataset(Dataset):
    """Cells of a registered AnnData, indexed in batches.

    Parameters
    ----------
    adata_manager, preload
        Manager with a registered AnnData; whether to convert counts (up to 256 MiB) once.

    Examples
    --------
    >>> cells = scxtrimo.data.RaggedDataset(model.adata_manager)  # of nn.RaggedBatch, as arrays
    >>> cells[[3, 5]]["library_size"].shape, cells.n_tokens().shape, cells.library_sizes().shape
    ((2,), (700,), (700,))
    """

    def __init__(self, adata_manager: AnnDataManager, preload: bool = False) -> None:
        self.reader = RowReader(adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY))
        state = state_of(adata_manager, REGISTRY_KEYS.X_KEY)
        self.column_to_gene = np.asarray(state[CountsField.COLUMN_TO_GENE_KEY])
        codes = [
            category_codes(adata_manager, key) for key in covariate_keys(adata_manager.registry)
        ]
        self.categories = np.column_stack([np.empty((len(self), 0), dtype=np.int64), *codes])
        self.labels = None
        if REGISTRY_KEYS.LABELS_KEY in adata_manager.data_registry:
            self.labels = category_codes(adata_manager, REGISTRY_KEYS.LABELS_KEY)
        self.preloaded = self._preload() if preload else None

    def __len__(self) -> int:
        return self.reader.shape[0]

    def _preload(self) -> sparse.csr_matrix | None:
        """Return counts as float32 with the columns of the vocabulary, if they fit in memory."""
        matrix = self.reader.matrix
        if not sparse.issparse(matrix) or 8 * matrix.nnz > MAX_PRELOADED_BYTES:
            return None
        n_tokens, ends, library_size = 0, [np.zeros(1, dtype=np.int64)], []
        counts, gene_ids = np.empty(matrix.nnz, np.float32), np.empty(matrix.nnz, np.int32)
        # By chunk: temporary copies of all counts would take five times the memory.
        for chunk in self.reader.chunks():
            batch = self._ragged(chunk)
            place = slice(n_tokens, n_tokens + len(batch["counts"]))
            counts[place], gene_ids[place] = batch["counts"], batch["gene_ids"]
            ends.append(n_tokens + batch["cu_seqlens"][1:].astype(np.int64))
            library_size.append(batch["library_size"])
            n_tokens = place.stop
        self.library_size = np.concatenate(library_size)
        return sparse.csr_matrix(
            (counts[:n_tokens], gene_ids[:n_tokens], np.concatenate(ends)),
            shape=(len(self), int(self.column_to_gene.max()) + 1),
        )

    def _ragged(self, counts: sparse.csr_matrix) -> dict[str, np.ndarray]:
        batch = to_ragged(counts, self.column_to_gene)
        if not looks_raw(counts.data):
            raise ValueError(
                "The counts changed after `setup_anndata` and are no longer raw counts, for "
                "instance by `sc.pp.log1p(adata)`. Keep raw counts in a layer: "
                '`adata.layers["counts"] = adata.X.copy()`, then `layer="counts"`.'
            )
        if n_empty := int((batch["library_size"] == 0).sum()):
            raise ValueError(
                f"The counts changed after `setup_anndata`: {n_empty:,} cells no longer have "
                "counts in any gene of the model. Remove these cells."
            )
        return batch

    def __getitem__(self, index: int | Sequence[int] | slice) -> dict[str, np.ndarray]:
        if isinstance(index, slice):
            index = range(*index.indices(len(self)))
        rows = np.atleast_1d(np.asarray(index, dtype=np.int64))
        if self.preloaded is None:
            batch = self._ragged(self.reader.read(rows))
        else:
            batch = gather_rows(self.preloaded, rows)
            batch["library_size"] = self.library_size[rows]
        batch["categories"] = self.categories[rows]
        if self.labels is not None:
            batch["labels"] = self.labels[rows]
        batch["cell_ids"] = rows
        return batch

    __getitems__ = __getitem__

    def n_tokens(self) -> np.ndarray:
        """Count the expressed genes of all cells.

        Returns
        -------
        int64, ``(n_cells,)``; zeros that are stored count as well unless counts are preloaded.
        """
        if self.preloaded is not None:
            return np.diff(self.preloaded.indptr).astype(np.int64)
        return self.reader.n_stored()

    def library_sizes(self) -> np.ndarray:
        """Add up the counts of all cells.

        Returns
        -------
        float32, ``(n_cells,)``.
        """
        return np.concatenate(
            [to_ragged(c, self.column_to_gene)["library_size"] for c in self.reader.chunks()]
        )


def gather_rows(matrix: sparse.csr_matrix, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return rows of CSR counts without zeros as tokens."""
    counts, gene_ids, boundaries = rows_of(matrix, rows)
    return {
        "counts": counts.astype(np.float32, copy=False),
        "gene_ids": gene_ids.astype(np.int64, copy=False),
        "cu_seqlens": boundaries.astype(np.int32),
    }


def to_ragged(counts: sparse.csr_matrix, column_to_gene: np.ndarray) -> dict[str, np.ndarray]:
    """Turn CSR rows into tokens, without zeros and columns that are not in the vocabulary.

    Parameters
    ----------
    counts, column_to_gene
        Counts, and the position in the vocabulary of every column, -1 for none.

    Returns
    -------
    ``counts``, ``gene_ids``, ``cu_seqlens`` and ``library_size`` of a ragged batch.

    Examples
    --------
    >>> to_ragged(sparse.csr_matrix([[0, 2, 1], [5, 0, 0]]), np.array([7, 3, -1]))["gene_ids"]
    array([3, 7])
    """
    gene_ids = column_to_gene[counts.indices]
    keep = (gene_ids >= 0) & (counts.data > 0)
    values = counts.data[keep].astype(np.float32)
    cu_seqlens = np.concatenate([[0], np.cumsum(keep)])[counts.indptr]
    total_before = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return {
        "counts": values,
        "gene_ids": gene_ids[keep],
        "cu_seqlens": cu_seqlens.astype(np.int32),
        "library_size": np.diff(total_before[cu_seqlens]).astype(np.float32),
    }


def category_codes(adata_manager: AnnDataManager, key: str) -> np.ndarray:
    """Return the codes of a registered categorical column."""
    return np.asarray(state_of(adata_manager, key)[CategoryField.CODES_KEY])


def covariate_keys(registry: dict[str, Any]) -> list[str]:
    """Return the registry keys of the categorical covariates, the batch first."""
    keys = registry["field_registries"].keys()
    return [
        key for key in keys if key == REGISTRY_KEYS.BATCH_KEY or key.startswith(CATEGORICAL_PREFIX)
    ]


class RaggedDataManager(AnnDataManager):
    """An :class:`~scvi.data.AnnDataManager` whose data sets yield ragged batches.

    Examples
    --------
    >>> manager = model.adata_manager.without_data().with_data(adata)
    >>> manager.write_coverage()
    >>> manager.is_current(), len(manager.create_torch_dataset(indices=[3, 5]))
    (True, 2)
    """

    adata: AnnData
    _snapshot: Snapshot

    def register_fields(
        self, adata: AnnData, source_registry: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Register data and keep what the registration depends on.

        Parameters
        ----------
        adata, source_registry, **kwargs
            See :meth:`scvi.data.AnnDataManager.register_fields`.
        """
        super().register_fields(adata, source_registry, **kwargs)
        self._snapshot = Snapshot(self)

    def is_current(self) -> bool:
        """Return whether the data are still as they were registered.

        Returns
        -------
        False if cells, genes, a registered column or the count matrix changed or were replaced.
        """
        return self._snapshot.matches(self)

    def without_data(self) -> Self:
        """Return a copy that does not keep the data alive.

        Returns
        -------
        A manager for :meth:`with_data`.
        """
        manager = self.with_data(None)
        manager._source_registry = None  # a copy of the model's own, codes of its cells included
        return manager

    def with_data(self, adata: Any) -> Self:
        """Return a copy that holds the data it was made with.

        Parameters
        ----------
        adata
            The data.

        Returns
        -------
        The manager.
        """
        manager = copy.copy(self)
        manager.adata = adata
        return manager

    def write_coverage(self) -> None:
        """Write the report on found genes to ``adata.uns``, if data were aligned to a model."""
        state = self.registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]
        report = state.get(CountsField.COVERAGE_KEY)
        if report is not None and self.adata.uns.get(COVERAGE_KEY) is not report:
            self.adata.uns[COVERAGE_KEY] = report

    def create_torch_dataset(
        self,
        indices: Sequence[int] | Sequence[bool] | None = None,
        data_and_attributes: Any = None,
        load_sparse_tensor: bool = False,
    ) -> Dataset:
        """Return registered cells as a dataset of ragged batches.

        Parameters
        ----------
        indices, data_and_attributes, load_sparse_tensor
            Rows of the cells, or a mask, by default all; the others are ignored.

        Returns
        -------
        A :class:`RaggedDataset`, or a subset of one.
        """
        dataset = RaggedDataset(self)
        if indices is None:
            return dataset
        return Subset(dataset, as_rows(indices, len(dataset)).tolist())


class Snapshot:
    """What a registration depends on: names of cells and genes, columns, the count matrix."""

    def __init__(self, manager: RaggedDataManager) -> None:
        self.sources: list[tuple[str, str | None]] = []
        for field in manager.fields:
            self.sources += field.sources(state_of(manager, field.registry_key))
        parts = self._parts(manager.adata).items()
        is_fixed = (pd.Index, type(None))
        self.parts = {key: x if isinstance(x, is_fixed) else x.copy() for key, x in parts}
        matrix = _matrix_in_memory(manager)
        self.matrix = None if matrix is None else weakref.ref(matrix)

    def _parts(self, adata: AnnData) -> dict[tuple[str, ...], Any]:
        """Return names, and the columns that were registered, ``None`` where one is missing."""
        parts: dict[Any, Any] = {("obs_names",): adata.obs_names, ("var_names",): adata.var_names}
        for table, key in self.sources:
            frame = getattr(adata, table)
            parts |= {(table, name): frame.get(name) for name in (frame if key is None else [key])}
        return parts

    def matches(self, manager: RaggedDataManager) -> bool:
        """Return whether the data of a manager are still the same."""
        parts, matrix = self._parts(manager.adata), _matrix_in_memory(manager)
        return (
            self.parts.keys() == parts.keys()
            and all(_same(part, parts[key]) for key, part in self.parts.items())
            and (self.matrix is None or matrix is None or self.matrix() is matrix)
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the matrix, which is another object in a copy."""
        return self.__dict__ | {"matrix": None}


def _matrix_in_memory(manager: RaggedDataManager) -> Any:
    """Return the registered counts, or ``None`` if they are in a file."""
    matrix = get_layer(manager.adata, manager.data_registry[REGISTRY_KEYS.X_KEY]["attr_key"])
    return matrix if sparse.issparse(matrix) or isinstance(matrix, np.ndarray) else None


def _same(one: Any, other: Any) -> bool:
    """Return whether two indices or columns are equal, missing values included."""
    if one is other or one is None or other is None:
        return one is other
    return getattr(one, "dtype", None) == getattr(other, "dtype", None) and one.equals(other)


def prefetch(batches: Iterable[T], n_ahead: int = 2) -> Iterator[T]:
    """Prepare the next batches in a thread while the caller works on this one.

    Parameters
    ----------
    batches, n_ahead
        Source of the batches; how many may be ready and not yet used.

    Yields
    ------
    The batches in their order.

    Examples
    --------
    >>> list(scxtrimo.data.prefetch("abc"))
    ['a', 'b', 'c']
    """
    iterator = iter(batches)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        ready = deque(thread.submit(next, iterator, END) for _ in range(n_ahead))
        while (batch := ready.popleft().result()) is not END:
            ready.append(thread.submit(next, iterator, END))
            yield batch


class PrefetchLoader(DataLoader):
    """A :class:`~torch.utils.data.DataLoader` that prepares batches in a thread.

    Examples
    --------
    >>> rows = [[0, 1, 2, 3], [4, 5]]
    >>> dataset = scxtrimo.data.RaggedDataset(model.adata_manager)
    >>> loader = scxtrimo.data.PrefetchLoader(dataset, sampler=rows, batch_size=None)
    >>> [len(batch["library_size"]) for batch in loader]
    [4, 2]
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return prefetch(super().__iter__())


def threads_for(n_hidden: int) -> int:
    """Return how many threads a network of a width should have.

    ``OMP_NUM_THREADS`` decides if it is set. The operations of a narrow network are so small that
    a second thread saves a fifth of the time; but as threads wait for each other actively, two
    processes with as many threads as there are processors slow each other down twenty times. Wide
    networks have the processors that affinity and control groups leave to this process.
    """
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return int(os.environ["OMP_NUM_THREADS"])
    available = joblib.cpu_count() if n_hidden >= WORTH_SHARING else 1
    return min(torch.get_num_threads(), available)


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """Let torch work with so many threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(max(1, n_threads))
        yield
    finally:
        torch.set_num_threads(before)
