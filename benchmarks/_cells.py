"""Labelled cells for the benchmarks: read, clean, bring labels of two studies together, pool."""

from __future__ import annotations

from pathlib import Path

import anndata
from anndata import AnnData

import scxtrimo

COARSE = {
    "B": "B",
    "B cells": "B",
    "CD4 T cells": "CD4 T",
    "T_CD4": "CD4 T",
    "CD8 T cells": "CD8 T",
    "T_CD8": "CD8 T",
    "NK": "NK",
    "NK cells": "NK",
    "CD14+ Monocytes": "mononuclear phagocytes",
    "FCGR3A+ Monocytes": "mononuclear phagocytes",
    "Dendritic cells": "mononuclear phagocytes",
    "MNP": "mononuclear phagocytes",
}
"""From the names of two PBMC studies to the five types they share."""


def load(
    path: Path | None, labels_key: str, batch_key: str | None = None, layer: str | None = None
) -> AnnData:
    """Return labelled cells with counts in X and ``label`` (and ``batch``) in obs.

    Without a path these are the cells that come with scanpy.
    """
    if path is None:
        adata = scxtrimo.datasets.pbmc68k()
        labels_key = "bulk_labels"
    else:
        adata = anndata.read_h5ad(path)
    labels = adata.obs[labels_key]
    keep = labels.notna().to_numpy() & (labels.astype(str) != "?").to_numpy()
    counts = adata.X if layer is None else adata.layers[layer]
    clean = AnnData(counts[keep], var=adata.var[[]].copy(), obs=adata.obs.loc[keep, []].copy())
    clean.obs["label"] = labels[keep].astype(str).to_numpy()
    if batch_key is not None:
        clean.obs["batch"] = adata.obs[batch_key][keep].astype(str).to_numpy()
    return clean


def coarsen(adata: AnnData) -> AnnData:
    """Return the cells of the types that both PBMC studies have, under one name each."""
    coarse = adata.obs["label"].map(COARSE)
    if coarse.isna().all():
        raise SystemExit(f"None of the labels {sorted(set(adata.obs['label']))} is in COARSE.")
    shared = adata[coarse.notna().to_numpy()].copy()
    shared.obs["label"] = coarse.dropna().to_numpy()
    return shared


def pool(paths: list[Path], labels_key: str, layer: str | None = None) -> AnnData:
    """Return the cells of several files on the genes they share; the file is the batch."""
    parts = {path.stem: coarsen(load(path, labels_key, layer=layer)) for path in paths}
    for part in parts.values():
        part.var_names_make_unique()
    return anndata.concat(parts, label="batch", index_unique="-")
