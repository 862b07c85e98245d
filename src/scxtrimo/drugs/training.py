"""Training of models of drugs and cell lines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from .module import DrugModule, ResponseBase
from .molecules import Molecule, collate_molecules
from .screen import collate_lines


@dataclass
class DrugRows:
    """Rows of a screen as tensors, with the drugs and lines they refer to.

    Parameters
    ----------
    molecules
        The distinct drugs.
    known_d
        Their places among the drugs of the model, int64, -1 for new ones.
    values_lg
        Standardised expression of the lines, NaN where not measured.
    known_l
        Their places among the lines of the model, int64, -1 for new ones.
    read_genes
        Which of the genes the encoder reads, int64.
    drugs_nd, lines_n
        Drugs and line of every row, int64.
    target_n
        Classes or standardised responses, float32, if they are known.
    """

    molecules: Sequence[Molecule]
    known_d: Tensor
    values_lg: Tensor
    known_l: Tensor
    read_genes: Tensor
    drugs_nd: Tensor
    lines_n: Tensor
    target_n: Tensor | None = None

    def drugs(self, which_d: Tensor) -> dict[str, Tensor]:
        """Return some of the drugs as the network reads them."""
        collated = collate_molecules([self.molecules[i] for i in which_d.tolist()])
        return collated | {"known_d": self.known_d[which_d]}

    def lines(self, which_l: Tensor, gene_dropout: float = 0.0) -> dict[str, Tensor]:
        """Return some of the lines as the network reads them."""
        values_lg = self.values_lg[which_l][:, self.read_genes]
        keep_lg = None
        if gene_dropout:
            dropped_l = gene_dropout * torch.rand(len(values_lg), 1)
            keep_lg = torch.rand(values_lg.shape) >= dropped_l
        return collate_lines(values_lg, keep_lg) | {"known_l": self.known_l[which_l]}


PART = 0.25
MIN_KNOWN = 6
MIN_JUDGED = 30
WEIGHTS = np.linspace(0, 1, 21)


class Newcomers(NamedTuple):
    """Rows of a screen as they would be with fewer drugs and lines known.

    Parameters
    ----------
    is_known_n
        Rows without a drug or line that is taken for new, bool.
    has_new_drug_n, has_new_line_n
        Rows with nothing new but one or both drugs, and nothing but the line, bool.
    """

    is_known_n: np.ndarray
    has_new_drug_n: np.ndarray
    has_new_line_n: np.ndarray


def draw_newcomers(
    parents_nd: np.ndarray, lines_n: np.ndarray, is_trained_n: np.ndarray, seed: int
) -> Newcomers | None:
    """Take a quarter of the drugs and of the lines for new.

    Parameters
    ----------
    parents_nd
        Parent structures of the drugs of every row, as numbers.
    lines_n
        Line of every row.
    is_trained_n
        Rows to draw from, bool.
    seed
        Which ones.

    Returns
    -------
    ``None`` if there are too few drugs and lines, or rows.
    """
    rng = np.random.default_rng(seed)
    new = []
    for items in (parents_nd[is_trained_n], lines_n[is_trained_n]):
        known = np.unique(items)
        n_new = round(PART * len(known)) if len(known) >= MIN_KNOWN else 0
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


def choose_own_weight(
    own_n: np.ndarray, known_n: np.ndarray, target_n: np.ndarray, is_classification: bool
) -> float | None:
    """Return the weight with which rows with something new are predicted best.

    Parameters
    ----------
    own_n
        Their own predictions, logits or standardised scores.
    known_n
        The mean of those of known drugs or lines in the place of the new ones.
    target_n
        Labels or standardised scores.
    is_classification
        Whether targets are labels. Slope and offset of the logits are then fitted as well.

    Returns
    -------
    ``None`` if there are too few rows, or labels of one kind only.
    """
    if len(target_n) < MIN_JUDGED or len(np.unique(target_n)) < 2:
        return None
    losses = []
    for weight in WEIGHTS:
        z_n = weight * own_n + (1 - weight) * known_n
        if is_classification:
            platt = LogisticRegression(C=1e3).fit(z_n[:, None], target_n)
            losses.append(log_loss(target_n, platt.predict_proba(z_n[:, None])[:, 1]))
        else:
            losses.append(float(np.square(z_n - target_n).mean()))
    return float(WEIGHTS[int(np.argmin(losses))])


WARM_UP = 0.1
MAX_GRADIENT = 1.0
ROWS_AT_A_TIME = 8192
MAX_STAND_INS = 32
MIN_CALIBRATED = 20


@dataclass(frozen=True)
class DrugTraining(Validated):
    """How a model of drugs and cell lines is trained.

    Parameters
    ----------
    max_epochs
        Epochs over the training rows; the learning rate ends at 0 with them.
    lr, weight_decay
        Of AdamW.
    batch_size
        Rows per step; by default a twentieth of them, from 128 to 2048.
    lines_per_step
        Distinct cell lines per step, each of which is encoded once.
    rows_per_epoch
        Rows after which an epoch ends; of a larger screen, an epoch sees a part drawn at random.
    patience
        Epochs without a better validation loss after which training stops.

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


