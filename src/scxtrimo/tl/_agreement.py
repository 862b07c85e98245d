"""Agreement of representations with known labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from sklearn.metrics import (
    adjusted_rand_score,
    f1_score,
    normalized_mutual_info_score,
    silhouette_score,
)
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

SCORES = (adjusted_rand_score, normalized_mutual_info_score)


def cluster_agreement(
    adata: AnnData,
    labels_key: str,
    use_rep: str,
    resolutions: Sequence[float] = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> dict[str, float]:
    """Compare Leiden clusters of a representation with labels.

    Every seed is scored at its best resolution, so that representations can be compared.

    Parameters
    ----------
    adata
        Labelled cells.
    labels_key, use_rep
        Column of ``adata.obs`` with labels, and representation in ``adata.obsm``.
    resolutions, seeds
        Of the Leiden clusterings.

    Returns
    -------
    Mean and standard deviation over seeds: ``ari``, ``ari_std``, ``nmi``, ``nmi_std``.

    Examples
    --------
    >>> adata.obsm["X_xtrimo"] = model.get_latent_representation()
    >>> result = scxtrimo.tl.cluster_agreement(adata, "bulk_labels", "X_xtrimo", seeds=(0,))
    >>> 0 < result["ari"] < 1
    True
    """
    work = representation(adata, use_rep)
    labels = adata.obs[labels_key].astype(str).to_numpy()
    sc.pp.neighbors(work, use_rep="X")
    best = []
    for seed in seeds:
        clusterings = (leiden(work, resolution, seed) for resolution in resolutions)
        of_seed = [[score(labels, clusters) for score in SCORES] for clusters in clusterings]
        best.append(np.max(of_seed, axis=0))
    values = np.stack([np.mean(best, axis=0), np.std(best, axis=0)], axis=1)
    return dict(zip(("ari", "ari_std", "nmi", "nmi_std"), values.ravel().tolist(), strict=True))


def leiden(work: AnnData, resolution: float, seed: int, key: str = "leiden") -> pd.Series:
    """Return the clusters of a graph of neighbours, which ``work.obs`` gets as well."""
    options = {"flavor": "igraph", "n_iterations": 2, "directed": False}
    sc.tl.leiden(work, resolution=resolution, random_state=seed, key_added=key, **options)
    return work.obs[key]


def neighbor_agreement(
    adata: AnnData, labels_key: str, use_rep: str, n_neighbors: int = 15, seed: int = 0
) -> dict[str, float]:
    """Predict labels from neighbours in a representation, and compute the label silhouette.

    Parameters
    ----------
    adata, labels_key, use_rep
        See :func:`cluster_agreement`.
    n_neighbors, seed
        Number of neighbours, and seed of the five folds.

    Returns
    -------
    ``knn_accuracy`` and ``knn_macro_f1`` of five-fold cross-validation, and ``silhouette``.

    Examples
    --------
    >>> adata.obsm["X_xtrimo"] = model.get_latent_representation()
    >>> sorted(scxtrimo.tl.neighbor_agreement(adata, "bulk_labels", "X_xtrimo"))
    ['knn_accuracy', 'knn_macro_f1', 'silhouette']
    """
    x = representation(adata, use_rep).X
    labels = adata.obs[labels_key].astype(str).to_numpy()
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        predicted = cross_val_predict(KNeighborsClassifier(n_neighbors), x, labels, cv=folds)
    return {
        "knn_accuracy": float(np.mean(predicted == labels)),
        "knn_macro_f1": float(f1_score(labels, predicted, average="macro")),
        "silhouette": float(silhouette_score(x, labels)),
    }


def representation(adata: AnnData, use_rep: str) -> AnnData:
    """Return a representation of cells as ``X`` (float32) of a new AnnData."""
    if use_rep not in adata.obsm:
        raise ValueError(f"{use_rep!r} is not in adata.obsm, which has {sorted(adata.obsm)}.")
    return AnnData(np.asarray(adata.obsm[use_rep], dtype=np.float32))
