"""Read rows of counts, whatever holds them, and check that counts is what they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import zarr
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from .vocabulary import preview

CHUNK = 1024


class RowReader:
    """Rows of a cells x genes matrix as CSR, in any order, in memory or from a backed file.

    Only the requested rows are ever converted, except that a CSC matrix (which cannot be read by
    row) is converted as a whole.

    Parameters
    ----------
    matrix
        scipy sparse matrix or array, NumPy array, backed anndata matrix, HDF5 data set or
        zarr array, of shape ``(n_cells, n_columns)``.
    """

    def __init__(self, matrix: Any) -> None:
        if isinstance(matrix, CSCDataset):
            matrix = matrix.to_memory()
        if sparse.issparse(matrix) and matrix.format != "csr":
            if matrix.format == "coo":
                matrix = _summable(matrix)  # as it becomes CSR, entries are added up
            matrix = matrix.tocsr()
        is_known = sparse.issparse(matrix) or isinstance(
            matrix, np.ndarray | h5py.Dataset | zarr.Array | CSRDataset
        )
        if not is_known or isinstance(matrix, np.ma.MaskedArray):
            raise TypeError(
                f"Counts are of type {type(matrix).__name__}, which is not supported. Use a scipy "
                "sparse matrix, a NumPy array or a backed AnnData (for instance "
                "`adata.X = adata.X.compute()` for dask)."
            )
        self.matrix = matrix
        self.is_dense = isinstance(matrix, h5py.Dataset | zarr.Array)
        self.on_disk = self.is_dense or isinstance(matrix, CSRDataset)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and columns."""
        return tuple(self.matrix.shape)

    def read(self, rows: np.ndarray | slice) -> sparse.csr_matrix:
        """Return the given rows, in the given order."""
        if isinstance(rows, slice) or not self.on_disk:
            return _canonical(_as_csr(self.matrix[rows]))
        # HDF5 wants increasing, distinct rows; a contiguous run is one read instead of many.
        wanted, position = np.unique(rows, return_inverse=True)
        if wanted[-1] - wanted[0] + 1 == len(wanted):
            chunk = _as_csr(self.matrix[wanted[0] : wanted[-1] + 1])
        else:
            chunk = _as_csr(self.matrix[wanted])
        in_order = np.array_equal(position, np.arange(len(rows)))
        return _canonical(chunk if in_order else chunk[position])

    def n_stored(self) -> np.ndarray:
        """Return the number of entries of every row, int64, shape ``(n_cells,)``.

        What is stored need not be read again: zeros among it are counted.
        """
        if sparse.issparse(self.matrix):
            return np.diff(self.matrix.indptr).astype(np.int64)
        if self.on_disk and not self.is_dense:
            return np.diff(self.matrix.group["indptr"][:]).astype(np.int64)
        return np.concatenate([np.diff(chunk.indptr) for chunk in self.chunks()]).astype(np.int64)

    def chunks(self) -> Iterator[sparse.csr_matrix]:
        """Iterate over all rows, a thousand at a time."""
        for start in range(0, self.shape[0], CHUNK):
            yield self.read(slice(start, start + CHUNK))


def _as_csr(rows: Any) -> sparse.csr_matrix:
    if rows.dtype.kind not in "buif":
        raise ValueError(
            f"Counts are of dtype {rows.dtype}, which does not hold numbers that can be counted. "
            "Convert them: `adata.X = adata.X.astype(np.float32)`."
        )
    # scipy has no sparse matrices of half precision or of another byte order.
    native = np.float32 if rows.dtype == np.float16 else rows.dtype.newbyteorder("=")
    return sparse.csr_matrix(rows.astype(native, copy=False))


def _canonical(chunk: sparse.csr_matrix) -> sparse.csr_matrix:
    """Add up entries that a matrix has twice: a gene must not become two tokens."""
    if not chunk.has_canonical_format:
        chunk = _summable(chunk.copy())  # it may share its memory with the user's matrix
        chunk.sum_duplicates()
    return chunk


def _summable(matrix: Any) -> Any:
    """Return entries in a type that sums of them fit into."""
    return matrix.astype(np.int64) if matrix.dtype.kind in "bui" else matrix


