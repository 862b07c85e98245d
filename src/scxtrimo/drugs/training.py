"""Training of models of drugs and cell lines, and their predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from .._logging import logger
from .._validation import Validated
from .module import DrugModule, ResponseBase, ScreenScale
from .molecules import Molecule, collate_molecules

WARM_UP = 0.1
MAX_GRADIENT = 1.0
ROWS_AT_A_TIME = 8192
MAX_STAND_INS = 32
MIN_CALIBRATED = 20
NEW_FRACTION = 0.25
MIN_KNOWN = 6
MIN_JUDGED = 30
WEIGHTS = np.linspace(0, 1, 21)


@dataclass(frozen=True)
class DrugTraining(Validated):
    """How a model of drugs and cell lines is trained.

    Parameters
    ----------
    max_epochs
        Epochs over the training rows. The learning rate decays to 0 over them.
    lr, weight_decay
        Learning rate and weight decay of AdamW.
    batch_size
        Rows per step; by default a twentieth of the training rows, from 128 to 2048.
    lines_per_step
        Distinct cell lines per step. Each is encoded once.
    rows_per_epoch
        Rows after which an epoch ends; in a larger screen, each epoch uses a random part.
    patience
        Training stops after this many epochs without a lower validation loss.

    Raises
    ------
    ValueError
        If a field has an impossible value.

    Examples
    --------
    >>> from scxtrimo.drugs import DrugTraining
    >>> DrugTraining(batch_size=512).max_epochs
    20
    """

    max_epochs: PositiveInt = 20
    lr: PositiveFloat = 2e-3
    weight_decay: NonNegativeFloat = 0.03
    batch_size: PositiveInt | None = None
    lines_per_step: PositiveInt = 12
    rows_per_epoch: PositiveInt = 32_768
    patience: PositiveInt = 8


@dataclass
class DrugRows:
    """Rows of a screen, with the distinct drugs and lines they refer to.

    ``known_d`` and ``known_l`` are places in the model, -1 for new drugs and lines; expression is
    standardised, NaN where not measured; targets are classes or standardised responses.
    """

    molecules: Sequence[Molecule]
    known_d: Tensor
    values_lg: Tensor
    known_l: Tensor
    read_genes: Tensor
    drugs_nd: Tensor
    lines_n: Tensor
    target_n: Tensor = field(default_factory=lambda: torch.zeros(0))
    has_classes: bool = False

    def drugs(self, which_d: Tensor) -> dict[str, Tensor]:
        """Return some of the drugs as the network reads them."""
        collated = collate_molecules([self.molecules[i] for i in which_d.tolist()])
        return collated | {"known_d": self.known_d[which_d]}

    def lines(self, which_l: Tensor, gene_dropout: float = 0.0) -> dict[str, Tensor]:
        """Return some of the lines as the network reads them: a ragged batch of tokens."""
        values_lg = self.values_lg[which_l][:, self.read_genes]
        is_there_lg = ~values_lg.isnan()
        if gene_dropout:
            dropped_l = gene_dropout * torch.rand(len(values_lg), 1)
            is_there_lg &= torch.rand(values_lg.shape) >= dropped_l
        cu_seqlens = torch.zeros(len(values_lg) + 1, dtype=torch.int32)
        cu_seqlens[1:] = is_there_lg.sum(1).cumsum(0)
        return {
            "values_t": values_lg[is_there_lg],
            "gene_ids_t": is_there_lg.nonzero(as_tuple=True)[1],
            "cu_seqlens": cu_seqlens,
            "known_l": self.known_l[which_l],
        }


def fit(
    module: DrugModule,
    data: DrugRows,
    is_trained_n: np.ndarray,
    is_held_out_n: np.ndarray,
    training: DrugTraining,
    seed: int,
    device: torch.device,
    progress_bar: bool = True,
    description: str = "Training",
) -> dict[str, list[float]]:
    """Train a module in place, keep the best weights on the held-out rows, and return losses."""
    rows = torch.from_numpy(np.flatnonzero(is_trained_n))
    held_out = torch.from_numpy(np.flatnonzero(is_held_out_n))
    size = training.batch_size or min(max(len(rows) // 20, 128), 2048)
    history: dict[str, list[float]] = {"train_loss": [], "validation_loss": []}
    module.to(device)
    best, best_epoch, weights = math.inf, -1, _copy_weights(module)
    if isinstance(module.base, ResponseBase):  # the closed-form start may already be best
        best = _loss_of(module, data, held_out)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=training.lr, weight_decay=training.weight_decay
        )
        bar = tqdm(range(training.max_epochs), desc=description, disable=not progress_bar)
        for epoch in bar:
            module.train()
            batches = list(_batches(data, rows, size, training))
            losses = []
            try:
                for i, batch in enumerate(batches):
                    progress = (epoch + i / len(batches)) / training.max_epochs
                    for group in optimizer.param_groups:
                        group["lr"] = training.lr * _lr_fraction(progress)
                    losses.append(_step(module, optimizer, data, batch))
            except KeyboardInterrupt:
                if best_epoch < 0:
                    raise
                logger.info(f"Interrupted: the weights of epoch {best_epoch} are kept.")
                break
            history["train_loss"].append(float(np.mean(losses)))
            loss = _loss_of(module, data, held_out)
            history["validation_loss"].append(loss)
            if not math.isfinite(loss + history["train_loss"][-1]):
                raise FloatingPointError(
                    f"The loss is NaN or infinite in epoch {epoch}. Train with a lower "
                    f"learning rate than lr={training.lr:g}."
                )
            bar.set_postfix(validation_loss=f"{loss:.3f}")
            if loss < best:
                best, best_epoch, weights = loss, epoch, _copy_weights(module)
            elif epoch - best_epoch >= training.patience:
                break
        bar.close()
    module.load_state_dict(weights)
    module.eval()
    return history


def _batches(data: DrugRows, rows: Tensor, size: int, training: DrugTraining) -> Iterator[Tensor]:
    """Yield rows of few cell lines at a time, because encoding lines is the main cost."""
    rows = rows[torch.randperm(len(rows))]
    lines, line_n = data.lines_n[rows].unique(return_inverse=True)
    n_groups = math.ceil(len(lines) / training.lines_per_step)
    group_n = (torch.randperm(len(lines)) % n_groups)[line_n]
    parts = [part for g in range(n_groups) for part in rows[group_n == g].split(size)]
    n_rows = 0
    for i in torch.randperm(len(parts)).tolist():
        yield parts[i]
        n_rows += len(parts[i])
        if n_rows >= training.rows_per_epoch:
            return


def _lr_fraction(progress: float) -> float:
    """Rise for a tenth of the training, then fall along a cosine."""
    if progress < WARM_UP:
        return 0.04 + 0.96 * progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def _step(
    module: DrugModule, optimizer: torch.optim.Optimizer, data: DrugRows, batch: Tensor
) -> float:
    which_d, drug_place = data.drugs_nd[batch].unique(return_inverse=True)
    which_l, line_place = data.lines_n[batch].unique(return_inverse=True)
    drugs_dh, lines_lh = _encode(module, data, which_d, which_l, module.config.gene_dropout)
    z_kn = module(drugs_dh, lines_lh, drug_place, line_place)
    # The loss is per member: with a loss of their mean, members could be wrong together.
    target_kn = data.target_n[batch].to(module.device).expand_as(z_kn)
    loss = _loss(z_kn, target_kn, data.has_classes)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), MAX_GRADIENT)
    optimizer.step()
    return float(loss.detach())


def _loss(z: Tensor, target: Tensor, has_classes: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, target) if has_classes else F.mse_loss(z, target)


def _loss_of(module: DrugModule, data: DrugRows, rows: Tensor) -> float:
    """Return the loss of the mean of the members."""
    z_kn, _ = predict_members(module, data, rows)
    return float(_loss(z_kn.mean(0), data.target_n[rows], data.has_classes))


def _copy_weights(module: DrugModule) -> dict[str, Tensor]:
    return {name: x.detach().cpu().clone() for name, x in module.state_dict().items()}


def _encode(
    module: DrugModule, data: DrugRows, which_d: Tensor, which_l: Tensor, gene_dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the vectors of some of the drugs and of the lines."""
    batches = data.drugs(which_d), data.lines(which_l, gene_dropout)
    drugs, lines = ({name: x.to(module.device) for name, x in b.items()} for b in batches)
    return module.drugs(drugs), module.lines(lines)


