"""Effects of perturbations as an AnnData, observed or predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy import sparse

EFFECT = "effect"
STD = "std"
CONTROL = "control"
SCORE = "score"
LAYERS = (EFFECT, STD, SCORE, CONTROL)


def effects_anndata(
    obs: pd.DataFrame,
    genes: np.ndarray | pd.Index,
    effect: np.ndarray,
    std: np.ndarray,
    score: np.ndarray,
    control: np.ndarray,
    named_by: Sequence[str] = ("population",),
) -> AnnData:
    """Return an AnnData with a row per perturbation and population, named by them.

    Parameters
    ----------
    obs
        What the rows are, with the columns ``perturbation`` and ``population``.
    genes
        Names of the genes.
    effect, std, score, control
        Change of the mean log-normalised expression; standard deviation of this change from the
        control cells as they are; the effect in units of its standard deviation, the noise of the
        control cells included; their mean. All of shape ``(n_rows, n_genes)``.
    named_by
        Columns that are part of the names of the rows, if they differ between rows.
    """
    names = obs["perturbation"].astype(str)
    if more := [key for key in named_by if obs[key].nunique() > 1]:
        names = names + " (" + obs[more].astype(str).agg(", ".join, axis=1) + ")"
    # one that was left out in several ways is there several times
    index = make_index_unique(pd.Index(names.to_numpy(), dtype=object))
    obs = obs.set_axis(index, axis=0)
    effect = np.maximum(effect, -control)  # expression is not negative
    adata = AnnData(
        (control + effect).astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(np.asarray(genes, dtype=object))),
    )
    for name, values in zip(LAYERS, (effect, std, score, control), strict=True):
        adata.layers[name] = np.asarray(values, dtype=np.float32)
    return adata


def check_effects(effects: AnnData, argument: str) -> None:
    """Raise if an AnnData does not hold effects.

    Parameters
    ----------
    effects
        The AnnData.
    argument
        What it is called in the message.
    """
    missing = [name for name in LAYERS if name not in effects.layers]
    missing += [key for key in ("perturbation", "population") if key not in effects.obs]
    if missing:
        raise ValueError(
            f"{argument} lacks {missing}: it must come from "
            "`scxtrimo.tl.perturbation_effects` or `XTrimoGenePerturbation.predict`."
        )


def change_means(
    values_cg: np.ndarray, mean_g: np.ndarray, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Return cells whose expected mean expression is another, as sparse as can be.

    Of a gene that goes down, expressing cells lose their expression at random; of one that goes
    up, others take over the expression of cells that express it, or, where all do, all rise alike.

    Parameters
    ----------
    values_cg
        Log-normalised expression, shape ``(n_cells, n_genes)``.
    mean_g
        The mean expression wanted, shape ``(n_genes,)``.
    rng
        Source of chance.
    """
    result = np.array(values_cg)
    for gene in range(values_cg.shape[1]):
        column = values_cg[:, gene]
        is_on = column > 0
        now, wanted = column.mean(), max(float(mean_g[gene]), 0.0)
        if wanted < now:
            result[is_on & (rng.random(len(column)) > wanted / now), gene] = 0.0
        elif wanted > now:
            level = column[is_on].mean() if is_on.any() else 1.0
            missing = (wanted - now) * len(column) / level
            chance = min(missing / max((~is_on).sum(), 1), 1.0)
            turned = ~is_on & (rng.random(len(column)) < chance)
            pool = column[is_on] if is_on.any() else np.array([level])
            result[turned, gene] = rng.choice(pool, turned.sum())
            if chance == 1.0:  # all express it: the rest is a shift
                result[:, gene] += wanted - result[:, gene].mean()
    return sparse.csr_matrix(np.maximum(result, 0), dtype=np.float32)
