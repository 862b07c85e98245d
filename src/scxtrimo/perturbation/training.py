"""Fitting of an effect model, with perturbations left out in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from .._validation import Validated
from .effects import ELSEWHERE, HERE, NEVER, EffectModel, EffectNet, NetInputs, Prediction, Query

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
    n_steps, lr, weight_decay, groups_per_step, genes_per_step
        Training of this network with AdamW, and its batches.

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


class LeftOut(NamedTuple):
    """Training groups predicted without having seen them; most come several times."""

    group: Tensor
    left_out: np.ndarray  # "perturbation", "target" or "population"
    seen_gt: Tensor
    kind_g: Tensor
    base: Prediction  # by a mixed model without them
    inputs: NetInputs
    observed_gn: Tensor  # in units of the standard deviation between cells
    n_cells_g: Tensor


def fit_effects(
    model: EffectModel,
    query: Query,
    config: EffectsConfig,
    seed: int,
    bar: tqdm,
) -> tuple[LeftOut, tuple[Tensor, Tensor, Tensor]]:
    """Fit a model to its groups, those of ``query``; return effect, std and score without each."""
    rounds, condition_g = _rounds(query, config.n_folds, seed), _condition_of_group(query)
    corrects = may_correct(config, int(condition_g.max()) + 1)
    bar.total = 1 + len(rounds) + (N_NET_FOLDS + 1) * corrects
    model.mixed.fit(seed)
    bar.update()
    with torch.no_grad():
        rows = _leave_out(model, query, rounds, seed, bar)
    correction_gn = torch.zeros_like(rows.observed_gn)
    model.gate.zero_()
    if corrects:
        condition_g = condition_g[rows.group]
        fold_g = _folds(condition_g, N_NET_FOLDS, seed + 1)
        for fold in range(N_NET_FOLDS):
            is_out = fold_g == fold
            if not bool(is_out.all()):
                net = _train_net(model, rows, ~is_out, config, seed + fold)
                with torch.no_grad():
                    for part in torch.nonzero(is_out)[:, 0].split(16):
                        correction_gn[part] = net(*(values[part] for values in rows.inputs))
            bar.update()
        weight_n = model.gene_sd.square()
        gate = _by_kind(rows, lambda used: _gate(rows, correction_gn, weight_n, condition_g, used))
        model.gate.copy_(gate)
        if bool(model.gate.any()):
            everything = torch.ones_like(rows.kind_g, dtype=torch.bool)
            net = _train_net(model, rows, everything, config, seed)
            model.net.load_state_dict(net.state_dict())
        bar.update()
    base = rows.base
    correction_gn = model.gate[rows.kind_g][:, None] * correction_gn
    predicted_gn = base.mean_gn + correction_gn
    error_gn = rows.observed_gn - predicted_gn
    model.calibration.copy_(_by_kind(rows, lambda used: _calibration(rows, error_gn, used)))
    calibration_g1 = model.calibration[rows.kind_g][:, None]
    std_gn = calibration_g1 * base.variance_gn.sqrt() * model.gene_sd
    score_gn = (base.effect_gn + correction_gn) / base.effect_variance_gn.sqrt() / calibration_g1
    return rows, (predicted_gn * model.gene_sd, std_gn, score_gn)


def may_correct(config: EffectsConfig, n_conditions: int) -> bool:
    """Return whether there are enough perturbations to judge a correction by."""
    return config.correct and n_conditions >= MIN_JUDGED


def _leave_out(
    model: EffectModel, query: Query, rounds: list[tuple[str, Tensor]], seed: int, bar: tqdm
) -> LeftOut:
    """Predict groups, a random part if there are many, by models that have seen less."""
    n_groups = len(query.design.targets_gt)
    max_rows = max(8, MAX_ENTRIES // model.sizes.n_genes // 2)
    order = torch.randperm(n_groups, generator=torch.Generator().manual_seed(seed))
    drawn = order.argsort() < max_rows
    parts, reasons = [], []
    for reason, is_out in rounds:
        rows = torch.nonzero(is_out & drawn)[:, 0]
        if len(rows) > 0 and not bool(is_out.all()):
            asked = query.rows(rows).as_seen_in(query.design.rows(~is_out))
            base, inputs = model.inputs(asked, model.controls, model.mixed.without(~is_out))
            parts.append((rows, asked.seen_gt, asked.kind_g, *base, *inputs))
            reasons += [reason] * len(rows)
        bar.update()
    group, seen_gt, kind_g, *known = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    n_base = len(Prediction._fields)
    base, inputs = Prediction(*known[:n_base]), NetInputs(*known[n_base:])
    observed_gn, n_cells_g = model.mixed.effects_gn[group], model.mixed.n_cells_g[group]
    return LeftOut(group, np.array(reasons), seen_gt, kind_g, base, inputs, observed_gn, n_cells_g)


def _rounds(query: Query, n_folds: int, seed: int) -> list[tuple[str, Tensor]]:
    """Return why groups are left out, and which."""
    targets_gt, folds = query.design.targets_gt > 0, range(n_folds)
    fold_g = _folds(_condition_of_group(query), n_folds, seed)
    fold_t = _folds(torch.arange(targets_gt.shape[1]), n_folds, seed)
    rounds = [("perturbation", fold_g == fold) for fold in folds]
    rounds += [("target", targets_gt[:, fold_t == fold].any(dim=1)) for fold in folds]
    if query.design.similarity_gp.shape[1] > 1:
        fold_g = _folds(torch.arange(len(targets_gt)), n_folds, seed)
        rounds += [("population", fold_g == fold) for fold in folds]
    return rounds


def _condition_of_group(query: Query) -> Tensor:
    """Return numbers that are equal for groups with the same targets."""
    return torch.unique(query.design.targets_gt, dim=0, return_inverse=True)[1]


def _folds(items: Tensor, n_folds: int, seed: int) -> Tensor:
    """Return folds of about equal size, the same one for equal items."""
    distinct, place = items.unique(return_inverse=True)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    return (order.argsort() % n_folds)[place]


def _train_net(
    model: EffectModel, rows: LeftOut, use_g: Tensor, config: EffectsConfig, seed: int
) -> EffectNet:
    """Train a network to predict what the mixed model missed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = EffectNet(rows.inputs.targets_gtnu.shape[-1], rows.inputs.genes_gnx.shape[-1])
    used = torch.nonzero(use_g)[:, 0]
    missed_gn = rows.observed_gn - rows.base.mean_gn
    weight_n = model.gene_sd.square() / model.gene_sd.square().mean()
    scale = (missed_gn[used].square() * weight_n).mean().clamp(min=1e-12)
    optimizer = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.n_steps)
    n_genes = missed_gn.shape[1]
    for _ in range(config.n_steps):
        group = used[torch.randint(len(used), (config.groups_per_step,), generator=generator)]
        gene = torch.randint(n_genes, (min(config.genes_per_step, n_genes),), generator=generator)
        group_g1, gene_1n = group[:, None], gene[None]
        correction = net(
            rows.inputs.targets_gtnu[group_g1, :, gene_1n].transpose(1, 2),
            rows.inputs.is_target_gt[group],
            rows.inputs.genes_gnx[group_g1, gene_1n],
        )
        # Robust, as a few genes change by many standard deviations.
        loss_gn = F.smooth_l1_loss(correction, missed_gn[group_g1, gene_1n], reduction="none")
        loss = (loss_gn * weight_n[gene]).mean() / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def _by_kind(rows: LeftOut, choose: Callable[[Tensor], float]) -> Tensor:
    """Return what is chosen for the rows of every kind, by where the targets were seen."""
    kinds = [rows.kind_g == kind for kind in (HERE, ELSEWHERE, NEVER)]
    if not bool(kinds[ELSEWHERE].any()):  # there is a single population
        kinds[ELSEWHERE] = kinds[HERE]
    return torch.tensor([choose(of_kind) for of_kind in kinds])