def get_layer(adata: AnnData, layer: str | None) -> Any:
    """Return ``adata.X`` or ``adata.layers[layer]``.

    Raises
    ------
    ValueError
        If there is no such layer; the message names those that exist.
    """
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
    names = list(adata.layers.keys())
    return [name for name in names if name is not None]  # None is X, since anndata 0.13


def check_counts(adata: AnnData, layer: str | None, used: np.ndarray | None = None) -> np.ndarray:
    """Read all counts once and make sure that they are raw counts of non-empty cells.

    Parameters
    ----------
    adata
        The data.
    layer
        Layer with the counts; ``None`` for ``adata.X``.
    used
        Which columns count, bool, shape ``(n_columns,)``; ``None`` for all.

    Returns
    -------
    Sum of the counts of every column, float64, shape ``(n_columns,)``.

    Raises
    ------
    ValueError
        If there are no cells or genes, if a count is NaN, infinite, negative or not an integer,
        or if a cell has no counts at all. The message names the field, an offending value and
        the way out.
    """
    field = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(
            f"The AnnData is empty: {adata.n_obs} cells x {adata.n_vars} genes. Check the filters "
            "that produced it."
        )
    reader = RowReader(get_layer(adata, layer))
    totals = np.zeros(adata.n_vars)
    empty_cells: list[np.ndarray] = []
    for i, chunk in enumerate(reader.chunks()):
        if (problem := problem_with(chunk.data)) is not None:
            raise ValueError(f"{field} {problem}{_where_raw_counts_may_be(adata, layer)}")
        expressed = sparse.csr_matrix(
            (chunk.data > 0, chunk.indices, chunk.indptr), shape=chunk.shape
        )
        totals += np.asarray(chunk.sum(axis=0, dtype=np.float64)).ravel()
        if used is not None:
            expressed = expressed[:, used]
        empty_cells.append(np.flatnonzero(expressed.sum(axis=1) == 0) + i * CHUNK)
    if totals.sum() == 0:
        raise ValueError(f"{field} holds no counts: all of its values are 0.")
    empty = np.concatenate(empty_cells)
    if len(empty):
        of_what = "" if used is None else " of genes that the model knows"
        raise ValueError(
            f"{len(empty):,} of {adata.n_obs:,} cells have no counts{of_what} in {field}, for "
            f"instance {preview(adata.obs_names[empty[:6]])}. Remove them first: "
            "`sc.pp.filter_cells(adata, min_genes=1)`, or by `adata.obs_names`."
        )
    return totals


def looks_raw(values: np.ndarray) -> bool:
    """Return whether values could be raw counts: finite, non-negative integers."""
    return problem_with(values) is None


def problem_with(values: np.ndarray) -> str | None:
    """Say what keeps values from being raw counts, and the first of them that does; or None."""
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
    """Point to the first other matrix of the AnnData that could hold the raw counts."""
    others = {
        f"`layer={name!r}`": adata.layers[name] for name in _layer_names(adata) if name != layer
    }
    if layer is not None and adata.X is not None:
        others["adata.X (leave `layer` out)"] = adata.X
    if adata.raw is not None:
        copy = '`adata.layers["counts"] = adata.raw[:, adata.var_names].X`, then `layer="counts"`'
        others[f"adata.raw ({copy})"] = adata.raw.X
    for name, matrix in others.items():
        try:
            head = RowReader(matrix).read(slice(0, 256)).data
        except (TypeError, ValueError):  # of a kind that could not be used either
            continue
        if len(head) and looks_raw(head):
            return f" {name} looks raw."
    return (
        " If X was normalised, keep the raw counts next time: "
        '`adata.layers["counts"] = adata.X.copy()`.'
    )


def log_normalized(
    counts: sparse.csr_matrix, totals: np.ndarray | None = None
) -> sparse.csr_matrix:
    """Return ``log1p`` of counts per 10,000, in the precision of the totals.

    Parameters
    ----------
    counts
        Raw counts, shape ``(n_cells, n_genes)``.
    totals
        Total counts of the cells, shape ``(n_cells,)``; by default the sums of the rows, float64.
    """
    if totals is None:
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    logged = sparse.csr_matrix(sparse.diags_array(1e4 / np.maximum(totals, 1e-9)) @ counts)
    logged.data = np.log1p(logged.data)
    return logged
