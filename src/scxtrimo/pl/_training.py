"""Pictures of how a training went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ._axes import finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..annotation.model import XTrimoGeneAnnotator
    from ..drugs.response import XTrimoGeneDrugResponse
    from ..drugs.synergy import XTrimoGeneSynergy
    from ..model.xtrimogene import XTrimoGene
    from ..perturbation.model import XTrimoGenePerturbation

LOSSES = ("train_loss", "validation_loss")


def training_curves(
    model: XTrimoGene
    | XTrimoGeneAnnotator
    | XTrimoGenePerturbation
    | XTrimoGeneSynergy
    | XTrimoGeneDrugResponse,
    keys: Sequence[str] = LOSSES,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw losses, or whatever else a training kept, by epoch.

    Parameters
    ----------
    model
        A trained model of any class of ``scxtrimo.model``.
    keys
        Entries of ``model.history``. Where nothing was validated, ``"validation_loss"`` is left
        out.
    ax
        Axes to draw on; by default new ones.
    show
        Whether to show the figure.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If the model was not trained, or has no such entry.

    Examples
    --------
    >>> ax = scxtrimo.pl.training_curves(model, show=False)
    >>> ax.get_xlabel()
    'epoch'
    """
    history = model.history
    if not history:
        raise ValueError(
            f"This {type(model).__name__} has no history of a training. Call `model.train()` "
            "first; weights that come from elsewhere bring none."
        )
    keys = [keys] if isinstance(keys, str) else list(keys)
    drawn = [key for key in keys if key in history]
    unknown = [key for key in keys if key not in history and key != LOSSES[1]]
    if unknown or not drawn:
        raise ValueError(
            f"keys={unknown or keys} are not in model.history, which has {sorted(history)}."
        )
    from matplotlib.ticker import MaxNLocator

    was_given = ax is not None
    ax = new_axes(ax, (4.2, 3.2))
    for key in drawn:
        values = history[key].squeeze(axis=1) if history[key].ndim == 2 else history[key]
        is_short = len(values) < 2  # a line of one point is invisible
        ax.plot(values.index, values, label=_text(key), marker="o" if is_short else None)
    ax.set_xlabel(history[drawn[0]].index.name or "epoch")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    ax.grid(alpha=0.3)
    if len(drawn) > 1:
        ax.set_ylabel("loss" if all("loss" in key for key in drawn) else "")
        ax.legend()
    else:
        ax.set_ylabel(_text(drawn[0]))
    return finish(ax, was_given, show)


def _text(key: str) -> str:
    """Write an entry of the history in words."""
    return {LOSSES[0]: "training", LOSSES[1]: "validation"}.get(key, key.replace("_", " "))
