"""Observed effects of perturbations, and what to make of effects, observed or predicted."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from ..data.counts import RowReader, check_counts, get_layer
from ..data.vocabulary import preview
from .effect_tables import EFFECT, LAYERS, SCORE, check_effects, effects_anndata
from .group_moments import group_moments, pooled_sd
from .groups import PerturbationNames, group_cells, library_sizes


def perturbation_effects(
    adata: AnnData,
    perturbation_key: str,
    control: str = "control",
    separator: str = "+",
    population_key: str | None = None,
    library_size_key: str | None = None,
    layer: str | None = None,
) -> AnnData:
    """Measure what perturbations do to the mean expression of cells.

    Parameters
    ----------
    adata
        Control and perturbed cells with raw counts.
    perturbation_key, control, separator, population_key, library_size_key, layer
        See :meth:`scxtrimo.model.XTrimoGenePerturbation.setup_anndata`.

    Returns
    -------
    AnnData with a row per perturbation and population, as
    :meth:`scxtrimo.model.XTrimoGenePerturbation.predict` returns it: ``X`` is the mean
    log-normalised expression, the layer ``effect`` its difference to that of the control cells
    (layer ``control``), ``std`` its standard error, the control cells taken as they are, and
    ``score`` the effect in units of its standard error, theirs included. ``obs["n_cells"]`` is
    the number of perturbed cells.

    Raises
    ------
    ValueError
        If a column is missing, counts are not raw counts, or a population has no control cells.

    Examples
    --------
    >>> effects = scxtrimo.tl.perturbation_effects(perturbed_cells, "condition")
    >>> effects.n_obs
    12
    """
    check_counts(adata, layer)
    names = PerturbationNames(control, separator)
    cells = group_cells(adata, names, perturbation_key, population_key)
    totals = None if library_size_key is None else library_sizes(adata, library_size_key)
    reader = RowReader(get_layer(adata, layer))
    perturbed, controls = (
        group_moments(reader.chunks(), codes, n_groups, totals)
        for codes, n_groups in (
            (cells.codes, len(cells.groups)),
            (cells.control_codes, len(cells.populations)),
        )
    )
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
    return effects_anndata(
        obs,
        adata.var_names,
        effect,
        sd * np.sqrt(per_cell)[:, None],
        effect / (sd * np.sqrt(per_cell + per_control)[:, None]),
        controls.mean[population],
    )


def rank_perturbed_genes(effects: AnnData, n_genes: int | None = 50) -> pd.DataFrame:
    """Rank the genes that perturbations change, by effect in units of its standard deviation.

    Parameters
    ----------
    effects
        Effects, observed or predicted.
    n_genes
        Genes per perturbation; ``None`` for all.

    Returns
    -------
    Data frame with the columns ``perturbation``, ``population``, ``gene``, ``effect``, ``std``,
    ``score`` and ``control``, see :func:`perturbation_effects`, the most certain changes first.

    Examples
    --------
    >>> effects = scxtrimo.tl.perturbation_effects(perturbed_cells, "condition")
    >>> scxtrimo.tl.rank_perturbed_genes(effects, 3).groupby("perturbation").size().unique()
    array([3])
    """
    check_effects(effects, "effects")
    if n_genes is not None and n_genes < 1:
        raise ValueError(f"n_genes={n_genes} must be positive.")
    parts = []
    for i in range(effects.n_obs):
        effect, std, score, control = (np.asarray(effects.layers[k])[i] for k in LAYERS)
        order = np.argsort(-np.abs(score), kind="stable")[:n_genes]
        part = pd.DataFrame(
            {
                "gene": effects.var_names[order],
                "effect": effect[order],
                "std": std[order],
                "score": score[order],
                "control": control[order],
            }
        )
        for j, key in enumerate(("perturbation", "population")):
            part.insert(j, key, effects.obs[key].iloc[i])
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def perturbation_scores(predicted: AnnData, observed: AnnData, n_top: int = 20) -> pd.DataFrame:
    """Compare predicted with observed effects.

    Parameters
    ----------
    predicted
        Predicted effects.
    observed
        Observed effects of the same perturbations and populations, and maybe others; genes are
        matched by name.
    n_top
        Number of differential genes, those with the largest observed effects in units of their
        standard error.

    Returns
    -------
    Data frame with a row per row of ``predicted``: ``mse`` and ``mse_top`` (mean squared error
    over all and over the differential genes), ``pearson`` and ``pearson_top`` (correlation of the
    effects; 0 where nothing is predicted to change), and ``direction`` (fraction of the
    differential genes that change in the predicted direction).

    Raises
    ------
    ValueError
        If a perturbation was not observed or there are no genes in common.

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
    score = np.abs(np.asarray(truth.layers[SCORE]))
    top = np.argsort(-score, axis=1, kind="stable")[:, :n_top]
    of_top = [np.take_along_axis(values, top, axis=1) for values in (effect, target)]
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
    r"""Describe how the effect of two genes differs from the sum of their effects.

    The effect of the pair is regressed on those of its genes,
    :math:`\delta_{ab} \approx c_a \delta_a + c_b \delta_b` :cite:p:`Norman2019`.

    Parameters
    ----------
    effects
        Effects of pairs and of their genes, observed or predicted.
    separator
        What stands between the genes of a pair.
    singles
        Effects of single genes, if they are not in ``effects``.

    Returns
    -------
    Data frame with a row per pair of which both genes are there: the coefficients ``c_a`` and
    ``c_b``; ``magnitude`` :math:`\sqrt{c_a^2 + c_b^2}`, above :math:`\sqrt 2` for synergy and
    below for buffering; ``fit``, the correlation of the pair with the regression, low if
    something new happens (neomorphism); ``equality``, the smaller coefficient over the larger
    one, low if one gene dominates (epistasis); ``similarity``, the correlation of the effects of
    the two genes; and ``ratio``, the length of the effect over that of the sum.

    Raises
    ------
    ValueError
        If there is no pair of which both genes are there.

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
    for row, (population, name), pair in zip(
        effects.obs_names, _pairs(effects), _effects(effects), strict=True
    ):
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
            "equality": float(size.min()) / max(float(size.max()), 1e-12),
            "similarity": _correlations(genes[:, :1].T, genes[:, 1:].T)[0],
            "ratio": _length(pair) / max(_length(genes.sum(axis=1)), 1e-12),
        }
    if not rows:
        raise ValueError(
            "There is no pair of genes of which both are perturbed alone as well; predict them "
            "together, for instance `model.predict(['A', 'B', 'A+B'])`."
        )
    return pd.DataFrame.from_dict(rows, orient="index")


def _pairs(effects: AnnData) -> list[tuple[str, str]]:
    """Return population and perturbation of every row."""
    columns = (np.asarray(effects.obs[key]).astype(str) for key in ("population", "perturbation"))
    return [(str(population), str(name)) for population, name in zip(*columns, strict=True)]


def _effects(effects: AnnData) -> np.ndarray:
    return np.asarray(effects.layers[EFFECT], dtype=np.float64)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Pearson correlations of rows; 0 where a row is constant."""
    a, b = (values - values.mean(axis=1, keepdims=True) for values in (a, b))
    length = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.where(length > 0, (a * b).sum(axis=1) / np.maximum(length, 1e-30), 0.0)


def _length(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).sum()))
