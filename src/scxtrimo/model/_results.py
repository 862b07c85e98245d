"""Where results go: an array in memory, or a zarr store that AnnData can read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import zarr

MAX_RESULT_BYTES = 8 * 2**30


def make_result(
    shape: tuple[int, ...],
    out: str | os.PathLike | None,
    place: str,
    obs_names: pd.Index,
    var_names: np.ndarray | None = None,
    rows_per_chunk: int = 128,
) -> Any:
    """Return something of the given shape to write results to, row by row.

    Parameters
    ----------
    shape
        Shape of the result, cells first.
    out
        Path of a zarr store; ``None`` for an array in memory.
    place
        Where in the store: ``"X"`` or ``"obsm/<key>"``.
    obs_names, var_names
        Names of cells and genes.
    rows_per_chunk
        Cells per chunk of the store; best the number that is written at a time.

    Returns
    -------
    float32 NumPy or zarr array. The store is one that :func:`anndata.io.read_zarr` reads.

    Raises
    ------
    FileExistsError
        If there is something at ``out``.
    ValueError
        If an array in memory would take more than 8 GiB.
    """
    if out is None:
        n_bytes = 4 * int(np.prod(shape))
        if n_bytes > MAX_RESULT_BYTES:
            raise ValueError(
                f"The result of shape {shape} would take {n_bytes / 2**30:.1f} GiB. Name fewer "
                'genes or cells (`gene_list`, `indices`), or stream it to disk: `out="out.zarr"`.'
            )
        return np.empty(shape, dtype=np.float32)
    if Path(out).exists():
        raise FileExistsError(f"{out} exists. Choose another path or remove it first.")
    group = zarr.open_group(str(out), mode="w", zarr_format=2)
    var = pd.DataFrame(index=pd.Index([] if var_names is None else var_names, dtype=object))
    empty = anndata.AnnData(obs=pd.DataFrame(index=obs_names), var=var)
    anndata.io.write_elem(group, "/", empty)
    array = group.create_array(
        place, shape=shape, chunks=(min(rows_per_chunk, shape[0]), *shape[1:]), dtype="float32"
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def write_uns(out: str | os.PathLike, key: str, value: np.ndarray) -> None:
    """Add an entry to ``uns`` of a store that :func:`make_result` made."""
    group = zarr.open_group(str(out), mode="a", zarr_format=2)
    anndata.io.write_elem(group, f"uns/{key}", np.asarray(value, dtype=object))
