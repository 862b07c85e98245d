"""Rows of count matrices in any format, and checks that they hold raw counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from .columns import preview

CHUNK = 1024


class RowReader:
    """Rows of a cells x genes matrix as CSR, in any order, from memory or a file."""

    def __init__(self, matrix: Any) -> None:
        if isinstance(matrix, CSCDataset):
            matrix = matrix.to_memory()
        if sparse.issparse(matrix) and matrix.format != "csr":
            if matrix.format == "coo":
                matrix = _summable(matrix)  # `tocsr` adds up repeated entries
            matrix = matrix.tocsr()
        is_array = isinstance(matrix, np.ndarray | h5py.Dataset | zarr.Array | CSRDataset)
        is_masked = isinstance(matrix, np.ma.MaskedArray)
        if is_masked or not (is_array or sparse.issparse(matrix)):
            raise TypeError(
                f"Counts are of type {type(matrix).__name__}, which is not supported. Use a scipy "
                "sparse matrix, a NumPy array or a backed AnnData (for instance "
                "`adata.X = adata.X.compute()` for dask)."
            )
        self.matrix = matrix
        self.shape: tuple[int, int] = tuple(matrix.shape)
        self.on_disk = isinstance(matrix, h5py.Dataset | zarr.Array | CSRDataset)

    def read(self, rows: np.ndarray | slice) -> sparse.csr_matrix:
        """Return the given rows, in the given order."""
        if sparse.issparse(self.matrix):
            parts = rows_of(self.matrix, rows)
            shape = len(parts[2]) - 1, self.shape[1]
            return _canonical(_as_csr(sparse.csr_matrix(parts, shape=shape)))
        if isinstance(rows, slice) or not self.on_disk:
            return _canonical(_as_csr(self.matrix[rows]))
        # HDF5 needs increasing, distinct rows; a contiguous run is a single read.
        wanted, position = np.unique(rows, return_inverse=True)
        is_run = wanted[-1] - wanted[0] + 1 == len(wanted)
        chunk = _as_csr(self.matrix[slice(wanted[0], wanted[-1] + 1) if is_run else wanted])
        in_order = np.array_equal(position, np.arange(len(rows)))
        return _canonical(chunk if in_order else chunk[position])

    def n_stored(self) -> np.ndarray:
        """Return the number of stored entries of every row (n_cells,), explicit zeros included."""
        if sparse.issparse(self.matrix):
            return np.diff(self.matrix.indptr).astype(np.int64)
        if hasattr(self.matrix, "group"):  # a CSRDataset
            return np.diff(self.matrix.group["indptr"][:]).astype(np.int64)
        return np.concatenate([np.diff(chunk.indptr) for chunk in self.chunks()]).astype(np.int64)

    def chunks(self) -> Iterator[sparse.csr_matrix]:
        """Iterate over all rows, ``CHUNK`` at a time."""
        for start in range(0, self.shape[0], CHUNK):
            yield self.read(slice(start, start + CHUNK))


def rows_of(
    matrix: sparse.csr_matrix, rows: np.ndarray | slice
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return data, indices and boundaries of some rows; views of the matrix for a run of them.

    scipy takes three times as long; and it copies the whole matrix every time if the boundaries
    are of another type than the indices, as they often are in large files.
    """
    ends = matrix.indptr
    if isinstance(rows, slice):
        start, stop, step = rows.indices(matrix.shape[0])
        if step == 1:
            ends = ends[start : max(start, stop) + 1]
            place = slice(ends[0], ends[-1])
            return matrix.data[place], matrix.indices[place], ends - ends[0]
    starts, stops = ends[:-1][rows], ends[1:][rows]
    boundaries = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(stops - starts, out=boundaries[1:])
    parts = [slice(*part) for part in zip(starts.tolist(), stops.tolist(), strict=True)]
    if not parts:
        return matrix.data[:0], matrix.indices[:0], boundaries
    data, indices = (
        np.concatenate([of_all[part] for part in parts])
        for of_all in (matrix.data, matrix.indices)
    )
    return data, indices, boundaries


def _as_csr(rows: Any) -> sparse.csr_matrix:
    if rows.dtype.kind not in "buif":
        raise ValueError(
            f"Counts are of dtype {rows.dtype}, which cannot be used as counts. Convert them: "
            "`adata.X = adata.X.astype(np.float32)`."
        )
    # scipy supports neither half precision nor foreign byte order in sparse matrices.
    native = np.float32 if rows.dtype == np.float16 else rows.dtype.newbyteorder("=")
    return sparse.csr_matrix(rows.astype(native, copy=False))


def _canonical(chunk: sparse.csr_matrix) -> sparse.csr_matrix:
    """Add up repeated entries, so that a gene does not become two tokens."""
    if not chunk.has_canonical_format:
        chunk = _summable(chunk.copy())  # it may share memory with the user's matrix
        chunk.sum_duplicates()
    return chunk


def _summable(matrix: Any) -> Any:
    """Return a matrix whose type can hold the sums of its entries."""
    return matrix.astype(np.int64) if matrix.dtype.kind in "bui" else matrix


