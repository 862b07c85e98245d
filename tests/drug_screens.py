"""Small screens with planted structure."""

from __future__ import annotations

import itertools

import anndata
import numpy as np
import pandas as pd

SMILES = {
    "ethanol": "CCO",
    "phenol": "Oc1ccccc1",
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "urea": "NC(N)=O",
    "aniline": "Nc1ccccc1",
    "acetone": "CC(C)=O",
    "pyridine": "c1ccncc1",
    "benzamide": "NC(=O)c1ccccc1",
    "glycine": "NCC(=O)O",
}
AROMATIC = {name for name, smiles in SMILES.items() if "c1" in smiles}
FAST = {"enable_progress_bar": False, "accelerator": "cpu"}
SMALL = {"n_hidden": 32, "n_members": 2, "n_graph_hidden": 16, "n_line_hidden": 16, "n_genes": 24}


def make_lines(n_lines: int = 12, n_genes: int = 40, seed: int = 0) -> anndata.AnnData:
    """Cell lines of two states, which half of the genes tell apart: z-scores."""
    rng = np.random.default_rng(seed)
    state = np.arange(n_lines) % 2
    x = rng.normal(0, 0.5, (n_lines, n_genes))
    x[:, ::2] += 2 * (2 * state[:, None] - 1)
    lines = anndata.AnnData(x.astype(np.float32))
    lines.obs_names = [f"LINE{i}" for i in range(n_lines)]
    lines.var_names = [f"GENE{i}" for i in range(n_genes)]
    lines.obs["state"] = state
    return lines


def make_screen(lines: anndata.AnnData, n_drugs: int = 10) -> pd.DataFrame:
    """Pairs work together where the number of aromatic drugs agrees with the line's state."""
    names = list(SMILES)[:n_drugs]
    rows = []
    for (a, b), line in itertools.product(
        itertools.combinations(names, 2), zip(lines.obs_names, lines.obs["state"], strict=True)
    ):
        n_aromatic = (a in AROMATIC) + (b in AROMATIC)
        score = (2 * line[1] - 1) * (n_aromatic - 0.5)
        rows.append((SMILES[a], SMILES[b], line[0], a, b, score))
    screen = pd.DataFrame(rows, columns=["drug1", "drug2", "cell", "name1", "name2", "score"])
    noise = np.random.default_rng(0).normal(0, 0.3, len(screen))
    screen["score"] += noise
    screen["label"] = (screen["score"] > 0).astype(int)
    return screen


def make_responses(lines) -> pd.DataFrame:
    """Aromatic drugs work in one state, the others in the other; means of drugs differ widely."""
    rng = np.random.default_rng(0)
    rows = []
    for i, (name, smiles) in enumerate(SMILES.items()):
        for line, state in zip(lines.obs_names, lines.obs["state"], strict=True):
            effect = (2 * state - 1) * (1 if name in AROMATIC else -1)
            rows.append((smiles, name, line, 3 * i + effect + rng.normal(0, 0.2)))
    return pd.DataFrame(rows, columns=["drug", "name", "cell", "y"])
