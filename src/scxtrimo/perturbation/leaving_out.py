"""Perturbations predicted by models that have not seen them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .design import Prediction
from .effect_data import NetInputs, Query
from .effects import EffectModel

MAX_ENTRIES = 6_000_000
"""Groups times genes that are left out, at most; what is known of each takes 100 bytes."""


class LeftOut(NamedTuple):
    """Groups left out, what a mixed model without them knows, and what was observed.

    Parameters
    ----------
    group
        Which of the training groups, int64, shape ``(n_rows,)``.
    left_out
        Why they were not seen: ``"perturbation"``, ``"target"`` or ``"population"``.
    seen_gt, kind_g
        Where their targets were seen, see ``Query``.
    inputs
        What is known about them.
    observed_gn
        Observed effects in units of the standard deviation between cells.
    n_cells_g
        Perturbed cells.
    """

    group: Tensor
    left_out: np.ndarray
    seen_gt: Tensor
    kind_g: Tensor
    inputs: NetInputs
    observed_gn: Tensor
    n_cells_g: Tensor


def leave_out(
    model: EffectModel, query: Query, n_folds: int, seed: int, update: Callable[[], object]
) -> LeftOut:
    """Predict groups without their perturbation, a target, or the perturbation in the population.

    Parameters
    ----------
    model
        The fitted mixed model.
    query
        The training groups.
    n_folds
        Parts that are left out in turn.
    seed
        Seed of the parts, and of the draw where there are too many groups.
    update
        Called after each of the :func:`n_rounds`.
    """
    n_groups = len(query.design.targets_gt)
    max_rows = max(8, MAX_ENTRIES // model.sizes.n_genes // 2)
    drawn = torch.zeros(n_groups, dtype=torch.bool)
    order = torch.randperm(n_groups, generator=torch.Generator().manual_seed(seed))
    drawn[order[:max_rows]] = True
    parts, reasons = [], []
    for reason, is_out in _rounds(query, n_folds, seed):
        rows = torch.nonzero(is_out & drawn)[:, 0]
        if len(rows) > 0 and bool((~is_out).any()):
            asked = query.rows(rows).as_seen_in(query.design.rows(~is_out))
            inputs = model.inputs(asked, model.controls, model.mixed.without(~is_out))
            parts.append((rows, asked.seen_gt, asked.kind_g, inputs))
            reasons += [reason] * len(rows)
        update()
    group, seen_gt, kind_g = _joined([part[:3] for part in parts])
    inputs = NetInputs(
        Prediction(*_joined([part[3].base for part in parts])),
        *_joined([part[3][1:] for part in parts]),
    )
    mixed = model.mixed
    return LeftOut(
        group,
        np.array(reasons),
        seen_gt,
        kind_g,
        inputs,
        mixed.effects_gn[group],
        mixed.n_cells_g[group],
    )


def n_rounds(n_folds: int, n_populations: int) -> int:
    """Return how often something is left out."""
    return n_folds * (2 if n_populations == 1 else 3)


def _rounds(query: Query, n_folds: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield what is left out at a time, and why."""
    targets_gt = query.design.targets_gt > 0
    fold_g = folds_of(condition_of_group(query), n_folds, seed)
    fold_t = folds_of(torch.arange(targets_gt.shape[1]), n_folds, seed)
    for fold in range(n_folds):
        yield "perturbation", fold_g == fold
    for fold in range(n_folds):
        yield "target", targets_gt[:, fold_t == fold].any(dim=1)
    if query.design.similarity_gp.shape[1] > 1:
        fold_g = folds_of(torch.arange(len(targets_gt)), n_folds, seed)
        for fold in range(n_folds):
            yield "population", fold_g == fold


def condition_of_group(query: Query) -> Tensor:
    """Return numbers that are equal for groups with the same targets."""
    return torch.unique(query.design.targets_gt, dim=0, return_inverse=True)[1]


def folds_of(items: Tensor, n_folds: int, seed: int) -> Tensor:
    """Return folds of items, the same for equal ones, with about as many items each."""
    distinct, place = items.unique(return_inverse=True)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(len(distinct), dtype=torch.int64)
    fold[order] = torch.arange(len(distinct)) % n_folds
    return fold[place]


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
