"""Figures of the effects of perturbations."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from ..data.columns import preview
from ..pl._axes import documents_axes, finish, new_axes
from .tools import check_effects, perturbation_scores, rank_perturbed_genes


@documents_axes
def perturbation_effects(
    predicted: AnnData,
    observed: AnnData,
    perturbation: str,
    population: str | None = None,
    n_labels: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Plot predicted against observed effects of a perturbation on all genes.

    Bars are the standard deviations of the prediction and the standard errors of the observation.

    Parameters
    ----------
    predicted, observed
        Effects, see :func:`scxtrimo.tl.perturbation_scores`.
    perturbation
        Name of the perturbation.
    population
        Population of cells, if there are several.
    n_labels
        Maximum number of genes to label, those with effects of at least a tenth of the largest.

    Examples
    --------
    >>> observed = scxtrimo.tl.perturbation_effects(perturbed_cells, "condition")
    >>> predicted = perturbation_model.predict()
    >>> ax = scxtrimo.pl.perturbation_effects(predicted, observed, "GENE1", show=False)
    >>> ax.get_xlabel()
    'observed effect'
    """
    one = predicted[[_row(predicted, "predicted", perturbation, population)]]
    scores = perturbation_scores(one, observed).iloc[0]
    truth = observed[[_row(observed, "observed", perturbation, scores["population"])]]
    genes = truth.var_names[truth.var_names.isin(one.var_names)]
    x, x_std = (np.asarray(truth[:, genes].layers[name])[0] for name in ("effect", "std"))
    y, y_std = (np.asarray(one[:, genes].layers[name])[0] for name in ("effect", "std"))
    ax, show = new_axes(ax, show, (4.6, 4.4))
    largest = max(np.abs(x).max(), np.abs(y).max(), 1e-6)
    limits = min(x.min(), y.min()) - 0.1 * largest, max(x.max(), y.max()) + 0.2 * largest
    ax.plot(limits, limits, color="0.75", linewidth=1, zorder=0)
    ax.axhline(0, color="0.9", linewidth=1, zorder=0)
    ax.axvline(0, color="0.9", linewidth=1, zorder=0)
    ax.errorbar(x, y, y_std, x_std, fmt="none", ecolor="0.8", elinewidth=0.7, zorder=1)
    ax.scatter(x, y, s=9, color="C0", zorder=2)
    size = np.maximum(np.abs(x), np.abs(y))
    labelled = np.argsort(-size)[:n_labels]
    for i in labelled[size[labelled] >= 0.1 * largest]:  # labels of small effects would overlap
        ax.annotate(genes[i], (x[i], y[i]), (3, 3), textcoords="offset points", fontsize=7)
    ax.set(xlim=limits, ylim=limits, xlabel="observed effect", ylabel="predicted effect")
    ax.set_title(f"{perturbation}: r = {scores['pearson']:.2f}, MSE = {scores['mse']:.2g}")
    return finish(ax, show)


@documents_axes
def perturbed_genes(
    effects: AnnData,
    perturbation: str,
    population: str | None = None,
    n_genes: int = 20,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Plot the effects with the largest scores of a perturbation, with standard deviations.

    Parameters
    ----------
    effects
        Effects, observed or predicted.
    perturbation, population
        See :func:`perturbation_effects`.
    n_genes
        Number of genes.

    Examples
    --------
    >>> ax = scxtrimo.pl.perturbed_genes(perturbation_model.predict(), "GENE1", show=False)
    >>> len(ax.get_yticklabels())
    20
    """
    one = effects[[_row(effects, "effects", perturbation, population)]]
    ranked = rank_perturbed_genes(one, n_genes).sort_values("effect").reset_index()
    ax, show = new_axes(ax, show, (4.2, 0.9 + 0.2 * len(ranked)))
    colors = np.where(ranked["effect"] > 0, "C3", "C0")
    ax.barh(ranked.index, ranked["effect"], xerr=ranked["std"], color=colors, ecolor="0.4")
    ax.set_yticks(ranked.index, ranked["gene"], fontsize=8)
    ax.margins(y=0.01)
    ax.axvline(0, color="0.3", linewidth=0.8)
    ax.set(xlabel="effect on log-normalised expression", title=perturbation)
    return finish(ax, show)


def _row(effects: AnnData, argument: str, perturbation: str, population: str | None) -> int:
    """Return the row of a perturbation."""
    check_effects(effects, argument)
    names, populations = (effects.obs[key].astype(str) for key in ("perturbation", "population"))
    if perturbation not in set(names):
        raise ValueError(
            f"perturbation={perturbation!r} is not in {argument}, which has "
            f"{preview(names.unique())}."
        )
    found = (names == perturbation) & ((populations == population) | (population is None))
    rows = np.flatnonzero(found)
    if len(rows) != 1:
        raise ValueError(
            f"{perturbation!r} is in {argument} for {len(rows)} populations named {population!r}; "
            f"choose one of {preview(sorted(set(populations)))} with `population=`."
        )
    return int(rows[0])
