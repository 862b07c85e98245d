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


class Result:
    """Somewhere to write results to, row by row.

    Parameters
    ----------
    array
        NumPy or zarr array.
    partial, out
        Where the store is while it is written, and where it goes.
    place
        Where in the store the array is.
    """

    def __init__(
        self, array: Any, partial: Path | None = None, out: Path | None = None, place: str = ""
    ) -> None:
        self.array = array
        self.partial, self.out, self.place = partial, out, place

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        self.array[rows] = values

    def finish(self) -> Any:
        """Return the array; a store gets its name only now that it is complete."""
        if self.partial is None or self.out is None:
            return self.array
        os.replace(self.partial, self.out)
        return zarr.open_group(str(self.out), mode="r")[self.place]


def make_result(
    shape: tuple[int, ...],
    out: str | os.PathLike | None,
    place: str,
    obs_names: pd.Index,
    var_names: np.ndarray | None = None,
    rows_per_chunk: int = 128,
    uns: dict[str, np.ndarray] | None = None,
) -> Result:
    """Return something of the given shape to write results to.

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
    uns
        Further arrays for the store.

    Returns
    -------
    float32 result. The store is one that :func:`anndata.io.read_zarr` reads; until it is
    finished its name ends in ``.partial``.

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
        return Result(np.empty(shape, dtype=np.float32))
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists. Choose another path or remove it first.")
    partial = out.with_name(out.name + ".partial")
    group = zarr.open_group(str(partial), mode="w", zarr_format=2)
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    var = pd.DataFrame(index=pd.Index([] if var_names is None else var_names, dtype=object))
    tables = {"obs": pd.DataFrame(index=obs_names), "var": var}
    maps: dict[str, dict] = dict.fromkeys(("obsm", "varm", "obsp", "varp", "layers"), {})
    texts = {key: np.asarray(value, dtype=object) for key, value in (uns or {}).items()}
    for name, element in (tables | maps | {"uns": texts}).items():
        anndata.io.write_elem(group, name, element)
    array = group.create_array(
        place,
        shape=shape,
        chunks=(min(rows_per_chunk, shape[0]), *shape[1:]),
        dtype="float32",
        fill_value=np.nan,
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return Result(array, partial, out, place)
