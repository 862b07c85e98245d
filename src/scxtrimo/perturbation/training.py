"""Fitting of an effect model, with perturbations left out in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from .._validation import Validated
from .effects import (
    ELSEWHERE,
    HERE,
    NEVER,
    EffectModel,
    EffectNet,
    NetInputs,
    Prediction,
    Query,
)

N_NET_FOLDS = 3
MIN_JUDGED = 8
MIN_STANDARD_ERRORS = 2.0
MAX_ENTRIES = 6_000_000
"""Maximum of left-out groups times genes; each takes about 100 bytes."""


@dataclass(frozen=True)
class EffectsConfig(Validated):
    """How the effects of perturbations are learned.

    Parameters
    ----------
    n_folds
        Parts of the perturbations that are left out in turn.
    correct
        Train a network that corrects the mixed model, and use it as far as it helps.
    n_steps, lr, weight_decay
        Training of this network with AdamW.
    groups_per_step, genes_per_step
        Its batches.

    Raises
    ------
    ValueError
        If a field has an impossible value.

    Examples
    --------
    >>> from scxtrimo.perturbation import EffectsConfig
    >>> EffectsConfig(correct=False).n_folds
    5
    """

    n_folds: Annotated[int, Field(ge=2)] = 5
    correct: bool = True
    n_steps: PositiveInt = 600
    lr: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 0.1
    groups_per_step: PositiveInt = 16
    genes_per_step: PositiveInt = 256


class HeldOut(NamedTuple):
    """Training groups predicted without having seen them, a row each; most come several times."""

    group: np.ndarray  # number of the training group
    left_out: np.ndarray  # "perturbation", "target" or "population"
    is_unseen: np.ndarray  # targets that were not seen anywhere, bool, (rows, max_targets)
    predicted: np.ndarray  # effects on log-normalised expression, (rows, genes)
    std: np.ndarray  # their standard deviations
    score: np.ndarray  # effects over their standard deviations, noise of the controls included


def fit_effects(
    model: EffectModel,
    query: Query,
    config: EffectsConfig,
    seed: int,
    update: Callable[[], object] = lambda: None,
) -> HeldOut:
    """Fit variances, network, its weight and the calibration, given a model with training data.

    ``query`` has the training groups; ``update`` is called after each of the ``n_stages``.
    """
    model.mixed.fit(seed)
    update()
    with torch.no_grad():
        rows = leave_out(model, query, config.n_folds, seed, update)
    correction_gn = torch.zeros_like(rows.observed_gn)
    model.gate.zero_()
    condition_g = _condition_of_group(query)
    if may_correct(config, int(condition_g.max()) + 1):
        condition_g = condition_g[rows.group]
        fold_g = _folds(condition_g, N_NET_FOLDS, seed + 1)
        for fold in range(N_NET_FOLDS):
            if bool((fold_g != fold).any()):
                net = _train_net(model, rows, fold_g != fold, config, seed + fold)
                with torch.no_grad():
                    correction_gn[fold_g == fold] = _apply(net, rows.inputs, fold_g == fold)
            update()
        model.gate.copy_(_choose_gate(model.gene_sd, rows, correction_gn, condition_g))
        if bool(model.gate.any()):
            everything = torch.ones_like(rows.kind_g, dtype=torch.bool)
            net = _train_net(model, rows, everything, config, seed)
            model.net.load_state_dict(net.state_dict())
        update()
    base = rows.inputs.base
    correction_gn = model.gate[rows.kind_g][:, None] * correction_gn
    predicted_gn = base.mean_gn + correction_gn
    model.calibration.copy_(_calibrate(rows, rows.observed_gn - predicted_gn))
    calibration_g1 = model.calibration[rows.kind_g][:, None]
    score_gn = (base.effect_gn + correction_gn) / base.effect_variance_gn.sqrt() / calibration_g1
    return HeldOut(
        rows.group.numpy(),
        rows.left_out,
        (rows.seen_gt == NEVER).numpy() & rows.inputs.is_target_gt.numpy(),
        (predicted_gn * model.gene_sd).numpy(),
        (calibration_g1 * base.variance_gn.sqrt() * model.gene_sd).numpy(),
        score_gn.numpy(),
    )


def n_stages(model: EffectModel, config: EffectsConfig) -> int:
    """Return how often ``fit_effects`` reports progress."""
    n_rounds = config.n_folds * (2 if model.sizes.n_populations == 1 else 3)
    n_conditions = len(model.mixed.targets_gt.unique(dim=0))
    return 1 + n_rounds + (N_NET_FOLDS + 1) * may_correct(config, n_conditions)


def may_correct(config: EffectsConfig, n_conditions: int) -> bool:
    """Return whether there are enough perturbations to judge a correction by."""
    return config.correct and n_conditions >= MIN_JUDGED


class LeftOut(NamedTuple):
    """Groups left out, what a mixed model without them knows, and what was observed."""

    group: Tensor
    left_out: np.ndarray
    seen_gt: Tensor
    kind_g: Tensor
    inputs: NetInputs
    observed_gn: Tensor  # in units of the standard deviation between cells
    n_cells_g: Tensor


def leave_out(
    model: EffectModel, query: Query, n_folds: int, seed: int, update: Callable[[], object]
) -> LeftOut:
    """Predict groups without their perturbation, a target, or the perturbation in the population.

    Where there are too many groups, a random part of them is predicted.
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
    observed_gn, n_cells_g = model.mixed.effects_gn[group], model.mixed.n_cells_g[group]
    return LeftOut(group, np.array(reasons), seen_gt, kind_g, inputs, observed_gn, n_cells_g)


