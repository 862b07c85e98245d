"""What the training cells say about the genes before the first step."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import scanpy as sc
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from sklearn.decomposition import PCA

from ..data.counts import RowReader, log_normalized
from ..data.fields import CountsField
from ..latent import MAX_SCALED_VALUE

MAX_CELLS = 20_000
MIN_EXPRESSING = 3
MIN_CELLS = 20
MIN_SPREAD = 1e-3  # variance of a scaled gene, which is 1 unless nearly all values are cut off


def gene_statistics(
    adata_manager: AnnDataManager,
    rows: np.ndarray,
    n_genes: int,
    n_components: int,
    n_embedding: int,
    n_input_genes: int | None,
    seed: int,
) -> dict[str, Any]:
    """Compute what ``XTrimoGeneModule.set_gene_statistics`` takes.

    Gene embeddings start as the correlations of genes with the principal components of the scaled,
    log-normalised training cells: a randomly initialised encoder that adds up the embeddings of
    the genes of a cell then already knows what PCA knows, and training starts there.

    Parameters
    ----------
    adata_manager
        Manager with the registered AnnData.
    rows
        Training cells; at most 20,000 of them, drawn at random, are used.
    n_genes
        Size of the vocabulary.
    n_components
        Largest number of components of the latent space.
    n_embedding
        Largest number of dimensions of the gene embeddings to initialise.
    n_input_genes
        How many highly variable genes the encoder is to read; ``None`` for all.
    seed
        Seed of the draw and of the decomposition.

    Returns
    -------
    Tensors ``is_read``, ``mean_expression``, ``rates``, ``embeddings`` and ``typical_depth``, and
    ``components`` as :meth:`~scxtrimo.latent.LatentSpace.set` takes them.
    """
    rows = draw_rows(rows, seed)
    counts = read_counts(adata_manager, rows, n_genes)
    totals = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
    library_size = np.asarray(counts.sum(axis=1)).ravel()
    logged = log_normalize(counts)
    mean = np.asarray(logged.mean(axis=0)).ravel()
    is_read = _highly_variable(logged, n_input_genes)
    components, embeddings = _components(
        logged, mean, is_read, max(n_components, n_embedding), n_embedding, seed
    )
    if "loadings" in components:
        components["loadings"] = components["loadings"][:, :n_components]
    return {
        "is_read": torch.from_numpy(is_read),
        "mean_expression": torch.from_numpy(mean.astype(np.float32)),
        "rates": torch.from_numpy(((totals + 0.5) / (totals + 0.5).sum()).astype(np.float32)),
        "typical_depth": torch.tensor(np.log10(np.median(library_size)), dtype=torch.float32),
        "embeddings": embeddings,
        "components": components,
    }


def draw_rows(rows: np.ndarray, seed: int) -> np.ndarray:
    """Return the cells that statistics are taken from: all, or 20,000 drawn at random."""
    if len(rows) <= MAX_CELLS:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, MAX_CELLS, replace=False))


def log_normalize(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return ``log1p`` of counts scaled to 10,000 per cell."""
    return log_normalized(counts, np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1))


def read_counts(
    adata_manager: AnnDataManager, rows: np.ndarray, n_genes: int
) -> sparse.csr_matrix:
    """Return counts of shape ``(n_rows, n_genes)`` with the columns of the vocabulary."""
    reader = RowReader(adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY))
    state = adata_manager.get_state_registry(REGISTRY_KEYS.X_KEY)
    gene_of_column = np.asarray(state[CountsField.COLUMN_TO_GENE_KEY])
    used = np.flatnonzero(gene_of_column >= 0)
    to_vocabulary = sparse.csr_matrix(
        (np.ones(len(used), np.float32), (used, gene_of_column[used])),
        shape=(len(gene_of_column), n_genes),
    )
    return sparse.csr_matrix(reader.read(rows).astype(np.float32) @ to_vocabulary)


def _highly_variable(logged: sparse.csr_matrix, n_top: int | None) -> np.ndarray:
    """Choose genes as scanpy does by default, among those seen in at least three cells.

    Dispersions of a handful of cells mean nothing: there the most variable are taken.
    """
    if n_top is None or n_top >= logged.shape[1]:
        return np.ones(logged.shape[1], dtype=bool)
    chosen = np.flatnonzero(logged.getnnz(axis=0) >= min(MIN_EXPRESSING, logged.shape[0]))
    if len(chosen) > n_top and logged.shape[0] < MIN_CELLS:
        variance = logged[:, chosen].power(2).mean(0) - np.square(logged[:, chosen].mean(0))
        chosen = chosen[np.argsort(-np.asarray(variance).ravel(), kind="stable")[:n_top]]
    elif len(chosen) > n_top:
        adata = anndata.AnnData(logged[:, chosen])
        sc.pp.highly_variable_genes(adata, n_top_genes=n_top)
        chosen = chosen[adata.var["highly_variable"].to_numpy()]
    is_read = np.zeros(logged.shape[1], dtype=bool)
    is_read[chosen] = True
    return is_read


def _components(
    logged: sparse.csr_matrix,
    mean: np.ndarray,
    is_read: np.ndarray,
    n_components: int,
    n_embedding: int,
    seed: int,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Principal components of the genes that are read, and correlations of all genes with them.

    Genes that hardly vary would fill the components with noise: they only get their places.
    The correlations have shape ``(n_genes, <= n_embedding)``, rows of about unit length.
    """
    n_cells, n_genes = logged.shape
    second_moment = np.asarray(logged.multiply(logged).mean(axis=0)).ravel()
    inverse_std = 1 / np.sqrt(np.maximum(second_moment - mean**2, 1e-8))
    scaled = sparse.csr_matrix(logged @ sparse.diags_array(inverse_std.astype(logged.dtype)))
    scaled.data = np.minimum(scaled.data, MAX_SCALED_VALUE)
    spread = np.asarray(scaled.multiply(scaled).mean(axis=0)).ravel()
    spread -= np.square(np.asarray(scaled.mean(axis=0)).ravel())
    is_read = is_read & (spread > MIN_SPREAD)
    n_components = min(n_components, n_cells - 1, int(is_read.sum()) - 1)
    if n_components < 1:
        return {}, torch.empty(n_genes, 0)
    # "arpack" centres sparse data implicitly: nothing of size cells x genes is built.
    pca = PCA(n_components, svd_solver="arpack", random_state=seed)
    scores = pca.fit_transform(sparse.csr_matrix(scaled[:, is_read]))[:, :n_embedding]
    scores /= np.maximum(scores.std(axis=0), 1e-8)
    correlations = scaled.T @ scores / n_cells
    length = np.sqrt(np.square(correlations).sum() / n_genes)

    def of_all_genes(of_read: np.ndarray) -> torch.Tensor:
        result = np.zeros((n_genes, *of_read.shape[1:]), dtype=np.float32)
        result[is_read] = of_read
        return torch.from_numpy(result)

    components = {
        "inverse_std": of_all_genes(inverse_std[is_read]),
        "scaled_mean": of_all_genes(pca.mean_),
        "loadings": of_all_genes(pca.components_.T),
    }
    return components, torch.from_numpy((correlations / max(length, 1e-8)).astype(np.float32))
