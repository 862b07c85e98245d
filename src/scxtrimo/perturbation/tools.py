"""Observed effects of perturbations, and the analysis of effects, observed or predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy import sparse

from ..data.columns import preview
from ..data.counts import RowReader, check_counts, get_layer
from .groups import CellCounts, PerturbationNames, group_cells, library_sizes, pooled_sd

LAYERS = ("effect", "std", "score", "control")


def perturbation_effects(
    adata: AnnData,
    perturbation_key: str,
    control: str = "control",
    separator: str = "+",
    population_key: str | None = None,
    library_size_key: str | None = None,
    layer: str | None = None,
) -> AnnData:
    """Measure the effects of perturbations on the mean expression of cells.

    Parameters
    ----------
    adata
        Control and perturbed cells with raw counts.
    perturbation_key, control, separator, population_key, library_size_key, layer
        See :meth:`scxtrimo.model.XTrimoGenePerturbation.setup_anndata`.

    Returns
    -------
    AnnData as :meth:`scxtrimo.model.XTrimoGenePerturbation.predict` returns it, but the layer
    ``std`` is the standard error of the effect without the noise of the control cells, and
    ``obs["n_cells"]`` the number of perturbed cells.

    Examples
    --------
    >>> effects = scxtrimo.tl.perturbation_effects(perturbed_cells, "condition")
    >>> effects.n_obs
    12
    """
    check_counts(adata, layer)
    names = PerturbationNames(control, separator)
    cells = group_cells(adata, names, perturbation_key, population_key)
    totals, every_gene = library_sizes(adata, library_size_key), np.arange(adata.n_vars)
    counts = CellCounts(RowReader(get_layer(adata, layer)), every_gene, totals)
    perturbed = counts.moments(cells.codes, every_gene)
    controls = counts.moments(cells.control_codes, every_gene)
    population = np.array([p for p, _ in cells.groups])
    sd = pooled_sd(perturbed, controls)
    effect = perturbed.mean - controls.mean[population]
    per_cell, per_control = 1 / perturbed.n_cells, 1 / controls.n_cells[population]
    obs = pd.DataFrame(
        {
            "perturbation": [names.name(targets) for _, targets in cells.groups],
            "population": np.array(cells.populations)[population],
            "n_targets": [len(targets) for _, targets in cells.groups],
            "n_cells": perturbed.n_cells,
            "n_control_cells": controls.n_cells[population],
        }
    )
    std = sd * np.sqrt(per_cell)[:, None]
    score = effect / (sd * np.sqrt(per_cell + per_control)[:, None])
    return effects_anndata(obs, adata.var_names, effect, std, score, controls.mean[population])


def rank_perturbed_genes(effects: AnnData, n_genes: int | None = 50) -> pd.DataFrame:
    """Rank the genes that perturbations change, by the absolute score.

    Parameters
    ----------
    effects
        Effects, observed or predicted.
    n_genes
        Genes per perturbation; ``None`` for all.

    Returns
    -------
    Data frame of perturbation, population, gene, effect, its standard deviation, score, and
    expression of control cells (``control``); of a perturbation, the largest scores first.

    Examples
    --------
    >>> effects = scxtrimo.tl.perturbation_effects(perturbed_cells, "condition")
    >>> scxtrimo.tl.rank_perturbed_genes(effects, 3).groupby("perturbation").size().unique()
    array([3])
    """
    check_effects(effects, "effects")
    if n_genes is not None and n_genes < 1:
        raise ValueError(f"n_genes={n_genes} must be positive.")
    layers: dict[str, np.ndarray] = {k: np.asarray(effects.layers[k]) for k in LAYERS}
    order = np.argsort(-np.abs(layers["score"]), axis=1, kind="stable")[:, :n_genes]
    names = pd.DataFrame(effects.obs[["perturbation", "population"]]).astype(str)
    rows = np.repeat(np.arange(effects.n_obs), order.shape[1])
    ranked = names.iloc[rows].reset_index(drop=True)
    ranked["gene"] = effects.var_names[order.ravel()]
    for name, values in layers.items():
        ranked[name] = np.take_along_axis(values, order, axis=1).ravel()
    return ranked


def perturbation_scores(predicted: AnnData, observed: AnnData, n_top: int = 20) -> pd.DataFrame:
    """Compare predicted with observed effects.

    Parameters
    ----------
    predicted
        Predicted effects.
    observed
        Observed effects of at least the same perturbations and populations.
    n_top
        Number of differential genes, those with the largest observed absolute scores.

    Returns
    -------
    Data frame with a row per row of ``predicted``: mean squared error over all genes (``mse``) and
    the differential ones (``mse_top``), correlation of the effects (``pearson``, ``pearson_top``;
    0 where nothing is predicted to change), and the fraction of the differential genes that
    change in the predicted ``direction``.

    Examples
    --------
    >>> observed = scxtrimo.tl.perturbation_effects(perturbed_cells, "condition")
    >>> scores = scxtrimo.tl.perturbation_scores(perturbation_model.predict(), observed)
    >>> bool(scores["pearson"].median() > 0.5)
    True
    """
    check_effects(predicted, "predicted")
    check_effects(observed, "observed")
    place = {pair: i for i, pair in enumerate(_pairs(observed))}
    asked = _pairs(predicted)
    if missing := [pair for pair in asked if pair not in place]:
        raise ValueError(
            f"(population, perturbation) {preview(missing)} was not observed; `observed` has "
            f"{preview(place)}."
        )
    genes = observed.var_names[observed.var_names.isin(predicted.var_names)]
    if len(genes) == 0:
        raise ValueError("predicted and observed have no genes in common.")
    truth = observed[[place[pair] for pair in asked], genes]
    effect, target = _effects(predicted[:, genes]), _effects(truth)
    order = np.argsort(-np.abs(np.asarray(truth.layers["score"])), axis=1, kind="stable")
    of_top = [np.take_along_axis(values, order[:, :n_top], axis=1) for values in (effect, target)]
    result = pd.DataFrame(asked, predicted.obs_names, ["population", "perturbation"])
    result["mse"] = np.square(effect - target).mean(axis=1)
    result["mse_top"] = np.square(of_top[0] - of_top[1]).mean(axis=1)
    result["pearson"] = _correlations(effect, target)
    result["pearson_top"] = _correlations(*of_top)
    result["direction"] = (np.sign(of_top[0]) == np.sign(of_top[1])).mean(axis=1)
    return result


def genetic_interactions(
    effects: AnnData, separator: str = "+", singles: AnnData | None = None
) -> pd.DataFrame:
    r"""Compare the effects of pairs of genes with the sums of the effects of the single genes.

    The effect of the pair is regressed on those of its genes,
    :math:`\delta_{ab} \approx c_a \delta_a + c_b \delta_b` :cite:p:`Norman2019`.

    Parameters
    ----------
    effects
        Effects of pairs and of their genes, observed or predicted.
    separator
        Text between the genes of a pair.
    singles
        Effects of single genes, if they are not in ``effects``.

    Returns
    -------
    Data frame with a row per pair of which both single effects are known: ``c_a`` and ``c_b``;
    ``magnitude`` :math:`\sqrt{c_a^2 + c_b^2}`, above :math:`\sqrt 2` for synergy and below for
    buffering; ``fit``, the correlation of pair and regression, low for neomorphism; ``equality``,
    the smaller coefficient over the larger one, low for epistasis; ``similarity``, the correlation
    of the two single effects; ``ratio``, the length of the effect over that of the sum.

    Examples
    --------
    >>> effects = scxtrimo.tl.perturbation_effects(perturbed_cells, "condition")
    >>> interactions = scxtrimo.tl.genetic_interactions(effects)
    >>> bool(interactions.loc["GENE1+GENE2", "fit"] > 0.5)
    True
    """
    check_effects(effects, "effects")
    single_effects = effects if singles is None else singles
    check_effects(single_effects, "singles")
    if list(single_effects.var_names) != list(effects.var_names):
        raise ValueError("effects and singles must have the same genes in the same order.")
    of_single = dict(zip(_pairs(single_effects), _effects(single_effects), strict=True))
    rows = {}
    named = zip(effects.obs_names, _pairs(effects), _effects(effects), strict=True)
    for row, (population, name), pair in named:
        parts = [(population, gene) for gene in name.split(separator)]
        if len(parts) != 2 or not all(part in of_single for part in parts):
            continue
        genes = np.stack([of_single[part] for part in parts], axis=1)
        c = np.linalg.lstsq(genes, pair, rcond=None)[0]
        size = np.abs(c)
        rows[row] = {
            "population": population,
            "c_a": c[0],
            "c_b": c[1],
            "magnitude": np.hypot(*c),
            "fit": _correlations((genes @ c)[None], pair[None])[0],
            "equality": size.min() / max(size.max(), 1e-12),
            "similarity": _correlations(genes[:, :1].T, genes[:, 1:].T)[0],
            "ratio": np.linalg.norm(pair) / max(np.linalg.norm(genes.sum(axis=1)), 1e-12),
        }
    if not rows:
        raise ValueError(
            "There is no pair of genes that are both perturbed alone as well. Predict them "
            "together, for instance `model.predict(['A', 'B', 'A+B'])`, or pass `singles=`."
        )
    return pd.DataFrame.from_dict(rows, orient="index")


def _pairs(effects: AnnData) -> list[tuple[str, str]]:
    """Return population and perturbation of every row."""
    columns = (effects.obs[key].astype(str) for key in ("population", "perturbation"))
    return list(zip(*columns, strict=True))


def _effects(effects: AnnData) -> np.ndarray:
    return np.asarray(effects.layers["effect"], dtype=np.float64)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Pearson correlations of rows; 0 where a row is constant."""
    a, b = (values - values.mean(axis=1, keepdims=True) for values in (a, b))
    length = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.where(length > 0, (a * b).sum(axis=1) / np.maximum(length, 1e-30), 0.0)


