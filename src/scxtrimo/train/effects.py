"""Fitting of an effect model, and what it predicts for perturbations it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..module.effects import EffectModel, NetInputs, Query
from ..nn import EffectNet, Prediction

MAX_NET_ENTRIES = 3_000_000
MIN_JUDGED = 5


@dataclass(frozen=True)
class EffectsConfig:
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
    """

    n_folds: int = 5
    correct: bool = True
    n_steps: int = 600
    lr: float = 3e-3
    weight_decay: float = 0.1
    groups_per_step: int = 16
    genes_per_step: int = 256

    def __post_init__(self) -> None:
        if self.n_folds < 2:
            raise ValueError(f"n_folds={self.n_folds} must be at least 2.")
        for name in ("n_steps", "lr", "groups_per_step", "genes_per_step"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay} must not be negative.")


class HeldOut(NamedTuple):
    """Perturbations predicted without having seen them.

    Parameters
    ----------
    group
        Which of the training groups, int64, shape ``(n_rows,)``; some come twice.
    without_targets
        Whether all with one of its targets were left out, or only this perturbation, bool, shape
        ``(n_rows,)``.
    is_unseen
        Which of its targets were not seen, bool, shape ``(n_rows, max_targets)``.
    predicted
        Effects in units of log-normalised expression, shape ``(n_rows, n_genes)``.
    std
        Their standard deviations, of the same shape.
    score
        Effects in units of their standard deviations, the noise of the control cells included.
    """

    group: np.ndarray
    without_targets: np.ndarray
    is_unseen: np.ndarray
    predicted: np.ndarray
    std: np.ndarray
    score: np.ndarray


