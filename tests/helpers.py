"""Small cells with planted structure, and models trained on them for a moment."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse

import scxtrimo
from scxtrimo.nn.xtrimogene import XTrimoGeneNet


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


def make_proteins(n: int = 24, length: int = 40, seed: int = 0) -> anndata.AnnData:
    """Proteins of two families: one template each, of which a tenth of the residues changes."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    templates = letters[rng.integers(0, 20, (2, length))]
    family = np.arange(n) % 2
    residues = np.where(
        rng.random((n, length)) < 0.1, letters[rng.integers(0, 20, (n, length))], templates[family]
    )
    obs = {"sequence": ["".join(row) for row in residues], "family": family.astype(str)}
    return anndata.AnnData(obs=pd.DataFrame(obs, index=[f"protein{i}" for i in range(n)]))


SINGLES = ["GENE1", "GENE2", "GENE3", "GENE4", "OUTSIDE1", "OUTSIDE2", "OUTSIDE3", "OUTSIDE4"]
PAIRS = [("GENE1", "GENE2"), ("GENE3", "OUTSIDE1"), ("GENE4", "OUTSIDE2"), ("GENE1", "OUTSIDE3")]


def make_perturbed_cells(
    n_cells: int = 40,
    n_genes: int = 60,
    targets: list[str] | None = None,
    pairs: list[tuple[str, str]] | None = None,
    effects: dict[str, np.ndarray] | None = None,
    seed: int = 0,
) -> anndata.AnnData:
    """Cells in which genes were perturbed, alone and in pairs; half of these are not measured.

    Effects on the logarithm of rates add up; those of the targets are in ``uns["effects"]``. The
    seed is that of the counts: another one makes the same experiment again.
    """
    rng = np.random.default_rng(0)
    targets = SINGLES if targets is None else targets
    pairs = PAIRS if pairs is None else pairs
    rates = 0.5 + rng.gamma(1.0, 2.0, size=n_genes)
    drawn = rng.normal(0, 1.5, (len(targets), n_genes)) * (
        rng.random((len(targets), n_genes)) < 0.3
    )
    effects = effects or dict(zip(targets, drawn, strict=True))
    conditions = [("control",), *((target,) for target in targets), *pairs]
    counts, names = [], []
    rng = np.random.default_rng(seed)
    for condition in conditions:
        n = 2 * n_cells if condition == ("control",) else n_cells
        change = sum((effects[t] for t in condition if t in effects), np.zeros(n_genes))
        depth = rng.lognormal(0, 0.2, size=(n, 1))
        counts.append(rng.poisson(rates * np.exp(np.clip(change, -4, 3)) * depth))
        names += ["+".join(condition)] * n
    counts = np.concatenate(counts).astype(np.float32)
    counts[:, 0] += 1  # no empty cells
    adata = anndata.AnnData(sparse.csr_matrix(counts))
    adata.obs_names = [f"cell{i}" for i in range(len(counts))]
    adata.var_names = [f"GENE{i}" for i in range(n_genes)]
    adata.obs["condition"] = names
    adata.uns["effects"] = effects
    return adata


def train_tiny(
    adata: anndata.AnnData, max_epochs: int = 2, setup: dict | None = None, **kwargs
) -> scxtrimo.model.XTrimoGene:
    """Train the smallest model for a moment."""
    names = {"size", "seed", "n_input_genes", "objective", "dropout"}
    names |= {
        "n_inducing",
        "n_decoder_layers",
        "read_depth_aware",
        "latent_space",
        "measured_weight",
        "n_latent",
    }
    model_kwargs = {"size": "tiny"} | {k: kwargs.pop(k) for k in names & kwargs.keys()}
    scxtrimo.model.XTrimoGene.setup_anndata(adata, **(setup or {}))
    model = scxtrimo.model.XTrimoGene(adata, **model_kwargs)
    model.train(max_epochs, accelerator="cpu", enable_progress_bar=False, **kwargs)
    return model


N_GENES = 50  # of the networks and ragged batches below


def ragged(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    genes = [rng.choice(N_GENES, n, replace=False) for n in lengths]
    gene_ids = torch.from_numpy(np.concatenate(genes))
    counts = torch.from_numpy(rng.integers(1, 20, len(gene_ids)).astype(np.float32))
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    library = torch.stack([part.sum() for part in counts.split(lengths)])
    return counts, gene_ids, cu, library


def net(n_genes: int = N_GENES, **kwargs) -> XTrimoGeneNet:
    torch.manual_seed(0)
    return XTrimoGeneNet(n_genes, n_hidden=16, n_layers=2, n_heads=2, **kwargs).eval()