def _batches(data: DrugRows, rows: Tensor, size: int, training: DrugTraining) -> Iterator[Tensor]:
    """Yield rows of few cell lines at a time, as encoding lines costs most."""
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


def fit(
    module: DrugModule,
    data: DrugRows,
    is_trained_n: np.ndarray,
    is_validation_n: np.ndarray,
    is_classification: bool,
    training: DrugTraining,
    seed: int,
    device: torch.device,
    enable_progress_bar: bool = True,
    description: str = "Training",
) -> dict[str, list[float]]:
    """Train a module and leave it with the weights that were best on the validation rows.

    Parameters
    ----------
    module
        What is trained, in place; data-driven starts are set.
    data
        All rows.
    is_trained_n, is_validation_n
        Which of them to train and to validate on.
    is_classification
        Whether targets are classes, else standardised responses.
    training
        How to train.
    seed
        Of batches, dropout and all else that is drawn.
    device
        Where to train.
    enable_progress_bar, description
        Whether to show one, and what it is called.

    Returns
    -------
    Losses of every epoch.

    Raises
    ------
    FloatingPointError
        If the loss is NaN or infinite.
    """
    assert data.target_n is not None
    rows = torch.from_numpy(np.flatnonzero(is_trained_n))
    held_out = torch.from_numpy(np.flatnonzero(is_validation_n))
    size = training.batch_size or min(max(len(rows) // 20, 128), 2048)
    history: dict[str, list[float]] = {"train_loss": [], "validation_loss": []}
    module.to(device)
    best, best_epoch, weights = math.inf, -1, _copy_weights(module)
    if isinstance(module.base, ResponseBase):  # it starts as its base, which may be best
        best = _loss_of(module, data, device, held_out, is_classification)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=training.lr, weight_decay=training.weight_decay
        )
        bar = tqdm(range(training.max_epochs), desc=description, disable=not enable_progress_bar)
        for epoch in bar:
            module.train()
            batches = list(_batches(data, rows, size, training))
            losses = []
            try:
                for i, batch in enumerate(batches):
                    progress = (epoch + i / len(batches)) / training.max_epochs
                    for group in optimizer.param_groups:
                        group["lr"] = training.lr * _lr_fraction(progress)
                    losses.append(_step(module, optimizer, data, batch, is_classification, device))
            except KeyboardInterrupt:
                if best_epoch < 0:
                    raise
                logger.info(f"Interrupted: the weights of epoch {best_epoch} are kept.")
                break
            history["train_loss"].append(float(np.mean(losses)))
            loss = _loss_of(module, data, device, held_out, is_classification)
            history["validation_loss"].append(loss)
            if not math.isfinite(loss + history["train_loss"][-1]):
                raise FloatingPointError(
                    f"The loss is NaN or infinite in epoch {epoch}. Train with a lower "
                    f"learning rate than lr={training.lr:g}."
                )
            bar.set_postfix(validation_loss=f"{loss:.3f}")
            if loss < best:
                best, best_epoch = loss, epoch
                weights = _copy_weights(module)
            elif epoch - best_epoch >= training.patience:
                break
        bar.close()
    module.load_state_dict(weights)
    module.eval()
    return history


def _lr_fraction(progress: float) -> float:
    """Rise for a tenth of the training, then fall along a cosine."""
    if progress < WARM_UP:
        return 0.04 + 0.96 * progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def _step(
    module: DrugModule,
    optimizer: torch.optim.Optimizer,
    data: DrugRows,
    batch: Tensor,
    is_classification: bool,
    device: torch.device,
) -> float:
    assert data.target_n is not None
    drugs_nd, lines_n, target_n = data.drugs_nd[batch], data.lines_n[batch], data.target_n[batch]
    which_d, drug_place = drugs_nd.unique(return_inverse=True)
    which_l, line_place = lines_n.unique(return_inverse=True)
    z_kn = module(
        _to(data.drugs(which_d), device),
        _to(data.lines(which_l, module.config.gene_dropout), device),
        drug_place.to(device),
        line_place.to(device),
    )
    # Every member has a loss of its own: that of their mean would let them be wrong together.
    loss = _loss(z_kn, target_n.to(device).expand_as(z_kn), is_classification)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), MAX_GRADIENT)
    optimizer.step()
    return float(loss.detach())


def _loss(z: Tensor, target: Tensor, is_classification: bool) -> Tensor:
    if is_classification:
        return F.binary_cross_entropy_with_logits(z, target)
    return F.mse_loss(z, target)


def _loss_of(
    module: DrugModule, data: DrugRows, device: torch.device, rows: Tensor, is_classification: bool
) -> float:
    """Return the loss of the mean of the members."""
    assert data.target_n is not None
    z_kn, _ = predict_members(module, data, device, rows, _known(module, data))
    return float(_loss(z_kn.mean(0), data.target_n[rows], is_classification))


def _known(module: DrugModule, data: DrugRows) -> DrugRows | None:
    """Return where stand-ins come from; a response model has its base for what is new."""
    return None if isinstance(module.base, ResponseBase) else data


