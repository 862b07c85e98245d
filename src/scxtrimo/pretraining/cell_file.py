"""One file of cells on disk: which of its matrices holds raw counts, and rows of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anndata
import h5py
import pandas as pd
import zarr

from ..data.counts import RowReader, looks_raw
from ..data.reading import read_cells

AUTO, RAW = "auto", "raw"
ROWS_LOOKED_AT = 256
MAX_CSC_ENTRIES = 50_000_000


class CellFile:
    """An ``.h5ad`` file or an AnnData zarr store, local or remote, of which only rows are read.

    Other formats that :func:`read_cells` knows are read into memory.

    Parameters
    ----------
    path
        Path or URL; what ends in ``.zarr`` is a zarr store.
    layer
        Where the raw counts are: ``"X"``, ``"raw"``, a layer, or ``"auto"`` for the first of these
        that looks like raw counts.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is empty, truncated or no AnnData, or if no matrix in it holds raw counts.

    Examples
    --------
    >>> from scxtrimo.pretraining.cell_file import CellFile
    >>> adata.write_h5ad("pbmc.h5ad")
    >>> file = CellFile("pbmc.h5ad")
    >>> file.layer, file.n_cells
    ('X', 700)
    >>> file.obs(["bulk_labels"]).shape
    (700, 1)
    """

    def __init__(self, path: str | os.PathLike, layer: str = AUTO) -> None:
        self.path = str(path)
        self.group = _open(self.path)
        if "var" not in self.group or "obs" not in self.group:
            raise ValueError(f"{self.path} holds no AnnData: it has {sorted(self.group)}.")
        self.layer = self._find_counts() if layer == AUTO else layer
        self.reader = RowReader(self._matrix(self._place(self.layer)))
        owner = "raw/var" if self.layer == RAW else "var"
        self.var: pd.DataFrame = anndata.io.read_elem(self.group[owner])
        self.n_cells = self.reader.shape[0]
        if self.n_cells == 0 or self.reader.shape[1] == 0:
            raise ValueError(
                f"{self.path} is empty: {self.n_cells} cells x {self.reader.shape[1]} genes."
            )
        self._obs = pd.DataFrame(index=pd.RangeIndex(self.n_cells))

    def obs(self, columns: list[str]) -> pd.DataFrame:
        """Return columns of ``obs``, read once.

        Parameters
        ----------
        columns
            Their names; those that the file lacks are missing values.

        Returns
        -------
        The columns, one row per cell.
        """
        for name in columns:
            if name not in self._obs:
                found = name in self.group["obs"]
                self._obs[name] = anndata.io.read_elem(self.group["obs"][name]) if found else None
        return self._obs[columns]

    def _matrix(self, place: str) -> Any:
        node = self.group[place]
        encoding = str(node.attrs.get("encoding-type", ""))
        if encoding.startswith("csc") and node["data"].shape[0] > MAX_CSC_ENTRIES:
            raise ValueError(
                f"{self.path} stores {place} gene by gene (CSC), which cannot be read cell by "
                f"cell and is too large to convert here ({node['data'].shape[0]:,} entries). "
                "Write it again as CSR: `adata.X = adata.X.tocsr()`."
            )
        return anndata.io.sparse_dataset(node) if encoding.startswith("cs") else node

    def _place(self, layer: str) -> str:
        places = self._candidates()
        if layer not in places:
            raise ValueError(
                f"{self.path} has no {layer!r}; it has {list(places)}. Choose one of these with "
                "`layer=`."
            )
        return places[layer]

    def _candidates(self) -> dict[str, str]:
        """Return the places where counts may be, the most likely first."""
        layers = sorted(self.group["layers"]) if "layers" in self.group else []
        layers.sort(key=lambda name: name != "counts")
        places = {"X": "X", RAW: "raw/X"}
        for name in layers:  # one called raw or X is no other one
            places[f"layers/{name}" if name in places else name] = f"layers/{name}"
        return {name: place for name, place in places.items() if place in self.group}

    def _find_counts(self) -> str:
        candidates = self._candidates()
        for name, place in candidates.items():
            reader = RowReader(self._matrix(place))
            if min(reader.shape) == 0:  # an empty file is reported as such
                return name
            head = reader.read(slice(0, ROWS_LOOKED_AT)).data
            if len(head) and looks_raw(head):
                return name
        raise ValueError(
            f"{self.path} has no raw counts: none of {list(candidates)} holds non-negative "
            "integers."
        )


def _in_memory(adata: anndata.AnnData) -> Any:
    """Return cells of a format that cannot be read by rows in the form of those that can."""
    store = zarr.storage.MemoryStore()
    adata.write_zarr(store)
    return zarr.open_group(store, mode="r")


def _open(path: str) -> Any:
    """Open a file for reading; what goes wrong is said with its name."""
    is_local = "://" not in path
    if is_local and not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if is_local and Path(path).is_file() and Path(path).stat().st_size == 0:
        raise ValueError(f"{path} is an empty file (0 bytes).")
    try:
        if path.rstrip("/").endswith(".zarr"):
            return zarr.open_group(path, mode="r")
        if is_local and (Path(path).is_dir() or path.endswith((".h5mu", ".h5", ".mtx"))):
            return _in_memory(read_cells(path))
        if is_local:
            return h5py.File(path, "r")
        import fsspec

        return h5py.File(fsspec.open(path, "rb").open(), "r")
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read, it may be truncated: {error}") from error
