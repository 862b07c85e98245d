"""A complete analysis: embedding, clusters, annotation and hidden genes, beside usual methods."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA as PrincipalComponents
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import NearestNeighbors

from ._files import replacing
from ._logging import logger
from .annotation.model import XTrimoGeneAnnotator
from .annotation.plots import calibration
from .annotation.training import draw_per_label
from .data.columns import get_column
from .data.reading import read_cells
from .datasets import pbmc68k
from .latent import draw_rows, log_normalize, read_counts
from .model.training import default_batch_size
from .model.xtrimogene import XTrimoGene
from .tl._agreement import cluster_agreement, leiden

__all__ = ["DemoTables", "run_demo"]

EMBEDDING, PCA, CLUSTERS = "X_xtrimo", "X_pca", "leiden_xtrimo"
GIVEN, PREDICTED = "xtrimo_label_given", "xtrimo_label"
RESULTS = ("cells.h5ad", "demo.png", "model")
N_NEIGHBORS, MAX_ASKED = 15, 1000


class DemoTables(NamedTuple):
    """What :func:`scxtrimo.demo.run_demo` finds, with a usual method beside ours.

    Parameters
    ----------
    embedding
        Seconds, cells per second and agreement of clusters with labels, for xTrimoGene and PCA.
    annotation
        Accuracy, macro-F1 and mean confidence of labels that one half of the cells learned from
        the other, for the annotator and a logistic regression on all genes; ``None`` without
        labels. Calibrated probabilities have the accuracy as their mean. The seconds of the
        annotator come on top of those of the embedding, which it uses.
    hidden_genes
        Mean squared error of hidden genes of held-out cells, also as a part of that of a gene's
        mean; beside the average of the nearest cells.

    Examples
    --------
    >>> tables = scxtrimo.demo.run_demo(out="demo-tables", max_epochs=1, progress=False)
    >>> tables.hidden_genes.index.tolist()
    ['xTrimoGene', "neighbours' average", 'gene mean']
    """

    embedding: pd.DataFrame
    annotation: pd.DataFrame | None
    hidden_genes: pd.DataFrame


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
) -> DemoTables:
    """Train on cells, analyse the embedding with scanpy, annotate and predict hidden genes.

    Labels are hidden from one half of the cells, drawn at random, and predicted from the others'.

    Parameters
    ----------
    data
        Cells with raw counts, see :func:`scxtrimo.data.read_cells`; by default 700 PBMCs that
        ship with scanpy.
    out, overwrite
        Directory for ``cells.h5ad`` (embedding, neighbours, UMAP, clusters, labels), ``demo.png``
        and ``model/``, by default ``scxtrimo-demo`` or, for ``cells.h5ad``, ``cells-scxtrimo``;
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
    Three tables, each with a usual method beside ours; that of the labels is ``None`` without any.

    Examples
    --------
    >>> tables = scxtrimo.demo.run_demo(out="demo", max_epochs=1, progress=False)
    >>> tables.annotation.index.tolist()
    ['xTrimoGene', 'logistic regression']
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
    model.save(out / "model", overwrite=True)
    # An epoch may be cut short; a pretrained network may need no step at all.
    n_steps = model.trainer.global_step if model.history else 0
    n_trained = n_steps * min(default_batch_size(adata.n_obs), adata.n_obs)
    table = pd.DataFrame(
        {
            "seconds": [train + embed, pca],
            "cells/s training": [n_trained / train if n_trained else np.nan, np.nan],
            "cells/s embedding": [adata.n_obs / embed, adata.n_obs / pca],
        },
        index=["xTrimoGene", "PCA"],
    )
    annotation, outcomes = None, dict[str, pd.DataFrame]()
    columns = pd.DataFrame(index=adata.obs_names)
    if labels_key is not None:
        labelled = cells[cells.obs[labels_key].notna()]
        if n_left_out := adata.n_obs - labelled.n_obs:
            logger.info(f"{n_left_out:,} cells without a label are left out of the comparison.")
        scores = [cluster_agreement(labelled, labels_key, rep) for rep in (EMBEDDING, PCA)]
        for name in ("ari", "nmi"):
            table[name.upper()] = [score[name] for score in scores]
            table[f"{name.upper()} sd"] = [score[f"{name}_std"] for score in scores]
        annotation, outcomes, columns = _annotate(model, adata, labels_key, seed)
    hidden_genes = _hidden_genes(model)
    sc.pp.neighbors(cells, use_rep=EMBEDDING)
    sc.tl.umap(cells, random_state=seed)
    leiden(cells, 1, seed, CLUSTERS)
    colors = [key for key in (labels_key, batch_key, CLUSTERS) if key]
    _draw(cells, colors, outcomes, hidden_genes, out / "demo.png")
    columns.insert(0, CLUSTERS, cells.obs[CLUSTERS])
    _add_results(adata, cells, columns)
    with replacing(out / "cells.h5ad") as partial:
        adata.write_h5ad(partial)
    return DemoTables(table, annotation, hidden_genes)