def _gate(
    rows: LeftOut, correction_gn: Tensor, weight_n: Tensor, condition_g: Tensor, used: Tensor
) -> float:
    """Return the weight of a correction that lowers the error by two standard errors, else 0."""
    # Rows of the same perturbation are not independent: each perturbation counts once.
    judges, judge_g = condition_g[used].unique(return_inverse=True)
    if len(judges) < MIN_JUDGED:
        return 0.0
    missed_gn = (rows.observed_gn - rows.base.mean_gn)[used]
    correction_gn = correction_gn[used]
    overlap_g = (missed_gn * correction_gn * weight_n).sum(dim=1)
    size_g = (correction_gn.square() * weight_n).sum(dim=1)
    weight = float((overlap_g.sum() / size_g.sum().clamp(min=1e-12)).clamp(0, 1))
    gain_g = 2 * weight * overlap_g - weight**2 * size_g
    gain = torch.zeros(len(judges)).index_add_(0, judge_g, gain_g) / torch.bincount(judge_g)
    is_sure = gain.mean() > MIN_STANDARD_ERRORS * gain.std() / len(gain) ** 0.5
    return weight if is_sure else 0.0


def _calibration(rows: LeftOut, error_gn: Tensor, used: Tensor) -> float:
    """Return the most likely factor of the standard deviation."""
    if int(used.sum()) < MIN_JUDGED:
        return 1.0
    squares_gn, noise_g1 = error_gn[used].square(), (1 / rows.n_cells_g[used])[:, None]

    def misfit(log_factor: Tensor) -> Tensor:
        variance_gn = (2 * log_factor).exp() * rows.base.variance_gn[used] + noise_g1
        return (variance_gn.log() + squares_gn / variance_gn).mean()

    return float(min(torch.linspace(-1.5, 1.5, 31), key=misfit).exp())
