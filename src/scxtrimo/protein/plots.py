"""Plots of proteins."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..pl._axes import documents_axes, finish, new_axes


@documents_axes
def mutation_map(
    scores: pd.DataFrame,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw the scores of all single substitutions.

    Parameters
    ----------
    scores
        What :meth:`scxtrimo.model.XTrimoPGLM.mutation_matrix` returns: residues in rows, amino
        acids in columns.

    Returns
    -------
    The axes. Dots are the residues of the wild type.

    Examples
    --------
    >>> ax = scxtrimo.pl.mutation_map(proteins_model.mutation_matrix("MKTAYIAK"), show=False)
    """
    ax, show = new_axes(ax, show, (max(4.0, 0.12 * len(scores)), 3.6))
    values = scores.to_numpy(dtype=np.float64).T
    limit = float(np.nanmax(np.abs(values))) or 1.0
    image = ax.imshow(values, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit)
    wild_type = [str(name)[0] for name in scores.index]
    letters = list(scores.columns)
    known = [i for i, letter in enumerate(wild_type) if letter in letters]
    ax.plot(known, [letters.index(wild_type[i]) for i in known], "k.", markersize=2)
    step = max(1, len(scores) // 20)
    ax.set_xticks(range(0, len(scores), step), list(scores.index[::step]), rotation=90, fontsize=7)
    ax.set_yticks(range(len(letters)), letters, fontsize=7)
    ax.set(xlabel="residue", ylabel="new amino acid")
    plt.colorbar(image, ax=ax, label="score", pad=0.01)
    return finish(ax, show)


@documents_axes
def contacts(
    predicted: np.ndarray,
    known: np.ndarray | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw predicted contacts above the diagonal, and known ones below it.

    Parameters
    ----------
    predicted
        What :meth:`scxtrimo.model.XTrimoPGLM.predict_contacts` returns.
    known
        Contacts, 0 and 1, of the same shape; by default the predicted ones again.

    Returns
    -------
    The axes.

    Examples
    --------
    >>> import numpy as np
    >>> ax = scxtrimo.pl.contacts(np.random.default_rng(0).random((20, 20)), show=False)
    """
    ax, show = new_axes(ax, show, (4.4, 4.0))
    drawn = np.array(predicted, dtype=np.float64)
    if known is not None:
        if known.shape != drawn.shape:
            raise ValueError(f"known has the shape {known.shape}, predicted {drawn.shape}.")
        below = np.tril_indices(len(drawn), -1)
        drawn[below] = np.nan_to_num(np.asarray(known, dtype=np.float64)[below])
    image = ax.imshow(drawn, cmap="Blues", vmin=0, vmax=1)
    label = "predicted" if known is None else "predicted (above), known (below)"
    ax.set(xlabel="residue", ylabel="residue", title=label)
    plt.colorbar(image, ax=ax, label="probability of contact")
    return finish(ax, show)