@torch.no_grad()
def predict_members(
    module: DrugModule, data: DrugRows, rows: Tensor | None = None, known: DrugRows | None = None
) -> tuple[Tensor, Tensor]:
    """Return predictions ``(n_members, n_rows)`` and their variance among stand-ins ``(n_rows,)``.

    Predictions for new drugs and lines are shrunk to the mean over known ones in their place
    (stand-ins, of ``known`` or ``data``) by ``module.own_weight``, as a few dozen known ones say
    little about new ones. Response models have a base for what is new instead.
    """
    module.eval()
    known = data if known is None else known
    rows = torch.arange(len(data.lines_n)) if rows is None else rows
    which_d, drug_place = data.drugs_nd[rows].unique(return_inverse=True)
    which_l, line_place = data.lines_n[rows].unique(return_inverse=True)
    drugs_dh, lines_lh = _encode(module, data, which_d, which_l)
    z_kn = _predict(module, drugs_dh, lines_lh, drug_place, line_place)
    spread_n = torch.zeros(len(rows))
    known_nd = data.known_d[which_d][drug_place]
    new_nd, new_n = known_nd < 0, data.known_l[which_l][line_place] < 0
    if isinstance(module.base, ResponseBase) or not (new_nd.any() or new_n.any()):
        return z_kn, spread_n
    stand_in_d, stand_in_l = _stand_ins(known.known_d), _stand_ins(known.known_l)
    n_drugs, n_lines = len(drugs_dh), len(lines_lh)
    encoded = zip(
        (drugs_dh, lines_lh), _encode(module, known, stand_in_d, stand_in_l), strict=True
    )
    drugs_dh, lines_lh = map(torch.cat, encoded)
    for has_new_drug, has_new_line in ((True, False), (False, True), (True, True)):
        group = torch.nonzero((new_nd.any(1) == has_new_drug) & (new_n == has_new_line))[:, 0]
        if not len(group):
            continue
        n = max(has_new_drug * len(stand_in_d), has_new_line * len(stand_in_l))
        z_ikn = []
        for i in range(n):
            chosen_nd = _distinct(i % len(stand_in_d), known.known_d[stand_in_d], known_nd[group])
            drugs_nd = torch.where(new_nd[group], n_drugs + chosen_nd, drug_place[group])
            lines_n = line_place[group].masked_fill(new_n[group], n_lines + i % len(stand_in_l))
            z_ikn.append(_predict(module, drugs_dh, lines_lh, drugs_nd, lines_n))
        stacked_ikn = torch.stack(z_ikn)
        spread_n[group] = stacked_ikn.mean(1).var(0, correction=0)
        weight = float(module.own_weight.cpu()[[has_new_drug, has_new_line]].min())
        z_kn[:, group] = weight * z_kn[:, group] + (1 - weight) * stacked_ikn.mean(0)
    return z_kn, spread_n


