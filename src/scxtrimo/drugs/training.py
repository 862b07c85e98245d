"""Training of models of drugs and cell lines, and their predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
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
MAX_STAND_INS = 32
MIN_JUDGED = 30
History = dict[str, pd.DataFrame]


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
    """Rows of a screen, with the distinct drugs and lines they refer to."""

    molecules: Sequence[Molecule]
    known_d: Tensor  # places of the drugs in the model, -1 for new ones
    values_lg: Tensor  # standardised expression, NaN where not measured
    known_l: Tensor
    read_genes: Tensor
    drugs_nd: Tensor
    lines_n: Tensor
    target_n: Tensor = field(default_factory=lambda: torch.zeros(0))
    has_classes: bool = False

    def at(self, which_n: np.ndarray) -> DrugRows:
        """Return some of the rows, by place or as a mask."""
        rows = self.drugs_nd[which_n], self.lines_n[which_n], self.target_n[which_n]
        return replace(self, drugs_nd=rows[0], lines_n=rows[1], target_n=rows[2])

    def lines(self, which_l: Tensor, gene_dropout: float) -> dict[str, Tensor]:
        """Return some of the lines as the network reads them: a ragged batch of tokens."""
        values_lg = self.values_lg[which_l][:, self.read_genes]
        is_there_lg = ~values_lg.isnan()
        if gene_dropout:
            dropped_l1 = gene_dropout * torch.rand(len(values_lg), 1)
            is_there_lg &= torch.rand(values_lg.shape) >= dropped_l1
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
    rows: DrugRows,
    held_out: DrugRows,
    training: DrugTraining,
    seed: int,
    device: torch.device,
    progress_bar: bool = True,
    description: str = "Training",
) -> History:
    """Train a module in place, keep the best weights on the held-out rows, and return losses."""
    history: dict[str, list[float]] = {"train_loss": [], "validation_loss": []}
    module.to(device)
    best, best_epoch, weights = math.inf, -1, deepcopy(module.state_dict())
    if isinstance(module.base, ResponseBase):  # the closed-form start may already be best
        best = _loss_of(module, held_out)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        decay = training.weight_decay
        optimizer = torch.optim.AdamW(module.parameters(), training.lr, weight_decay=decay)
        bar = tqdm(range(training.max_epochs), desc=description, disable=not progress_bar)
        for epoch in bar:
            module.train()
            batches, losses = _batches(rows.lines_n, training), []
            try:
                for i, batch in enumerate(batches):
                    progress = (epoch + i / len(batches)) / training.max_epochs
                    optimizer.param_groups[0]["lr"] = training.lr * _lr_fraction(progress)
                    losses.append(_step(module, optimizer, rows.at(batch)))
            except KeyboardInterrupt:
                if best_epoch < 0:
                    raise
                logger.info(f"Interrupted: the weights of epoch {best_epoch} are kept.")
                break
            train_loss, loss = float(np.mean(losses)), _loss_of(module, held_out)
            history["train_loss"].append(train_loss)
            history["validation_loss"].append(loss)
            if not math.isfinite(loss + train_loss):
                raise FloatingPointError(
                    f"The loss is NaN or infinite in epoch {epoch}. Train with a lower "
                    f"learning rate than lr={training.lr:g}."
                )
            bar.set_postfix(validation_loss=f"{loss:.3f}")
            if loss < best:
                best, best_epoch, weights = loss, epoch, deepcopy(module.state_dict())
            elif epoch - best_epoch >= training.patience:
                break
        bar.close()
    module.load_state_dict(weights)
    module.eval()
    return by_epoch(history)


def by_epoch(losses: Mapping[str, Sequence[float]]) -> History:
    """Return losses as scvi-tools has them, a data frame for each."""
    table = pd.DataFrame(losses).rename_axis("epoch")
    return {name: table[[name]] for name in losses}


def _batches(lines_n: Tensor, training: DrugTraining) -> list[np.ndarray]:
    """Draw rows of few cell lines at a time, because encoding lines is the main cost."""
    size = training.batch_size or min(max(len(lines_n) // 20, 128), 2048)
    rows = torch.randperm(len(lines_n))
    lines, line_n = lines_n[rows].unique(return_inverse=True)
    n_groups = math.ceil(len(lines) / training.lines_per_step)
    group_n = (torch.randperm(len(lines)) % n_groups)[line_n]
    parts = [part for g in range(n_groups) for part in rows[group_n == g].split(size)]
    parts = [parts[i].numpy() for i in torch.randperm(len(parts)).tolist()]
    n_before = np.cumsum([0, *map(len, parts[:-1])])
    return parts[: int((n_before < training.rows_per_epoch).sum())]


def _lr_fraction(progress: float) -> float:
    """Rise for a tenth of the training, then fall along a cosine."""
    if progress < WARM_UP:
        return 0.04 + 0.96 * progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def _step(module: DrugModule, optimizer: torch.optim.Optimizer, batch: DrugRows) -> float:
    z_kn = module(*_encode(module, batch, module.config.gene_dropout))
    # The loss is per member: with a loss of their mean, members could be wrong together.
    target_kn = batch.target_n.to(z_kn.device).expand_as(z_kn)
    loss = _loss(z_kn, target_kn, batch.has_classes)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _loss(z: Tensor, target: Tensor, has_classes: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, target) if has_classes else F.mse_loss(z, target)


def _loss_of(module: DrugModule, rows: DrugRows) -> float:
    """Return the loss of the mean of the members."""
    z_kn, _ = predict_members(module, rows)
    return float(_loss(z_kn.mean(0), rows.target_n, rows.has_classes))


def _encode(
    module: DrugModule, rows: DrugRows, gene_dropout: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the vectors of drugs and lines in rows, and which of these every row has."""
    which_d, drugs_nd = rows.drugs_nd.unique(return_inverse=True)
    which_l, lines_n = rows.lines_n.unique(return_inverse=True)
    drugs = collate_molecules([rows.molecules[i] for i in which_d.tolist()])
    inputs = drugs | {"known_d": rows.known_d[which_d]}, rows.lines(which_l, gene_dropout)
    device = module.temperature.device
    drugs, lines = ({name: x.to(device) for name, x in part.items()} for part in inputs)
    return module.drugs(drugs), module.lines(lines), drugs_nd, lines_n


