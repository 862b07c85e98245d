"""The module with a model of the effects of perturbations."""

from __future__ import annotations

from typing import Any

from ..train.module import XTrimoGeneModule
from .effects import EffectModel


class XTrimoGenePerturbationModule(XTrimoGeneModule):
    """The module of cells with an ``EffectModel``.

    The network says how much alike populations of cells and genes are; the effect model what
    perturbations do to them.

    Parameters
    ----------
    *args, **kwargs
        See :class:`XTrimoGeneModule`.

    Examples
    --------
    >>> from scxtrimo.model import XTrimoGeneConfig
    >>> from scxtrimo.perturbation.module import XTrimoGenePerturbationModule
    >>> module = XTrimoGenePerturbationModule(10, (), XTrimoGeneConfig.from_size("tiny"))
    >>> module.effects is None  # until it is trained
    True
    """

    effects: EffectModel | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.effects = None  # its sizes depend on the perturbations of the training