def _rounds(query: Query, n_folds: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield why groups are left out, and which."""
    targets_gt = query.design.targets_gt > 0
    fold_g = _folds(_condition_of_group(query), n_folds, seed)
    fold_t = _folds(torch.arange(targets_gt.shape[1]), n_folds, seed)
    for fold in range(n_folds):
        yield "perturbation", fold_g == fold
    for fold in range(n_folds):
        yield "target", targets_gt[:, fold_t == fold].any(dim=1)
    if query.design.similarity_gp.shape[1] > 1:
        fold_g = _folds(torch.arange(len(targets_gt)), n_folds, seed)
        for fold in range(n_folds):
            yield "population", fold_g == fold


def _condition_of_group(query: Query) -> Tensor:
    """Return numbers that are equal for groups with the same targets."""
    return torch.unique(query.design.targets_gt, dim=0, return_inverse=True)[1]


def _folds(items: Tensor, n_folds: int, seed: int) -> Tensor:
    """Return folds of about equal size, the same one for equal items."""
    distinct, place = items.unique(return_inverse=True)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(len(distinct), dtype=torch.int64)
    fold[order] = torch.arange(len(distinct)) % n_folds
    return fold[place]


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


def _train_net(
    model: EffectModel, rows: LeftOut, use_g: Tensor, config: EffectsConfig, seed: int
) -> EffectNet:
    """Train a network to predict what the mixed model missed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = rows.inputs.targets_gtnu.shape[-1], rows.inputs.genes_gnx.shape[-1]
        net = EffectNet(*sizes)
    used = torch.nonzero(use_g)[:, 0]
    missed_gn = rows.observed_gn - rows.inputs.base.mean_gn
    weight_n = model.gene_sd.square() / model.gene_sd.square().mean()
    scale = (missed_gn[used].square() * weight_n).mean().clamp(min=1e-12)
    optimizer = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.n_steps)
    n_genes = missed_gn.shape[1]
    for _ in range(config.n_steps):
        group = used[torch.randint(len(used), (config.groups_per_step,), generator=generator)]
        gene = torch.randint(n_genes, (min(config.genes_per_step, n_genes),), generator=generator)
        known = rows.inputs
        correction = net(
            known.targets_gtnu[group[:, None], :, gene[None]].transpose(1, 2),
            known.is_target_gt[group],
            known.genes_gnx[group[:, None], gene[None]],
        )
        error = correction - missed_gn[group[:, None], gene[None]]
        # Robust, as a few genes change by many standard deviations.
        loss = (
            F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=1.0)
            * weight_n[gene]
        ).mean() / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def _apply(net: EffectNet, known: NetInputs, use_g: Tensor) -> Tensor:
    """Return the corrections of some groups, a few at a time."""
    rows = torch.nonzero(use_g)[:, 0]
    parts = [
        net(known.targets_gtnu[part], known.is_target_gt[part], known.genes_gnx[part])
        for part in rows.split(16)
    ]
    return torch.cat(parts) if parts else known.base.mean_gn[rows]


def _choose_gate(
    gene_sd: Tensor, rows: LeftOut, correction_gn: Tensor, condition_g: Tensor
) -> Tensor:
    """Return the weight of the correction, by where the targets were seen.

    It is 0 unless it lowers the squared error by more than twice its standard error.
    """
    weight_n = gene_sd.square()
    missed_gn = rows.observed_gn - rows.inputs.base.mean_gn
    gate = torch.zeros(3)
    for kind in (HERE, ELSEWHERE, NEVER):
        of_kind = rows.kind_g == kind
        # Rows of the same perturbation are not independent: each perturbation counts once.
        judges, judge_g = condition_g[of_kind].unique(return_inverse=True)
        if len(judges) < MIN_JUDGED:
            continue
        missed, correction = missed_gn[of_kind], correction_gn[of_kind]
        overlap_g = (missed * correction * weight_n).sum(dim=1)
        size_g = (correction.square() * weight_n).sum(dim=1)
        weight = float((overlap_g.sum() / size_g.sum().clamp(min=1e-12)).clamp(0, 1))
        gain_g = 2 * weight * overlap_g - weight**2 * size_g
        gain = torch.zeros(len(judges)).index_add_(0, judge_g, gain_g)
        gain = gain / torch.bincount(judge_g)
        if gain.mean() > MIN_STANDARD_ERRORS * gain.std() / len(gain) ** 0.5:
            gate[kind] = weight
    if not bool((rows.kind_g == ELSEWHERE).any()):  # there is a single population
        gate[ELSEWHERE] = gate[HERE]
    return gate


def _calibrate(rows: LeftOut, error_gn: Tensor) -> Tensor:
    """Return the most likely factors of the standard deviation, by where targets were seen."""
    noise_gn = (1 / rows.n_cells_g)[:, None].expand_as(error_gn)
    factors = torch.ones(3)
    for kind in (HERE, ELSEWHERE, NEVER):
        of_kind = rows.kind_g == kind
        if int(of_kind.sum()) < MIN_JUDGED:
            continue
        best = torch.tensor(-torch.inf)
        for log_factor in torch.linspace(-1.5, 1.5, 31):
            variance_gn = (2 * log_factor).exp() * rows.inputs.base.variance_gn + noise_gn
            terms_gn = variance_gn.log() + error_gn.square() / variance_gn
            if (likelihood := -terms_gn[of_kind].mean()) > best:
                best, factors[kind] = likelihood, log_factor.exp()
    if not bool((rows.kind_g == ELSEWHERE).any()):
        factors[ELSEWHERE] = factors[HERE]
    return factors