@torch.no_grad()
def predict_members(
    module: DrugModule, rows: DrugRows, known: DrugRows | None = None
) -> tuple[Tensor, Tensor]:
    """Return predictions ``(n_members, n_rows)``, and their variance among stand-ins by row."""
    module.eval()
    known = known or rows
    drugs_dh, lines_lh, drug_place, line_place = _encode(module, rows)
    z_kn = _predict(module, drugs_dh, lines_lh, drug_place, line_place)
    spread_n = torch.zeros(len(rows.lines_n))
    known_nd = rows.known_d[rows.drugs_nd]
    new_nd, new_n = known_nd < 0, rows.known_l[rows.lines_n] < 0
    if isinstance(module.base, ResponseBase) or not (new_nd.any() or new_n.any()):
        return z_kn, spread_n
    # Predictions for new drugs and lines are shrunk to the mean over known ones in their place, by
    # `own_weight`, as a few dozen known ones say little about new ones.
    stand_in_d, stand_in_l = _stand_ins(known.known_d), _stand_ins(known.known_l)
    n_drugs, n_lines = len(drugs_dh), len(lines_lh)
    stand_ins = _encode(module, replace(known, drugs_nd=stand_in_d, lines_n=stand_in_l))
    drugs_dh, lines_lh = torch.cat([drugs_dh, stand_ins[0]]), torch.cat([lines_lh, stand_ins[1]])
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
    parts = zip(drugs_nd.split(8192), lines_n.split(8192), strict=True)
    return torch.cat([module(drugs_dh, lines_lh, d, n).cpu() for d, n in parts], dim=1)


