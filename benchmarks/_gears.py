"""GEARS (Roohani et al. 2023), the published model of genetic perturbations, as a baseline.

    pip install cell-gears torch-geometric

It runs on the processor and offline: what `cell-gears` would download is made here instead.
"""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from lightning import seed_everything
from scipy import sparse

CONTROL = "control"


def gears(
    adata: AnnData,
    held_out: list[str],
    test: list[str],
    seed: int,
    epochs: int = 20,
    gene2go: Path | None = None,
    n_hidden: int = 64,
) -> dict[str, np.ndarray]:
    """Mean predicted log-normalised expression (n_genes,) for each condition of `test`.

    GEARS without GO: the download is not at hand, so its perturbation graph has no edges but a
    loop at each gene, and training says nothing of a gene that no training condition perturbs.
    Everything else is as published, also the co-expression graph (of training cells with one
    perturbed gene or none) and the choice of the epoch (by conditions set aside in training).

    Parameters
    ----------
    adata
        Log-normalised expression with conditions such as `A`, `A+B` and `control`.
    held_out
        Conditions whose cells are not shown to GEARS at all.
    test
        Conditions to predict.
    seed
        Of the weights, the validation conditions and the control cells that are drawn.
    epochs
        Of training; the learning rate is halved after each, so later ones change little.
    gene2go
        File of the download `gene2go_all.pkl` (gene to set of terms). With it, genes of similar
        function are linked, among those of `adata` instead of the list that GEARS downloads.
    n_hidden
        Width of the network.
    """
    with _quietly(), TemporaryDirectory() as folder:
        from gears import GEARS, PertData  # ImportError where not installed

        seed_everything(seed, verbose=False)  # after the import, which seeds torch itself
        names = adata.obs["condition"].astype(str)
        cells = adata[~names.isin(held_out).to_numpy()]
        perturbed = {g for c in {*names, *test} - {CONTROL} for g in c.split("+")}
        terms = _terms(perturbed, list(adata.var_names), gene2go)
        Path(folder, "gene2go_all.pkl").write_bytes(pickle.dumps(terms))
        genes_file = Path(folder, "genes.pkl")
        genes_file.write_bytes(pickle.dumps(list(terms)))

        data = PertData(folder, gene_set_path=str(genes_file), default_pert_graph=False)
        data.new_data_process("data", adata=_in_their_terms(cells))
        # instead of its own splits; with "no_test" it evaluates on nothing after training
        data.split, data.seed, data.set2conditions = "no_test", seed, _split(data.adata, seed)
        data.get_dataloader(batch_size=32)

        x_cg = data.adata.X
        data.adata.X = x_cg.toarray()  # it indexes by a Series, which no sparse matrix takes
        model = GEARS(data, device="cpu")
        model.adata.X = x_cg
        edges, weights = _similar([terms[gene] for gene in data.pert_names])
        model.model_initialize(hidden_size=n_hidden, G_go=edges, G_go_weight=weights)
        model.train(epochs=epochs)
        genes = {condition: condition.split("+") for condition in test}
        predicted = model.predict(list(genes.values()))
        return {condition: predicted["_".join(genes[condition])] for condition in test}


@contextmanager
def _quietly():
    """Swallow progress and prints, and undo the warning filters that `gears` sets for all."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield


def _terms(perturbed: set[str], measured: list[str], gene2go: Path | None) -> dict[str, set[str]]:
    """Return the terms of each gene of the perturbation graph, a private one where none is known.

    GEARS would otherwise treat cells with such a gene as controls.
    """
    known = pickle.loads(gene2go.read_bytes()) if gene2go else {}
    genes = sorted(perturbed.union(gene for gene in measured if gene in known))
    return {gene: set(known.get(gene, ())) or {f"only {gene}"} for gene in genes}


def _in_their_terms(adata: AnnData) -> AnnData:
    """Return the cells with the names of conditions and columns that GEARS reads."""
    names = adata.obs["condition"].astype(str)
    theirs = [c if "+" in c else "ctrl" if c == CONTROL else f"{c}+ctrl" for c in names]
    obs = pd.DataFrame({"condition": theirs, "cell_type": "cell"}, index=adata.obs_names)
    var = pd.DataFrame({"gene_name": adata.var_names.to_numpy()}, index=adata.var_names)
    # rows of a csr_matrix, unlike those of a csr_array, have two dimensions, which it relies on
    return AnnData(sparse.csr_matrix(adata.X, dtype=np.float32), obs=obs, var=var)


def _split(adata: AnnData, seed: int) -> dict[str, list[str]]:
    """Set a tenth of the perturbations aside, to choose the epoch with.

    Of genes that others perturb too, where possible: of any other it knows nothing without GO.
    """
    perturbations = sorted(set(adata.obs["condition"]) - {"ctrl"})
    shuffled = np.random.default_rng(seed).permutation(perturbations).tolist()
    genes = {p: set(p.split("+")) - {"ctrl"} for p in shuffled}
    n_left = Counter(gene for p in shuffled for gene in genes[p])
    n_val, val = max(1, round(0.1 * len(shuffled))), []
    for p in shuffled:
        if len(val) < n_val and all(n_left[gene] > 1 for gene in genes[p]):
            val.append(p)
            n_left.subtract(genes[p])
    val = val or shuffled[:n_val]
    return {"train": ["ctrl", *(p for p in shuffled if p not in val)], "val": val}


def _similar(
    terms: list[set[str]], n_similar: int = 20, threshold: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Link each gene to itself and those with the most similar terms (Jaccard index)."""
    ids = {term: i for i, term in enumerate(sorted(set.union(*terms)))}
    has = np.zeros((len(terms), len(ids)), dtype=np.float32)
    for row, of_gene in zip(has, terms, strict=True):
        row[[ids[term] for term in of_gene]] = 1.0
    shared, n_terms = has @ has.T, has.sum(1)
    index = shared / (n_terms[:, None] + n_terms - shared)
    ranks = (-index).argsort(0, kind="stable").argsort(0)
    edges = np.nonzero((index > threshold) & (ranks <= n_similar))
    return torch.from_numpy(np.stack(edges)), torch.from_numpy(index[edges])