def effects_anndata(
    obs: pd.DataFrame,
    genes: np.ndarray | pd.Index,
    *layers: np.ndarray,
    named_by: Sequence[str] = ("population",),
) -> AnnData:
    """Return effects as an AnnData; columns ``named_by`` that differ are part of the names."""
    names = obs["perturbation"].astype(str)
    if more := [key for key in named_by if obs[key].nunique() > 1]:
        names = names + " (" + obs[more].astype(str).agg(", ".join, axis=1) + ")"
    # A perturbation that was left out in several ways has several rows.
    index = make_index_unique(pd.Index(names.to_numpy(), dtype=object))
    effect, std, score, control = layers
    effect = np.maximum(effect, -control)  # expression is not negative
    values = [part.astype(np.float32) for part in (effect, std, score, control)]
    return AnnData(
        (control + effect).astype(np.float32),
        obs=obs.set_axis(index, axis=0),
        var=pd.DataFrame(index=pd.Index(np.asarray(genes, dtype=object))),
        layers=dict(zip(LAYERS, values, strict=True)),
    )


def check_effects(effects: AnnData, argument: str) -> None:
    """Raise if an AnnData, called so in the message, does not hold effects."""
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
    """Return log-normalised cells changed at random to have another expected mean."""
    result = np.array(values_cg)
    for gene, column in enumerate(values_cg.T):
        is_on = column > 0
        now, wanted = column.mean(), max(float(mean_g[gene]), 0.0)
        if wanted < now:
            result[is_on & (rng.random(len(column)) > wanted / now), gene] = 0.0
        elif wanted > now:
            pool = column[is_on] if is_on.any() else np.ones(1)
            missing = (wanted - now) * len(column) / pool.mean()
            chance = min(missing / max((~is_on).sum(), 1), 1.0)
            turned = ~is_on & (rng.random(len(column)) < chance)
            result[turned, gene] = rng.choice(pool, turned.sum())
            if chance == 1.0:  # all cells express it now: shift the rest of the way
                result[:, gene] += wanted - result[:, gene].mean()
    return sparse.csr_matrix(np.maximum(result, 0), dtype=np.float32)