def _copy_weights(module: DrugModule) -> dict[str, Tensor]:
    return {name: x.detach().cpu().clone() for name, x in module.state_dict().items()}


def _to(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def predict_members(
    module: DrugModule,
    data: DrugRows,
    device: torch.device,
    rows: Tensor | None = None,
    known: DrugRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Return standardised predictions or logits of all members, and how far known ones differ.

    Every drug and line is encoded once.

    Parameters
    ----------
    module, data, device
        See :func:`fit`.
    rows
        Which rows; by default all.
    known
        Drugs and lines that were trained on. A few dozen of either say little about how new ones
        differ, so that predictions for these are drawn to the mean over the known ones in their
        place, as far as ``module.own_weight`` says.

    Returns
    -------
    Predictions, shape ``(n_members, n_rows)``, and the variance among known drugs and lines in
    the place of new ones, shape ``(n_rows,)``, 0 where nothing is new; on the CPU.
    """
    module.eval()
    rows = torch.arange(len(data.lines_n)) if rows is None else rows
    which_d, drug_place = data.drugs_nd[rows].unique(return_inverse=True)
    which_l, line_place = data.lines_n[rows].unique(return_inverse=True)
    drugs_dh = module.drugs(_to(data.drugs(which_d), device))
    lines_lh = module.lines(_to(data.lines(which_l), device))
    z_kn = _predict(module, drugs_dh, lines_lh, drug_place, line_place)
    spread_n = torch.zeros(len(rows))
    known_nd = data.known_d[which_d][drug_place]
    new_nd, new_n = known_nd < 0, data.known_l[which_l][line_place] < 0
    if known is None or not (new_nd.any() or new_n.any()):
        return z_kn, spread_n
    stand_in_d, stand_in_l = _stand_ins(known.known_d), _stand_ins(known.known_l)
    n_drugs, n_lines = len(drugs_dh), len(lines_lh)
    drugs_dh = torch.cat([drugs_dh, module.drugs(_to(known.drugs(stand_in_d), device))])
    lines_lh = torch.cat([lines_lh, module.lines(_to(known.lines(stand_in_l), device))])
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
        weights = module.own_weight.cpu()[[has_new_drug, has_new_line]]
        weight = float(weights.min())
        z_kn[:, group] = weight * z_kn[:, group] + (1 - weight) * stacked_ikn.mean(0)
    return z_kn, spread_n


def _distinct(i: int, stand_in_d: Tensor, known_nd: Tensor) -> Tensor:
    """Return which stand-in every drug of a row gets: never the same twice, nor its partner.

    A drug with itself is not what the two would be, and is not among the training rows.
    """
    n = len(stand_in_d)
    chosen_nd = torch.full_like(known_nd, i)
    if known_nd.shape[1] == 2:
        both_new_n = (known_nd < 0).all(dim=1)
        chosen_nd[:, 1] = torch.where(both_new_n, (i + max(n // 2, 1)) % n, i)
        is_partner_nd = stand_in_d[chosen_nd] == known_nd.flip(1)
        chosen_nd = torch.where(is_partner_nd, (chosen_nd + 1) % n, chosen_nd)
    return chosen_nd


def _stand_ins(known: Tensor) -> Tensor:
    """Return up to a few dozen of those that are known, evenly spaced."""
    which = torch.nonzero(known >= 0)[:, 0]
    if len(which) <= MAX_STAND_INS:
        return which
    return which[torch.linspace(0, len(which) - 1, MAX_STAND_INS).long()]


def _predict(
    module: DrugModule, drugs_dh: Tensor, lines_lh: Tensor, drugs_nd: Tensor, lines_n: Tensor
) -> Tensor:
    """Return predictions of the members on the CPU, some thousand rows at a time."""
    device = drugs_dh.device
    parts = zip(drugs_nd.split(ROWS_AT_A_TIME), lines_n.split(ROWS_AT_A_TIME), strict=True)
    return torch.cat(
        [
            module.predict_rows(drugs_dh, lines_lh, d.to(device), n.to(device)).cpu()
            for d, n in parts
        ],
        dim=1,
    )


def calibrate(module: DrugModule, data: DrugRows, rows: Tensor, device: torch.device) -> None:
    """Choose slope and offset of the logits under which the classes of some rows are most likely.

    Parameters
    ----------
    module, data, device
        See :func:`fit`.
    rows
        Rows that were not trained on.
    """
    assert data.target_n is not None
    z_n = predict_members(module, data, device, rows, _known(module, data))[0].mean(0)
    codes = data.target_n[rows].numpy().astype(np.int64)
    if len(codes) < MIN_CALIBRATED or len(np.unique(codes)) < 2:
        logger.info(
            f"{len(codes)} validation rows with the labels {sorted(set(codes.tolist()))} are too "
            "few to calibrate probabilities on: take them with care."
        )
        return
    # Slope and offset (Platt), of all but separable classes hardly penalised.
    platt = LogisticRegression(C=1e3).fit(z_n[:, None].double().numpy(), codes)
    if platt.coef_[0, 0] > 0:
        module.temperature.fill_(float(1 / platt.coef_[0, 0]))
        module.log_odds.fill_(float(platt.intercept_[0]))
