"""Cells from files and folders in the usual formats."""

from __future__ import annotations

import os
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import anndata
import h5py
import mudata
import pandas as pd
import scanpy as sc
import zarr
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scipy.io import mmread

from .._logging import logger

FORMATS = (
    ".h5ad, .h5mu, .h5 as Cell Ranger writes it, .zarr, or a folder with matrix.mtx, barcodes.tsv "
    "and features.tsv (or genes.tsv)"
)
# Errors of a bug or of a library that has changed, not of a damaged file.
NOT_DAMAGE = (
    *(TypeError, AttributeError, NameError, AssertionError, ImportError, NotImplementedError),
    *(MemoryError, RecursionError),
)


def read_cells(
    path: str | os.PathLike, modality: str | None = None, backed: bool = False
) -> AnnData:
    """Read cells from a file or folder.

    Parameters
    ----------
    path
        ``.h5ad``, ``.h5mu``, ``.zarr`` (a path or URL), ``.h5`` of Cell Ranger, or a folder with
        ``matrix.mtx``, compressed or not.
    modality, backed
        Modality of a MuData, by default ``"rna"`` or the only one; whether to leave the counts of
        an ``.h5ad`` or ``.zarr`` in the file.

    Returns
    -------
    The cells.

    Raises
    ------
    ValueError
        If the file is damaged, of another format, or has no such modality.

    Examples
    --------
    >>> adata.write_h5ad("pbmc.h5ad")
    >>> scxtrimo.data.read_cells("pbmc.h5ad").shape
    (700, 765)
    """
    name = os.fspath(path)
    is_remote = "://" in name
    if not is_remote:
        name = os.path.expanduser(name)
        if not Path(name).exists():
            raise FileNotFoundError(f"{name} does not exist.")
    try:
        with warnings.catch_warnings():
            # Repeated symbols get numbers below.
            warnings.filterwarnings("ignore", message=".*names are not unique.*")
            data = _read(name, is_remote, backed)
    except (*NOT_DAMAGE, _NotReadableError, PermissionError):
        raise
    except Exception as error:  # every reader raises its own types
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{name} cannot be read; it may be damaged or truncated: {reason}"
        ) from error
    if isinstance(data, MuData):
        return _modality(data, modality, name)
    if modality is not None:
        raise ValueError(f"modality={modality!r}: {name} is not a MuData and has no modalities.")
    return data


class _NotReadableError(ValueError):
    """The file has none of the supported formats."""


def _read(name: str, is_remote: bool, backed: bool) -> AnnData | MuData:
    path = Path(name)
    is_zarr = any((path / header).exists() for header in ("zarr.json", ".zgroup"))
    if is_zarr or name.rstrip("/").endswith(".zarr"):
        return _read_zarr(name, backed)
    if is_remote:
        raise _NotReadableError(f"{name} must end in .zarr to be read from a URL.")
    if path.is_dir():
        return _read_folder(path)
    if path.stat().st_size == 0:
        raise _NotReadableError(f"{name} is an empty file (0 bytes).")
    if not h5py.is_hdf5(path):
        raise _NotReadableError(
            f"{name} is in none of the formats that can be read, or is damaged: {FORMATS}."
        )
    with h5py.File(path, "r") as file:
        kind, keys = str(file.attrs.get("encoding-type", "")), set(file)
        groups = [file[key] for key in keys if isinstance(file[key], h5py.Group)]
        is_10x = any("barcodes" in group for group in groups)
    if "mod" in keys or kind == "MuData":
        return mudata.read_h5mu(path)
    if {"obs", "var"} <= keys:
        return anndata.read_h5ad(path, backed="r" if backed else None)
    if is_10x:
        return _unique_symbols(sc.read_10x_h5(path), path)
    raise _NotReadableError(
        f"{name} is HDF5, but holds neither an AnnData nor a MuData; it has {sorted(keys)[:5]}. "
        f"Formats that can be read: {FORMATS}."
    )