class _Rows(NamedTuple):
    """Groups left out, what a mixed model without them knows, and what was observed."""

    group: Tensor
    without_targets: Tensor
    is_unseen_gt: Tensor
    inputs: NetInputs
    observed_gn: Tensor
    n_cells_g: Tensor

    @property
    def has_unseen_g(self) -> Tensor:
        """Which rows have a target that was not seen."""
        return self.is_unseen_gt.any(dim=1)


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
        The model, with its training data.
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
    What is predicted for every training group by a model that has not seen its perturbation, and
    by models that have not seen one of its targets.
    """
    model.mixed.fit(seed)
    update()
    with torch.no_grad():
        rows = _leave_out(model, query, config.n_folds, seed, update)
    correction_gn = torch.zeros_like(rows.observed_gn)
    model.gate.zero_()
    if config.correct:
        condition = _condition_of_group(query)[rows.group]
        folds = _folds(condition, 3, seed + 1)
        for fold in range(3):
            net = _train_net(model, rows, folds != fold, config, seed + fold)
            with torch.no_grad():
                correction_gn[folds == fold] = _apply(net, rows.inputs, folds == fold)
            update()
        model.gate.copy_(_choose_gate(model.gene_sd, rows, correction_gn))
        if bool(model.gate.any()):
            everything = torch.ones_like(rows.has_unseen_g)
            net = _train_net(model, rows, everything, config, seed)
            model.net.load_state_dict(net.state_dict())
        update()
    kind_g, base = rows.has_unseen_g.long(), rows.inputs.base
    correction_gn = model.gate[kind_g][:, None] * correction_gn
    predicted_gn = base.mean_gn + correction_gn
    model.calibration.copy_(_calibrate(rows, rows.observed_gn - predicted_gn))
    calibration_g1 = model.calibration[kind_g][:, None]
    score_gn = (base.effect_gn + correction_gn) / base.effect_variance_gn.sqrt() / calibration_g1
    return HeldOut(
        rows.group.numpy(),
        rows.without_targets.numpy(),
        rows.is_unseen_gt.numpy(),
        (predicted_gn * model.gene_sd).numpy(),
        (calibration_g1 * base.variance_gn.sqrt() * model.gene_sd).numpy(),
        score_gn.numpy(),
    )


def n_stages(config: EffectsConfig) -> int:
    """Return how often :func:`fit_effects` reports progress."""
    return 1 + 2 * config.n_folds + 4 * config.correct


def _leave_out(
    model: EffectModel, query: Query, n_folds: int, seed: int, update: Callable[[], object]
) -> _Rows:
    """Predict every group without its perturbation, and without all that have one target."""
    n_groups = len(query.design.targets_gt)
    max_rows = max(8, MAX_NET_ENTRIES // model.sizes.n_genes // 2)
    drawn = torch.zeros(n_groups, dtype=torch.bool)
    order = torch.randperm(n_groups, generator=torch.Generator().manual_seed(seed))
    drawn[order[:max_rows]] = True
    targets_gt = query.design.targets_gt > 0
    of_condition = _folds(_condition_of_group(query), n_folds, seed)
    of_target = _folds(torch.arange(targets_gt.shape[1]), n_folds, seed)
    parts = []
    for without_targets in (False, True):
        for fold in range(n_folds):
            if without_targets:
                is_out = targets_gt[:, of_target == fold].any(dim=1)
            else:
                is_out = of_condition == fold
            rows = torch.nonzero(is_out & drawn)[:, 0]
            if len(rows) > 0 and bool((~is_out).any()):
                mixed = model.mixed.without(~is_out)
                is_seen_t = targets_gt[~is_out].any(dim=0)
                asked = _as_if_seen(query.rows(rows), is_seen_t)
                parts.append(
                    _Rows(
                        rows,
                        torch.full((len(rows),), without_targets),
                        asked.is_target_gt & ~asked.is_known_gt,
                        model.inputs(asked, model.controls, mixed),
                        model.mixed.effects_gn[rows],
                        model.mixed.n_cells_g[rows],
                    )
                )
            update()
    inputs = NetInputs(
        Prediction(*_joined([part.inputs.base for part in parts])),
        *_joined([part.inputs[1:] for part in parts]),
    )
    joined = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in _Rows._fields
        if name != "inputs"
    }
    return _Rows(inputs=inputs, **joined)


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


def _as_if_seen(query: Query, is_seen_t: Tensor) -> Query:
    """Return the query to a model to which only some targets are known."""
    is_known = (query.singles.targets_gt * is_seen_t).sum(dim=1) > 0
    return query._replace(is_known_gt=is_known.view(query.is_known_gt.shape))


def _condition_of_group(query: Query) -> Tensor:
    """Return numbers that are equal for groups with the same targets."""
    return torch.unique(query.design.targets_gt, dim=0, return_inverse=True)[1]


def _folds(items: Tensor, n_folds: int, seed: int) -> Tensor:
    """Return folds of items, the same for equal ones, with about as many items each."""
    distinct, place = items.unique(return_inverse=True)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(len(distinct), dtype=torch.int64)
    fold[order] = torch.arange(len(distinct)) % n_folds
    return fold[place]


def _train_net(
    model: EffectModel, rows: _Rows, use_g: Tensor, config: EffectsConfig, seed: int
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


def _choose_gate(gene_sd: Tensor, rows: _Rows, correction_gn: Tensor) -> Tensor:
    """Return how much of the correction to use without and with unknown targets.

    It is used where it makes the squared error smaller by more than its standard error over the
    perturbations, so that chance is not taken for skill.
    """
    weight_n = gene_sd.square()
    missed_gn = rows.observed_gn - rows.inputs.base.mean_gn
    gate = torch.zeros(2)
    for has_unseen in (False, True):
        of_kind = rows.has_unseen_g == has_unseen
        if int(of_kind.sum()) < MIN_JUDGED:
            continue
        missed, correction = missed_gn[of_kind], correction_gn[of_kind]
        overlap = (missed * correction * weight_n).sum(dim=1)
        size = (correction.square() * weight_n).sum(dim=1)
        weight = float((overlap.sum() / size.sum().clamp(min=1e-12)).clamp(0, 1))
        gain = 2 * weight * overlap - weight**2 * size
        standard_error = gain.std() / len(gain) ** 0.5
        if gain.mean() > standard_error:
            gate[int(has_unseen)] = weight
    return gate


def _calibrate(rows: _Rows, error_gn: Tensor) -> Tensor:
    """Return the factors of the standard deviation that make the errors most likely.

    One for perturbations without and one with unseen targets.
    """
    noise_gn = (1 / rows.n_cells_g)[:, None].expand_as(error_gn)
    factors = torch.ones(2)
    for has_unseen in (False, True):
        of_kind = rows.has_unseen_g == has_unseen
        if int(of_kind.sum()) < MIN_JUDGED:
            continue
        best = torch.tensor(-torch.inf)
        for log_factor in torch.linspace(-1.5, 1.5, 31):
            variance_gn = (2 * log_factor).exp() * rows.inputs.base.variance_gn + noise_gn
            terms_gn = variance_gn.log() + error_gn.square() / variance_gn
            if (likelihood := -terms_gn[of_kind].mean()) > best:
                best, factors[int(has_unseen)] = likelihood, log_factor.exp()
    return factors
