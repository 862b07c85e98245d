"""Embed all cells of a store, one data set at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import zarr
from anndata import AnnData
from tqdm.auto import tqdm

from ..model.xtrimogene import XTrimoGene
from .store import SPLITS, CellStore


def embed_store(
    model: XTrimoGene,
    store: str | os.PathLike,
    out: str | os.PathLike,
    prepare: Callable[[AnnData], Any] | None = None,
    **kwargs: Any,
) -> int:
    """Embed all cells of a store, of any size, into another.

    Parameters
    ----------
    model, store
        A trained model, and what :func:`~scxtrimo.pretraining.write_store` wrote.
    out
        Path of the result, ending in ``.zarr``: for every data set ``<split>/dataset_<i>`` of the
        store an AnnData without counts, with ``obs`` (the file and row of each cell) and
        ``obsm["X_xtrimo"]``.
    prepare
        Called with the cells of every data set before they are embedded, for instance
        :meth:`~scxtrimo.model.XTrimoGene.prepare_query_anndata`.
    **kwargs
        Passed to :meth:`~scxtrimo.model.XTrimoGene.get_latent_representation`.

    Returns
    -------
    Number of cells.

    Examples
    --------
    >>> import anndata
    >>> scxtrimo.pretraining.embed_store(model, "cells.zarr", "embedding.zarr")
    700
    >>> part = anndata.io.read_zarr("embedding.zarr/train/dataset_0")
    >>> part.obsm["X_xtrimo"].shape
    (671, 32)
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists. Choose another path or remove it first.")
    parts = [CellStore(store, split) for split in SPLITS]
    n_cells = sum(part.n_cells for part in parts)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    root = zarr.open_group(str(partial), mode="w")
    with tqdm(total=n_cells, desc="Embedding the store", unit="cell", delay=3) as bar:
        for part in parts:
            group = root.create_group(part.split)
            for name, cells in zip(part.names, part.datasets(), strict=True):
                if prepare is not None:
                    prepare(cells)
                latent: Any = model.get_latent_representation(cells, **kwargs)
                result = AnnData(obs=cells.obs, obsm={"X_xtrimo": latent})
                anndata.io.write_elem(group, name, result)
                bar.update(len(latent))
    os.replace(partial, out)
    return n_cells
