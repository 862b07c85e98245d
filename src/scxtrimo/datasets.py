"""Public datasets in one format.

Files are downloaded on first use and cached. If the environment variable ``SCXTRIMO_DATA`` names
a folder, files of the same name in it or its subfolders are read instead, without network.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse

__all__ = ["deepdds", "kang", "norman", "pbmc3k", "pbmc68k", "recover_counts"]

DATA_VARIABLE = "SCXTRIMO_DATA"

GITHUB = "https://raw.githubusercontent.com"
PERTURBENCH = f"{GITHUB}/altoslabs/perturbench/4dd6a03c54ef348f6be6e46e21ea7f80eb2daaa2/src"
DEEPDDS = f"{GITHUB}/Sinwang404/DeepDDs/f62ed22eb9a505c2c71e7616b12b5427f924f25b/data"
URLS = {
    "kang_ifnb.h5ad": "https://exampledata.scverse.org/pertpy/kang_2018.h5ad",
    "norman_mcfaline.h5ad": f"{PERTURBENCH}/perturbench/data/resources/devel.h5ad",
    "new_labels_0_10.csv": f"{DEEPDDS}/new_labels_0_10.csv",
    "new_cell_features_954.csv": f"{DEEPDDS}/new_cell_features_954.csv",
}
SHA256 = {
    "kang_ifnb.h5ad": "e6a5adac64dcdeb36eaba27db49b63e0c64bb0ed4a64c6705971506b41c39830",
    "new_labels_0_10.csv": "45db760db38066bf5e66013e210e578ca426f6e53a69e8c17a2da063177e8f03",
    "new_cell_features_954.csv": (
        "8a049aa2cacbe7c12de1b4d7614a5b70650352d81da8d66f35877a3666cc78f7"
    ),
}


def pbmc68k() -> AnnData:
    """Return 700 PBMCs with raw counts, from a dataset that ships with scanpy.

    Counts are recovered from the log-normalised values of
    :func:`scanpy.datasets.pbmc68k_reduced`, a part of the data of Zheng et al. 2017.

    Returns
    -------
    AnnData of shape ``(700, 765)``: counts in ``X`` (CSR, float32) and published labels in
    ``obs["bulk_labels"]``.

    Examples
    --------
    >>> scxtrimo.datasets.pbmc68k().shape
    (700, 765)
    """
    reduced = sc.datasets.pbmc68k_reduced()
    return AnnData(
        recover_counts(reduced.raw.X),
        obs=reduced.obs[["bulk_labels"]].copy(),
        var=reduced.raw.var[[]].copy(),
    )


def pbmc3k() -> AnnData:
    """Return 2,638 PBMCs of 10x Genomics with raw counts, labelled by clusters and marker genes.

    Returns
    -------
    AnnData of shape ``(2638, 32738)``: counts in ``X`` (CSR, float32), gene symbols as
    ``var_names``, eight types in ``obs["cell_type"]``.

    Examples
    --------
    >>> pbmc = scxtrimo.datasets.pbmc3k()  # doctest: +SKIP
    """
    if (local := _local("pbmc3k.h5ad")) is not None:
        adata = anndata.read_h5ad(local)
        labels = pd.Series(adata.obs["cell_type"]).dropna()
    else:
        adata = _download(sc.datasets.pbmc3k, "pbmc3k.h5ad")
        labels = _download(sc.datasets.pbmc3k_processed, "pbmc3k.h5ad").obs["louvain"]
    adata.var_names_make_unique()
    return _cells(adata[labels.index], cell_type=labels)


def kang(n_cells: int | None = 2000, seed: int = 0) -> AnnData:
    """Return PBMCs with and without interferon-β: two batches with a biological effect.

    Parameters
    ----------
    n_cells, seed
        Number of cells to sample, ``None`` for all, and seed of the sample.

    Returns
    -------
    AnnData of at most 24,673 cells :cite:p:`Kang2018` with counts in ``X`` (CSR, float32), gene
    symbols as ``var_names``, ``obs["condition"]`` (control, stimulated) and ``obs["cell_type"]``,
    eight types. A local copy may have fewer cells and genes.

    Examples
    --------
    >>> pbmc = scxtrimo.datasets.kang()  # doctest: +SKIP
    """
    adata = anndata.read_h5ad(_file("kang_ifnb.h5ad"))
    if "condition" in adata.obs:
        condition = adata.obs["condition"]
    else:  # the public file
        condition = adata.obs["label"].map({"ctrl": "control", "stim": "stimulated"})
    adata.obs_names_make_unique()
    adata.var_names_make_unique()
    cells = _cells(adata, condition=condition, cell_type=adata.obs["cell_type"])
    if n_cells is None or n_cells >= cells.n_obs:
        return cells
    drawn = np.random.default_rng(seed).choice(cells.n_obs, n_cells, replace=False)
    return cells[np.sort(drawn)].copy()


def norman() -> AnnData:
    """Return K562 cells in which genes and pairs of genes were activated.

    A part of the screen of Norman et al. 2019 :cite:p:`Norman2019`, from the development data of
    PerturBench. Counts are recovered from log-normalised values.

    Returns
    -------
    AnnData of shape ``(3375, 500)`` with counts in ``X`` (CSR, float32), gene symbols as
    ``var_names``, ``obs["condition"]`` (``"control"``, ``"KLF1"``, ``"KLF1+MAP2K6"``, ...) and
    ``obs["n_counts"]``, the total counts of all genes.

    Examples
    --------
    >>> screen = scxtrimo.datasets.norman()  # doctest: +SKIP
    """
    adata = anndata.read_h5ad(_file("norman_mcfaline.h5ad"))
    adata = adata[(adata.obs["dataset"] == "norman19").to_numpy()].copy()
    adata.obs_names_make_unique()
    adata.X = recover_counts(adata.X)
    return _cells(adata, condition=adata.obs["condition"], n_counts=adata.obs["ncounts"])


def deepdds() -> tuple[AnnData, pd.DataFrame]:
    """Return a screen of drug pairs and the expression of its cell lines.

    The screen of O'Neil et al. 2016 as prepared for DeepDDS :cite:p:`Wang2021`: pairs with a
    Loewe score above 10 are synergistic, those below 0 antagonistic. Of repeated measurements, one
    is kept if the labels agree and none if they disagree.

    Returns
    -------
    The lines, an AnnData of shape ``(31, 954)`` with transcripts per million and Ensembl ids as
    ``var_names``, and the screen, a data frame with the columns ``drug1`` and ``drug2`` (SMILES),
    ``cell`` and ``label``.

    Examples
    --------
    >>> lines, screen = scxtrimo.datasets.deepdds()  # doctest: +SKIP
    """
    screen = pd.read_csv(_file("new_labels_0_10.csv"))
    table = pd.read_csv(_file("new_cell_features_954.csv"), index_col=0, skiprows=[1])
    lines = AnnData(table.astype(np.float32))
    pair = [tuple(sorted(drugs)) for drugs in zip(screen["drug1"], screen["drug2"], strict=True)]
    same = screen.assign(pair=pair).groupby(["pair", "cell"])["label"]
    screen = screen[same.transform("nunique").eq(1) & ~same.cumcount().astype(bool)]
    return lines, screen.reset_index(drop=True)


def recover_counts(values: np.ndarray | sparse.spmatrix) -> sparse.csr_matrix:
    """Return the smallest integer counts with the ratios of log-normalised values.

    Parameters
    ----------
    values
        ``log1p`` of scaled counts, cells x genes.

    Returns
    -------
    Integers as float32, within 0.15 % or 0.25 of the values.

    Examples
    --------
    >>> scxtrimo.datasets.recover_counts(np.log1p([[7.5, 0, 2.5]])).toarray()
    array([[3., 0., 1.]], dtype=float32)
    """
    values = sparse.csr_matrix(values, dtype=np.float64, copy=True)
    values.eliminate_zeros()
    if not np.isfinite(values.data).all() or (values.data < 0).any():
        raise RuntimeError(
            "The values are not log-normalised counts: some are negative or not finite."
        )
    values.data = np.expm1(values.data)
    filled = np.flatnonzero(np.diff(values.indptr))
    starts, lengths = values.indptr[:-1][filled], np.diff(values.indptr)[filled]
    values.data /= np.repeat(np.minimum.reduceat(values.data, starts), lengths)
    left = np.ones(values.nnz, dtype=bool)
    for smallest in (1, 2, 3, 4):  # with few genes, the lowest count may exceed 1
        counts = np.rint(smallest * values.data)
        allowed = np.minimum(0.0015 * counts, 0.25)
        off = np.abs(smallest * values.data - counts) > allowed
        new = left & ~np.repeat(np.logical_or.reduceat(off, starts), lengths)
        values.data[new] = counts[new]
        left &= ~new
    if not left.any():
        return values.astype(np.float32)
    raise RuntimeError("The values are not log-normalised counts: their ratios are not integers.")


def _cells(adata: AnnData, **obs: pd.Series) -> AnnData:
    columns = {name: column.to_numpy() for name, column in obs.items()}
    cells = AnnData(
        sparse.csr_matrix(adata.X, dtype=np.float32),
        obs=pd.DataFrame(columns, index=adata.obs_names),
        var=pd.DataFrame(index=adata.var_names),
    )
    cells.strings_to_categoricals()
    return cells


def _local(name: str) -> Path | None:
    """Return the local copy of a file, if there is one."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{DATA_VARIABLE}={folder!r} is not a folder.")
    found = (path for pattern in (name, f"*/{name}") for path in Path(folder).glob(pattern))
    return next(found, None)


def _file(name: str) -> Path:
    """Return the local copy of a file, or download it once."""
    if (local := _local(name)) is not None:
        return local
    import pooch

    where = URLS[name], SHA256.get(name), name, pooch.os_cache("scxtrimo")
    return Path(_download(lambda: pooch.retrieve(*where, progressbar=True), name))


def _download(download: Callable[[], Any], name: str) -> Any:
    try:
        return download()
    except OSError as error:  # also those of urllib and requests
        raise RuntimeError(
            f"{name} could not be downloaded ({error}). Put a copy into a folder and set the "
            f"environment variable {DATA_VARIABLE} to this folder."
        ) from error