def offset_and_scale(module: DrugModule, data: DrugRows) -> tuple[np.ndarray, np.ndarray]:
    """Return what the predictions of the network are relative to, in every row."""
    base, n = module.base, len(data.lines_n)
    if isinstance(base, ScreenScale):
        return np.full(n, float(base.mean)), np.full(n, float(base.std))
    features = np.stack([molecule.features_f for molecule in data.molecules])
    inputs = torch.from_numpy(features), data.known_d, data.values_lg, data.known_l
    predicted = base(*(x.to(base.mean_d.device) for x in inputs))
    table_ld, scale_d = (x.cpu().double().numpy() for x in predicted)
    drug_n = data.drugs_nd[:, 0].numpy()
    return table_ld[data.lines_n.numpy(), drug_n], scale_d[drug_n]


def calibrate(module: DrugModule, rows: DrugRows) -> None:
    """Fit slope and offset of the logits to the classes of held-out rows (Platt scaling)."""
    z_n = predict_members(module, rows)[0].mean(0)
    codes = rows.target_n.numpy().astype(np.int64)
    if len(codes) < 20 or len(np.unique(codes)) < 2:
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


def draw_newcomers(
    parents_nd: np.ndarray, lines_n: np.ndarray, is_trained_n: np.ndarray, seed: int
) -> np.ndarray | None:
    """Return masks of rows if a quarter of the drugs and lines were new; ``None`` if too few."""
    rng = np.random.default_rng(seed)
    new = []
    for items in (parents_nd[is_trained_n], lines_n[is_trained_n]):
        known = np.unique(items)
        n_new = round(len(known) / 4) if len(known) >= 6 else 0
        new.append(rng.permutation(known)[:n_new])
    drug_n, line_n = np.isin(parents_nd, new[0]).any(axis=1), np.isin(lines_n, new[1])
    # Rows with nothing new, with only drugs new, and with only the line new
    drawn = is_trained_n & np.stack([~drug_n & ~line_n, drug_n & ~line_n, line_n & ~drug_n])
    n_known, *n_judges = drawn.sum(axis=1)
    return drawn if n_known >= 2 * MIN_JUDGED and max(n_judges) >= MIN_JUDGED else None


def own_weights(module: DrugModule, new_drugs: DrugRows, new_lines: DrugRows) -> Tensor:
    """Return ``own_weight`` of a module, judged by rows with drugs or lines it has not seen."""
    weights = torch.full((2,), 0.5)
    for i, judges in enumerate((new_drugs, new_lines)):
        if len(judges.lines_n) < MIN_JUDGED:
            continue
        z = []
        for weight in (1.0, 0.0):
            module.own_weight.fill_(weight)
            z.append(predict_members(module, judges)[0].double().mean(0).numpy())
        chosen = choose_own_weight(z[0], z[1], judges.target_n.numpy(), judges.has_classes)
        if chosen is not None:
            weights[i] = chosen
    return weights


def choose_own_weight(
    own_n: np.ndarray, known_n: np.ndarray, target_n: np.ndarray, has_classes: bool
) -> float | None:
    """Return the best weight of own predictions against those of stand-ins, if there is data."""
    if len(target_n) < MIN_JUDGED or len(np.unique(target_n)) < 2:
        return None
    weights, losses = np.linspace(0, 1, 21), []
    for weight in weights:
        z_n = weight * own_n + (1 - weight) * known_n
        if has_classes:
            platt = LogisticRegression(C=1e3).fit(z_n[:, None], target_n)
            losses.append(log_loss(target_n, platt.predict_proba(z_n[:, None])[:, 1]))
        else:
            losses.append(float(np.square(z_n - target_n).mean()))
    return float(weights[int(np.argmin(losses))])
