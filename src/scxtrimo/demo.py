"""A complete analysis: training, embedding, clusters, plot and comparison with PCA."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from ._files import replacing
from ._logging import logger
from .data.columns import get_column
from .data.reading import read_cells
from .datasets import pbmc68k
from .model.xtrimogene import XTrimoGene
from .tl._agreement import cluster_agreement, leiden

__all__ = ["run_demo"]

EMBEDDING, PCA, CLUSTERS = "X_xtrimo", "X_pca", "leiden_xtrimo"
RESULTS = ("cells.h5ad", "umap.png", "model")


def run_demo(
    data: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    layer: str | None = None,
    labels_key: str | None = None,
    batch_key: str | None = None,
    max_epochs: int | None = None,
    seed: int = 0,
    progress: bool = True,
    modality: str | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Train on cells and analyse the embedding with scanpy.

    Parameters
    ----------
    data
        Cells with raw counts, see :func:`scxtrimo.data.read_cells`; by default 700 PBMCs that
        ship with scanpy.
    out, overwrite
        Directory for ``cells.h5ad`` (embedding, neighbours, UMAP, clusters), ``umap.png`` and
        ``model/``, by default ``scxtrimo-demo`` or, for ``cells.h5ad``, ``cells-scxtrimo``;
        whether to replace results there. What the data already have is kept; new results of the
        same name get the suffix ``_xtrimo``.
    layer, labels_key, batch_key
        Layer with counts, and columns of ``obs`` with labels and batches.
    max_epochs, seed, progress
        Passes over the cells, by default chosen from their number; random seed; progress bar.
    modality
        See :func:`scxtrimo.data.read_cells`.

    Returns
    -------
    Wall time, cells per second and agreement of clusters with labels, for xTrimoGene and PCA.

    Examples
    --------
    >>> table = scxtrimo.demo.run_demo(out="demo", max_epochs=1, progress=False)
    """
    out = default_out(data) if out is None else Path(out).expanduser()
    there = [name for name in RESULTS if (out / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{out / there[0]} exists. Choose another directory with `out=` (--out), or replace "
            "it with `overwrite=True` (--overwrite)."
        )
    if data is None:
        adata, labels_key = pbmc68k(), "bulk_labels"
        logger.info(
            f"Data: {adata.n_obs} PBMCs x {adata.n_vars} genes of Zheng et al. 2017, bundled "
            "with scanpy (pbmc68k_reduced).\nRaw counts were recovered from its log-normalised "
            "values, which are within 0.15 % of integers. Labels: published, obs['bulk_labels']."
        )
    else:
        adata = read_cells(data, modality)
        logger.info(f"Data: {data}, {adata.n_obs:,} cells x {adata.n_vars:,} genes.")
    if labels_key is not None:
        get_column(adata.obs, "adata.obs", labels_key)  # raises if missing
    XTrimoGene.setup_anndata(adata, layer=layer, batch_key=batch_key)
    out.mkdir(parents=True, exist_ok=True)  # fails before the training

    model = XTrimoGene(adata, seed=seed)
    logger.info(repr(model))
    cells = AnnData(obs=adata.obs.copy())  # separate from existing results
    times = [time.perf_counter()]
    model.train(max_epochs=max_epochs, enable_progress_bar=progress)
    times.append(time.perf_counter())
    cells.obsm[EMBEDDING] = model.get_latent_representation()
    times.append(time.perf_counter())
    cells.obsm[PCA] = _pca(adata, layer)
    train, embed, pca = np.diff([*times, time.perf_counter()])
    n_trained = len(model.history["train_loss"]) * len(np.asarray(model.train_indices))
    table = pd.DataFrame(
        {
            "seconds": [train + embed, pca],
            "cells/s training": [n_trained / train, np.nan],
            "cells/s embedding": [adata.n_obs / embed, adata.n_obs / pca],
        },
        index=["xTrimoGene", "PCA"],
    )
    if labels_key is not None:
        labelled = cells[cells.obs[labels_key].notna()]
        if n_left_out := adata.n_obs - labelled.n_obs:
            logger.info(f"{n_left_out:,} cells without a label are left out of the comparison.")
        scores = [cluster_agreement(labelled, labels_key, rep) for rep in (EMBEDDING, PCA)]
        for name in ("ari", "nmi"):
            table[name.upper()] = [score[name] for score in scores]
            table[f"{name.upper()} sd"] = [score[f"{name}_std"] for score in scores]

    sc.pp.neighbors(cells, use_rep=EMBEDDING)
    sc.tl.umap(cells, random_state=seed)
    leiden(cells, 1, seed, CLUSTERS)
    _draw(cells, [key for key in (labels_key, batch_key, CLUSTERS) if key], out / "umap.png")
    _add_results(adata, cells)
    model.save(out / "model", overwrite=True)
    with replacing(out / "cells.h5ad") as partial:
        adata.write_h5ad(partial)
    return table


def default_out(data: str | os.PathLike | None) -> Path:
    """Return the default directory for results."""
    return Path("scxtrimo-demo" if data is None else f"{Path(data).stem}-scxtrimo")


def _add_results(adata: AnnData, cells: AnnData) -> None:
    """Add results to the data without replacing existing ones."""

    def free(attribute: str, key: str) -> str:
        return f"{key}_xtrimo" if key in getattr(adata, attribute) else key

    graphs = {f"{key}_key": free("obsp", key) for key in cells.obsp}
    cells.uns["neighbors"] = dict(cells.uns["neighbors"]) | graphs
    adata.obs[free("obs", CLUSTERS)] = cells.obs[CLUSTERS]
    for attribute in ("obsm", "obsp", "uns"):
        for key, value in dict(getattr(cells, attribute)).items():
            getattr(adata, attribute)[free(attribute, key)] = value


def _pca(adata: AnnData, layer: str | None) -> np.ndarray:
    """Return 50 components of 2,000 highly variable, log-normalised genes, as usual in scanpy."""
    work = AnnData(adata.X if layer is None else adata.layers[layer]).copy()
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    if work.n_vars > 2000:
        sc.pp.highly_variable_genes(work, n_top_genes=2000)
    sc.pp.pca(work, n_comps=min(50, work.n_obs - 1, work.n_vars - 1))
    return work.obsm[PCA]


def _draw(adata: AnnData, colors: list[str], path: Path) -> None:
    with mpl.rc_context({"backend": "agg", "figure.dpi": 150}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = sc.pl.umap(adata, color=colors, ncols=1, frameon=False, return_fig=True)
        figure.savefig(path, bbox_inches="tight")