def default_out(data: str | os.PathLike | None) -> Path:
    """Return the default directory for results."""
    return Path("scxtrimo-demo" if data is None else f"{Path(data).stem}-scxtrimo")


def _add_results(adata: AnnData, cells: AnnData, columns: pd.DataFrame) -> None:
    """Add results, and columns of ``obs``, to the data without replacing existing ones."""

    def free(attribute: str, key: str) -> str:
        return f"{key}_xtrimo" if key in getattr(adata, attribute) else key

    graphs = {f"{key}_key": free("obsp", key) for key in cells.obsp}
    cells.uns["neighbors"] = dict(cells.uns["neighbors"]) | graphs
    for key in columns:
        adata.obs[free("obs", key)] = columns[key]
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


def _annotate(
    model: XTrimoGene, adata: AnnData, labels_key: str, seed: int
) -> tuple[pd.DataFrame | None, dict[str, pd.DataFrame], pd.DataFrame]:
    """Predict the labels of one half of the cells from the other's, in two ways.

    Returned are the scores, what was predicted for single cells, and columns for ``obs``.
    """
    labels = adata.obs[labels_key].astype(str).where(adata.obs[labels_key].notna())
    codes = pd.factorize(labels)[0]
    is_known = np.zeros(adata.n_obs, dtype=bool)
    is_known[draw_per_label(codes, seed, lambda n: -(-n // 2))] = True
    is_known &= codes >= 0
    is_asked = ~is_known & (codes >= 0)
    columns = pd.DataFrame({GIVEN: pd.Categorical(labels.where(is_known))}, adata.obs_names)
    if len(set(codes[is_known])) < 2 or not is_asked.any():
        logger.info("There are too few labels to hide some of them: cells are not annotated.")
        return None, {}, columns
    given = AnnData(adata.X, adata.obs.copy(), adata.var)
    given.obs[GIVEN] = columns[GIVEN]
    for name, counts in adata.layers.items():
        given.layers[name] = counts
    times = [time.perf_counter()]
    annotator = XTrimoGeneAnnotator.from_xtrimogene_model(model, labels_key=GIVEN, adata=given)
    annotator.train(enable_progress_bar=False)
    ours = annotator.predict(soft=True)
    assert isinstance(ours, pd.DataFrame)
    times.append(time.perf_counter())
    logged = _expression(model, np.arange(adata.n_obs))
    known = draw_rows(np.flatnonzero(is_known), seed)  # as many as the annotator takes
    usual = LogisticRegression(max_iter=1000).fit(logged[known], labels.iloc[known])
    theirs = pd.DataFrame(usual.predict_proba(logged[is_asked]), columns=usual.classes_)
    times.append(time.perf_counter())
    columns[PREDICTED] = pd.Categorical(ours.idxmax(axis=1))
    columns[f"{PREDICTED}_confidence"] = ours.max(axis=1)
    ways = {"xTrimoGene": ours[is_asked], "logistic regression": theirs}
    rows, outcomes = {}, {}
    for (name, probability), seconds in zip(ways.items(), np.diff(times), strict=True):
        true, predicted = labels[is_asked].to_numpy(), probability.idxmax(axis=1).to_numpy()
        confidence = probability.max(axis=1).to_numpy()
        outcomes[name] = pd.DataFrame(
            {"labels": true, "predicted": predicted, "confidence": confidence}
        )
        rows[name] = {
            "seconds": seconds,
            "accuracy": accuracy_score(true, predicted),
            "macro-F1": f1_score(true, predicted, average="macro", zero_division=0),
            "mean confidence": confidence.mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index"), outcomes, columns


def _expression(model: XTrimoGene, rows: np.ndarray) -> sparse.csr_matrix:
    """Return the log-normalised expression of cells, with the genes of the model."""
    assert model.adata_manager is not None
    return log_normalize(read_counts(model.adata_manager, rows, len(model.vocabulary)))


def _hidden_genes(model: XTrimoGene) -> pd.DataFrame:
    """Predict hidden genes of held-out cells in three ways; of all cells if none is held out."""
    trained, held_out = model.train_indices, model.validation_indices
    assert trained is not None
    held_out = trained if held_out is None or not len(held_out) else held_out
    held_out = held_out[:MAX_ASKED]
    tensors = model._predict_hidden(None, held_out, mask_rate=0.3, batch_size=None)
    hidden = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    places = hidden["cell"], hidden["gene"]
    seen, train = _expression(model, held_out).tolil(), _expression(model, trained)
    seen[places] = 0.0
    is_read = model.module.is_read.cpu().numpy()
    n_components = min(50, train.shape[0] - 1, int(is_read.sum()) - 1)
    pca = PrincipalComponents(n_components, svd_solver="arpack", random_state=0)
    neighbors = NearestNeighbors(n_neighbors=min(N_NEIGHBORS, train.shape[0]))
    neighbors.fit(pca.fit_transform(train[:, is_read]))
    graph = neighbors.kneighbors_graph(pca.transform(sparse.csr_matrix(seen)[:, is_read]))
    predicted = {
        "xTrimoGene": hidden["cross_attention"],
        "neighbours' average": np.asarray((graph @ train).tocsr()[places]).ravel()
        / neighbors.n_neighbors,
        "gene mean": hidden["gene mean"],
    }
    errors = {name: np.square(x - hidden["measured"]).mean() for name, x in predicted.items()}
    table = pd.DataFrame({"mean squared error": errors})
    table["of the gene mean's"] = table["mean squared error"] / errors["gene mean"]
    return table


def _draw(
    cells: AnnData,
    colors: list[str],
    outcomes: dict[str, pd.DataFrame],
    hidden_genes: pd.DataFrame,
    path: Path,
) -> None:
    """Draw UMAPs, the calibration of predicted labels and the errors of hidden genes."""
    with mpl.rc_context({"backend": "agg", "figure.dpi": 150}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = plt.figure(figsize=(5.5 * len(colors), 7.5), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1.2, 1))
        panels = above.subplots(1, len(colors), squeeze=False)[0]
        for color, ax in zip(colors, panels, strict=True):
            sc.pl.umap(cells, color=color, frameon=False, show=False, ax=ax)
        *others, ax = below.subplots(1, 1 + bool(outcomes), squeeze=False)[0]
        ax.barh(hidden_genes.index[::-1], hidden_genes["mean squared error"][::-1])
        ax.set(xlabel="mean squared error", title="Hidden genes of held-out cells")
        for ax in others:
            for name, outcome in outcomes.items():
                calibration(**outcome, ax=ax, show=False)
                ax.lines[-1].set_label(name)
            ax.set_title("Labels of the other half of the cells")
            ax.legend()
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)