def _distinct(i: int, stand_in_d: Tensor, known_nd: Tensor) -> Tensor:
    """Return the stand-in of every drug; it differs from the other drug of the row."""
    n = len(stand_in_d)
    chosen_nd = torch.full_like(known_nd, i)
    if known_nd.shape[1] == 2:
        both_new_n = (known_nd < 0).all(dim=1)
        chosen_nd[:, 1] = torch.where(both_new_n, (i + max(n // 2, 1)) % n, i)
        is_partner_nd = stand_in_d[chosen_nd] == known_nd.flip(1)
        chosen_nd = torch.where(is_partner_nd, (chosen_nd + 1) % n, chosen_nd)
    return chosen_nd


def _stand_ins(known: Tensor) -> Tensor:
    """Return up to a few dozen of the known drugs or lines, evenly spaced."""
    which = torch.nonzero(known >= 0)[:, 0]
    if len(which) <= MAX_STAND_INS:
        return which
    return which[torch.linspace(0, len(which) - 1, MAX_STAND_INS).long()]


def _predict(
    module: DrugModule, drugs_dh: Tensor, lines_lh: Tensor, drugs_nd: Tensor, lines_n: Tensor
) -> Tensor:
    """Return predictions of the members on the CPU, some thousand rows at a time."""
    parts = zip(drugs_nd.split(ROWS_AT_A_TIME), lines_n.split(ROWS_AT_A_TIME), strict=True)
    return torch.cat([module(drugs_dh, lines_lh, d, n).cpu() for d, n in parts], dim=1)


def offset_and_scale(module: DrugModule, data: DrugRows) -> tuple[np.ndarray, np.ndarray]:
    """Return what the predictions of the network are relative to, in every row."""
    base, n = module.base, len(data.lines_n)
    if isinstance(base, ScreenScale):
        return np.full(n, float(base.mean)), np.full(n, float(base.std))
    features = np.stack([molecule.features_f for molecule in data.molecules])
    inputs = torch.from_numpy(features), data.known_d, data.values_lg, data.known_l
    table_ld, scale_d = (
        tensor.cpu().double().numpy() for tensor in base(*(x.to(module.device) for x in inputs))
    )
    drug_n = data.drugs_nd[:, 0].numpy()
    return table_ld[data.lines_n.numpy(), drug_n], scale_d[drug_n]


def calibrate(module: DrugModule, data: DrugRows, rows: Tensor) -> None:
    """Fit slope and offset of the logits to the classes of held-out rows (Platt scaling)."""
    z_n = predict_members(module, data, rows)[0].mean(0)
    codes = data.target_n[rows].numpy().astype(np.int64)
    if len(codes) < MIN_CALIBRATED or len(np.unique(codes)) < 2:
        logger.info(
            f"{len(codes)} validation rows with the labels {sorted(set(codes.tolist()))} are too "
            "few to calibrate probabilities. Interpret probabilities with care."
        )
        return
    # C is so large that only separable classes are penalised noticeably.
    platt = LogisticRegression(C=1e3).fit(z_n[:, None].double().numpy(), codes)
    if platt.coef_[0, 0] > 0:
        module.temperature.fill_(float(1 / platt.coef_[0, 0]))
        module.log_odds.fill_(float(platt.intercept_[0]))


class Newcomers(NamedTuple):
    """Masks of rows if some drugs and lines were new: nothing, only drugs, only the line new."""

    is_known_n: np.ndarray
    has_new_drug_n: np.ndarray
    has_new_line_n: np.ndarray


def draw_newcomers(
    parents_nd: np.ndarray, lines_n: np.ndarray, is_trained_n: np.ndarray, seed: int
) -> Newcomers | None:
    """Treat a quarter of the drugs and of the lines as new; ``None`` if there are too few."""
    rng = np.random.default_rng(seed)
    new = []
    for items in (parents_nd[is_trained_n], lines_n[is_trained_n]):
        known = np.unique(items)
        n_new = round(NEW_FRACTION * len(known)) if len(known) >= MIN_KNOWN else 0
        new.append(rng.permutation(known)[:n_new])
    drug_n, line_n = np.isin(parents_nd, new[0]).any(axis=1), np.isin(lines_n, new[1])
    drawn = Newcomers(
        is_trained_n & ~drug_n & ~line_n,
        is_trained_n & drug_n & ~line_n,
        is_trained_n & line_n & ~drug_n,
    )
    enough = drawn.is_known_n.sum() >= 2 * MIN_JUDGED
    judged = max(drawn.has_new_drug_n.sum(), drawn.has_new_line_n.sum()) >= MIN_JUDGED
    return drawn if enough and judged else None


def own_weights(module: DrugModule, data: DrugRows, newcomers: Newcomers) -> Tensor:
    """Return ``own_weight`` for new drugs and lines, of a module trained without the newcomers."""
    weights = torch.full((2,), 0.5)
    for i, is_judge_n in enumerate((newcomers.has_new_drug_n, newcomers.has_new_line_n)):
        judges = torch.from_numpy(np.flatnonzero(is_judge_n))
        if len(judges) < MIN_JUDGED:
            continue
        z = []
        for weight in (1.0, 0.0):
            module.own_weight.fill_(weight)
            z.append(predict_members(module, data, judges)[0].double().mean(0).numpy())
        target_n = data.target_n[judges].numpy()
        chosen = choose_own_weight(z[0], z[1], target_n, data.has_classes)
        if chosen is not None:
            weights[i] = chosen
    return weights


def choose_own_weight(
    own_n: np.ndarray, known_n: np.ndarray, target_n: np.ndarray, has_classes: bool
) -> float | None:
    """Return the best weight of own predictions against those of stand-ins, if there is data."""
    if len(target_n) < MIN_JUDGED or len(np.unique(target_n)) < 2:
        return None
    losses = []
    for weight in WEIGHTS:
        z_n = weight * own_n + (1 - weight) * known_n
        if has_classes:
            platt = LogisticRegression(C=1e3).fit(z_n[:, None], target_n)
            losses.append(log_loss(target_n, platt.predict_proba(z_n[:, None])[:, 1]))
        else:
            losses.append(float(np.square(z_n - target_n).mean()))
    return float(WEIGHTS[int(np.argmin(losses))])
