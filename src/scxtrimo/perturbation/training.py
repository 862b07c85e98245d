"""Fitting of an effect model, and what it predicts for perturbations it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from .._validation import Validated
from .effect_data import ELSEWHERE, HERE, NEVER, NetInputs, Query
from .effects import EffectModel
from .leaving_out import LeftOut, condition_of_group, folds_of, leave_out, n_rounds
from .net import EffectNet

N_NET_FOLDS = 3
MIN_JUDGED = 8
MIN_STANDARD_ERRORS = 2.0


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
    """Perturbations predicted without having seen them.

    Parameters
    ----------
    group
        Which of the training groups, int64, shape ``(n_rows,)``; most come more than once.
    left_out
        What was left out: ``"perturbation"``, ``"target"`` or ``"population"``, of the same shape.
    is_unseen
        Which of its targets were then not seen anywhere, bool, shape ``(n_rows, max_targets)``.
    predicted
        Effects in units of log-normalised expression, shape ``(n_rows, n_genes)``.
    std
        Their standard deviations, of the same shape.
    score
        Effects in units of their standard deviations, the noise of the control cells included.
    """

    group: np.ndarray
    left_out: np.ndarray
    is_unseen: np.ndarray
    predicted: np.ndarray
    std: np.ndarray
    score: np.ndarray


def fit_effects(
    model: EffectModel,
    query: Query,
    config: EffectsConfig,
    seed: int,
    update: Callable[[], object] = lambda: None,
) -> HeldOut:
    """Fit variances, the correcting network, its weight and the calibration.

    Parameters
    ----------
    model
        The model, with its training data: at least two perturbations.
    query
        The training groups.
    config
        Folds and training.
    seed
        Seed of folds and network.
    update
        Called after each of the :func:`n_stages`.

    Returns
    -------
    What is predicted for the training groups by models that have not seen their perturbation, one
    of its targets, or the perturbation in this population.
    """
    model.mixed.fit(seed)
    update()
    with torch.no_grad():
        rows = leave_out(model, query, config.n_folds, seed, update)
    correction_gn = torch.zeros_like(rows.observed_gn)
    model.gate.zero_()
    if config.correct:
        condition_g = condition_of_group(query)[rows.group]
        fold_g = folds_of(condition_g, N_NET_FOLDS, seed + 1)
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
    """Return how often :func:`fit_effects` reports progress."""
    n_populations = model.sizes.n_populations
    return 1 + n_rounds(config.n_folds, n_populations) + (N_NET_FOLDS + 1) * config.correct


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
        # Single outliers must not decide: a few genes change by many standard deviations.
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
    rows = torch.nonzero(use_g)[:, 0]
    parts = [
        net(known.targets_gtnu[part], known.is_target_gt[part], known.genes_gnx[part])
        for part in rows.split(16)
    ]
    return torch.cat(parts) if parts else known.base.mean_gn[rows]


def _choose_gate(
    gene_sd: Tensor, rows: LeftOut, correction_gn: Tensor, condition_g: Tensor
) -> Tensor:
    """Return how much of the correction to use, by where the targets were seen.

    It is used where it makes the squared error smaller by more than twice its standard error over
    the perturbations, so that chance is not taken for skill.
    """
    weight_n = gene_sd.square()
    missed_gn = rows.observed_gn - rows.inputs.base.mean_gn
    gate = torch.zeros(3)
    for kind in (HERE, ELSEWHERE, NEVER):
        of_kind = rows.kind_g == kind
        # Rows of the same perturbation are no independent judges.
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
    if not bool((rows.kind_g == ELSEWHERE).any()):  # a single population: nothing to judge it by
        gate[ELSEWHERE] = gate[HERE]
    return gate


def _calibrate(rows: LeftOut, error_gn: Tensor) -> Tensor:
    """Return the factors of the standard deviation that make the errors most likely.

    By where the targets were seen.
    """
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
