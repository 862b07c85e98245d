"""What the training cells say about the genes before the first step."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import scanpy as sc
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from sklearn.decomposition import PCA

from ..data import RowReader
from ..data.fields import CountsField

MAX_CELLS = 20_000
MAX_SCALED_VALUE = 10.0


def gene_statistics(
    adata_manager: AnnDataManager,
    rows: np.ndarray,
    n_genes: int,
    n_components: int,
    n_input_genes: int | None,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Compute what :meth:`~scxtrimo.module.XTrimoGeneModule.set_gene_statistics` takes.

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
        Largest number of dimensions to initialise.
    n_input_genes
        How many highly variable genes the encoder is to read; ``None`` for all.
    seed
        Seed of the draw and of the decomposition.

    Returns
    -------
    Tensors ``is_read``, ``mean_expression``, ``rates``, ``embeddings`` and ``typical_depth``.
    """
    rng = np.random.default_rng(seed)
    if len(rows) > MAX_CELLS:
        rows = np.sort(rng.choice(rows, MAX_CELLS, replace=False))
    counts = _read(adata_manager, rows, n_genes)
    totals = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
    library_size = np.asarray(counts.sum(axis=1)).ravel()
    logged = sparse.diags_array(1e4 / np.maximum(library_size, 1)) @ counts
    logged = sparse.csr_matrix(logged)
    logged.data = np.log1p(logged.data)
    mean = np.asarray(logged.mean(axis=0)).ravel()
    is_read = _highly_variable(counts, n_input_genes)
    embeddings = _embeddings(logged, mean, is_read, n_components, seed)
    return {
        "is_read": torch.from_numpy(is_read),
        "mean_expression": torch.from_numpy(mean.astype(np.float32)),
        "rates": torch.from_numpy(((totals + 0.5) / (totals + 0.5).sum()).astype(np.float32)),
        "typical_depth": torch.tensor(np.log10(np.median(library_size)), dtype=torch.float32),
        "embeddings": torch.from_numpy(embeddings),
    }


def _read(adata_manager: AnnDataManager, rows: np.ndarray, n_genes: int) -> sparse.csr_matrix:
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


def _highly_variable(counts: sparse.csr_matrix, n_top: int | None) -> np.ndarray:
    if n_top is None or n_top >= counts.shape[1]:
        return np.ones(counts.shape[1], dtype=bool)
    seen_enough = np.flatnonzero(counts.getnnz(axis=0) >= min(3, counts.shape[0]))
    if len(seen_enough) <= n_top:
        chosen = seen_enough
    else:
        adata = anndata.AnnData(counts[:, seen_enough])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                sc.pp.highly_variable_genes(adata, n_top_genes=n_top, flavor="seurat_v3")
            except ValueError:  # its regression needs more cells than there are
                sc.pp.normalize_total(adata)
                sc.pp.log1p(adata)
                sc.pp.highly_variable_genes(adata, n_top_genes=n_top, flavor="seurat")
        chosen = seen_enough[adata.var["highly_variable"].to_numpy()]
    is_read = np.zeros(counts.shape[1], dtype=bool)
    is_read[chosen] = True
    return is_read


def _embeddings(
    logged: sparse.csr_matrix,
    mean: np.ndarray,
    is_read: np.ndarray,
    n_components: int,
    seed: int,
) -> np.ndarray:
    """Correlations of all genes with the principal components of those that are read.

    Genes that hardly vary would fill the components with noise: they only get their places.
    Shape ``(n_genes, <= n_components)``, rows of about unit length.
    """
    n_cells, n_genes = logged.shape
    n_components = min(n_components, n_cells - 1, int(is_read.sum()) - 1)
    if n_components < 1:
        return np.empty((n_genes, 0), dtype=np.float32)
    second_moment = np.asarray(logged.multiply(logged).mean(axis=0)).ravel()
    std = np.sqrt(np.maximum(second_moment - mean**2, 1e-8))
    scaled = sparse.csr_matrix(logged @ sparse.diags_array((1 / std).astype(logged.dtype)))
    scaled.data = np.minimum(scaled.data, MAX_SCALED_VALUE)
    # "arpack" centres sparse data implicitly: nothing of size cells x genes is built.
    pca = PCA(n_components, svd_solver="arpack", random_state=seed)
    scores = pca.fit_transform(sparse.csr_matrix(scaled[:, is_read]))
    scores /= np.maximum(scores.std(axis=0), 1e-8)
    correlations = scaled.T @ scores / n_cells
    length = np.sqrt(np.square(correlations).sum() / n_genes)
    return (correlations / max(length, 1e-8)).astype(np.float32)