def get_layer(adata: AnnData, layer: str | None) -> Any:
    """Return ``adata.X`` or ``adata.layers[layer]``."""
    if layer is None:
        if adata.X is None:
            raise ValueError("adata.X is empty (None). Name the layer with counts: `layer=...`.")
        return adata.X
    if layer not in adata.layers:
        raise ValueError(
            f"Layer {layer!r} is not in adata.layers, which has {_layer_names(adata)}. Name one "
            "of these with `layer=...`, or pass `layer=None` to use adata.X."
        )
    return adata.layers[layer]


def _layer_names(adata: AnnData) -> list[str]:
    return [key for key in adata.layers.keys() if key is not None]  # noqa: SIM118 (None is X)


def check_counts(adata: AnnData, layer: str | None, used: np.ndarray | None = None) -> np.ndarray:
    """Refuse counts that are not raw and cells without any (in columns ``used``); return sums."""
    field = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(
            f"The AnnData is empty: {adata.n_obs} cells x {adata.n_vars} genes. Check how it was "
            "filtered."
        )
    reader = RowReader(get_layer(adata, layer))
    totals = np.zeros(adata.n_vars)
    empty_cells: list[np.ndarray] = []
    for i, chunk in enumerate(reader.chunks()):
        if (problem := problem_with(chunk.data)) is not None:
            raise ValueError(f"{field} {problem}{_where_raw_counts_may_be(adata, layer)}")
        totals += np.asarray(chunk.sum(axis=0, dtype=np.float64)).ravel()
        expressed = chunk > 0 if used is None else chunk[:, used] > 0
        empty_cells.append(np.flatnonzero(expressed.sum(axis=1) == 0) + i * CHUNK)
    if totals.sum() == 0:
        raise ValueError(f"{field} holds no counts: all values are 0. Choose another `layer`.")
    if len(empty := np.concatenate(empty_cells)):
        of_what = "" if used is None else " of genes that the model knows"
        raise ValueError(
            f"{len(empty):,} of {adata.n_obs:,} cells have no counts{of_what} in {field}, for "
            f"instance {preview(adata.obs_names[empty[:6]])}. Remove them first, for example with "
            "`sc.pp.filter_cells(adata, min_genes=1)`."
        )
    return totals


def looks_raw(values: np.ndarray) -> bool:
    """Return whether all values are finite, non-negative integers."""
    return problem_with(values) is None


def problem_with(values: np.ndarray) -> str | None:
    """Say why values are not raw counts, with an example; ``None`` if they could be."""
    if values.dtype.kind in "ub":
        return None
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = values[~np.isfinite(values)]
        return f"contains {len(bad):,} NaN or infinite values (first: {bad[0]}); remove them."
    if (values < 0).any():
        return f"contains negative values (lowest: {values.min():g}); raw counts are needed."
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        bad = values[values != np.rint(values)]
        return f"contains non-integer values (first: {bad[0]:g}); raw counts are needed."
    return None


def _where_raw_counts_may_be(adata: AnnData, layer: str | None) -> str:
    """Name the first other matrix of the AnnData that could hold raw counts."""
    names = [name for name in _layer_names(adata) if name != layer]
    others = {f"`layer={name!r}`": adata.layers[name] for name in names}
    if layer is not None and adata.X is not None:
        others["adata.X (leave `layer` out)"] = adata.X
    if adata.raw is not None:
        copy = '`adata.layers["counts"] = adata.raw[:, adata.var_names].X`, then `layer="counts"`'
        others[f"adata.raw ({copy})"] = adata.raw.X
    for name, matrix in others.items():
        try:
            head = RowReader(matrix).read(slice(0, 256)).data
        except (TypeError, ValueError):  # not a usable matrix either
            continue
        if len(head) and looks_raw(head):
            return f" {name} looks raw."
    return (
        " If X was normalised, keep a copy of the raw counts before: "
        '`adata.layers["counts"] = adata.X.copy()`.'
    )


def log_normalized(
    counts: sparse.csr_matrix, totals: np.ndarray | None = None
) -> sparse.csr_matrix:
    """Return ``log1p`` of counts per 10,000; totals default to the row sums, in float64."""
    if totals is None:
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    logged = sparse.csr_matrix(sparse.diags_array(1e4 / np.maximum(totals, 1e-9)) @ counts)
    logged.data = np.log1p(logged.data)
    return logged


def as_rows(indices: Sequence[Any] | np.ndarray | None, n_cells: int) -> np.ndarray:
    """Return row numbers, given row numbers or a boolean mask; all rows for ``None``."""
    if indices is None:
        return np.arange(n_cells)
    rows = np.asarray(indices).ravel()
    if rows.dtype == object and pd.api.types.infer_dtype(rows, skipna=False) == "boolean":
        rows = rows.astype(bool)
    if rows.dtype == bool:
        if len(rows) != n_cells:
            raise ValueError(f"indices is a mask of {len(rows)} cells, the data have {n_cells}.")
        rows = np.flatnonzero(rows)
    if len(rows) == 0:
        raise ValueError("indices is empty: name at least one cell.")
    if rows.dtype.kind not in "iu":
        raise ValueError(
            f"indices must be row numbers or a boolean mask, got {rows[0]!r}. For names of cells: "
            "`adata.obs_names.get_indexer(names)`."
        )
    if rows.min() < 0 or rows.max() >= n_cells:
        raise ValueError(
            f"indices must lie between 0 and {n_cells - 1}, got {rows.min()} to {rows.max()}."
        )
    return rows
