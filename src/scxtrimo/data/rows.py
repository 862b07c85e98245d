"""Which cells are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def as_rows(indices: Sequence[Any] | np.ndarray | None, n_cells: int) -> np.ndarray:
    """Return row numbers, from row numbers or a boolean mask."""
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
    lowest, highest = int(np.min(rows)), int(np.max(rows))
    if lowest < 0 or highest >= n_cells:
        raise ValueError(
            f"indices must lie between 0 and {n_cells - 1}, got {lowest} to {highest}."
        )
    return rows
