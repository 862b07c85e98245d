"""Small cells with planted structure, and models trained on them for a moment."""

from __future__ import annotations

import anndata
import numpy as np
from scipy import sparse

import scxtrimo


def make_cells(
    n_cells: int = 150, n_genes: int = 60, n_types: int = 3, seed: int = 0
) -> anndata.AnnData:
    """Cells of a few types, each with marker genes of its own, in two batches."""
    rng = np.random.default_rng(seed)
    cell_type = rng.integers(n_types, size=n_cells)
    rates = 0.2 + rng.gamma(0.5, 1.0, size=n_genes)  # every gene has counts
    markers = np.arange(n_genes) % (2 * n_types)
    fold = np.where(markers[None] == cell_type[:, None], 8.0, 1.0)
    depth = rng.lognormal(0, 0.3, size=(n_cells, 1))
    counts = rng.poisson(rates * fold * depth).astype(np.float32)
    counts[:, 0] += 1  # no empty cells
    adata = anndata.AnnData(sparse.csr_matrix(counts))
    adata.obs_names = [f"cell{i}" for i in range(n_cells)]
    adata.var_names = [f"GENE{i}" for i in range(n_genes)]
    adata.obs["cell_type"] = [f"type{t}" for t in cell_type]
    adata.obs["batch"] = np.where(rng.random(n_cells) < 0.5, "a", "b")
    return adata


def train_tiny(
    adata: anndata.AnnData, max_epochs: int = 2, setup: dict | None = None, **kwargs
) -> scxtrimo.model.XTrimoGene:
    """Train the smallest model for a moment."""
    names = {"size", "seed", "n_input_genes", "imputation_weight", "dropout"}
    names |= {"read_depth_aware", "latent_space", "measured_weight", "n_latent"}
    model_kwargs = {"size": "tiny"} | {k: kwargs.pop(k) for k in names & kwargs.keys()}
    scxtrimo.model.XTrimoGene.setup_anndata(adata, **(setup or {}))
    model = scxtrimo.model.XTrimoGene(adata, **model_kwargs)
    model.train(max_epochs, accelerator="cpu", enable_progress_bar=False, **kwargs)
    return model