def _read_zarr(name: str, backed: bool) -> AnnData | MuData:
    group: Any = zarr.open_group(name, mode="r")
    if str(group.attrs.get("encoding-type", "")) == "MuData" or "mod" in group:
        return mudata.read_zarr(name)
    if not {"obs", "var"} <= set(group):
        raise _NotReadableError(f"{name} holds no AnnData: it has {sorted(group)[:5]}.")
    return backed_anndata(group) if backed else anndata.io.read_zarr(name)


def _read_folder(path: Path) -> AnnData:
    """Read a folder in the layout of Cell Ranger or the Gene Expression Omnibus."""
    matrices = sorted({*path.glob("*matrix.mtx"), *path.glob("*matrix.mtx.gz")})
    if len(matrices) != 1:
        found = [file.name for file in matrices] or sorted(f.name for f in path.iterdir())[:5]
        raise _NotReadableError(
            f"{path} must hold one matrix.mtx or matrix.mtx.gz to be read; it has {found}. "
            f"Formats that can be read: {FORMATS}."
        )
    prefix = matrices[0].name.split("matrix.mtx")[0]
    barcodes = _table(path, prefix, "barcodes")
    features = _table(path, prefix, "features", "genes")
    adata = AnnData(sparse.csr_matrix(mmread(matrices[0]).T))
    if adata.shape != (len(barcodes), len(features)):
        raise _NotReadableError(
            f"{path} has a matrix of {adata.n_obs} cells x {adata.n_vars} genes, but "
            f"{len(barcodes)} barcodes and {len(features)} genes."
        )
    adata.obs_names = barcodes[0].to_numpy()
    adata.var_names = features[min(1, features.shape[1] - 1)].to_numpy()
    adata.var["gene_ids"] = features[0].to_numpy()
    if features.shape[1] > 2:
        adata = adata[:, (features[2] == "Gene Expression").to_numpy()].copy()
    return _unique_symbols(adata, path)


def _table(path: Path, prefix: str, *names: str) -> pd.DataFrame:
    """Read one of the tables beside a matrix as text."""
    for name, end in product(names, (".tsv", ".tsv.gz")):
        if (file := path / f"{prefix}{name}{end}").exists():
            return pd.read_csv(file, sep="\t", header=None, dtype=str, keep_default_na=False)
    raise _NotReadableError(f"{path} lacks {prefix}{names[0]}.tsv or {prefix}{names[0]}.tsv.gz.")


def _unique_symbols(adata: AnnData, path: Path) -> AnnData:
    if n_repeated := int(adata.var_names.duplicated().sum()):
        logger.info(
            f"{path}: {n_repeated:,} genes share their symbol with another gene and get numbers, "
            "such as 'TBCE-1'; the identifiers in var['gene_ids'] are unchanged."
        )
        adata.var_names_make_unique()
    return adata


def _modality(mdata: MuData, modality: str | None, name: str) -> AnnData:
    """Return a modality, with the columns of the MuData's ``obs`` that it lacks."""
    known = list(mdata.mod)
    if modality is None:
        modality = "rna" if "rna" in known else known[0] if len(known) == 1 else None
    if modality not in known:
        raise ValueError(
            f"modality={modality!r} is not a modality of {name}, which has {known}. Choose one of "
            "these."
        )
    adata = mdata.mod[modality]
    for key in mdata.obs:
        if key not in adata.obs and ":" not in key:
            adata.obs[key] = mdata.obs[key].reindex(adata.obs_names).to_numpy()
    return adata


def backed_anndata(group: Any) -> AnnData:
    """Return an AnnData whose counts stay in a zarr group."""

    def backed(node: Any) -> Any:
        is_sparse = str(node.attrs.get("encoding-type", "")).startswith("cs")
        return anndata.io.sparse_dataset(node) if is_sparse else node

    layers = {name: backed(group["layers"][name]) for name in group.get("layers", {})}
    obs, var = (anndata.io.read_elem(group[name]) for name in ("obs", "var"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an X that is not in memory
        return AnnData(X=backed(group["X"]), obs=obs, var=var, layers=layers)
