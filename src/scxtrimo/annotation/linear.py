"""Fitting the linear models of an annotator: on features of cells, and on genes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Literal, NamedTuple

import numpy as np
import sklearn
import torch
from packaging.version import Version
from scipy import sparse
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits
from torch.nn import functional as F

from ..latent import MAX_CELLS
from .module import CellClassifier, GeneClassifier, average_log_probabilities

ClassWeight = Literal["balanced"] | None
N_FOLDS = 5
MIN_FOR_SPLIT = 5
MIN_DRAWN = 50
MIN_FOR_TEMPERATURE = 20
LOG_TEMPERATURE_STD = 0.5
MIN_LOG_P = -60.0
NEVER = -1e4  # bias of a label without training cells, which is never predicted
# scikit-learn 1.8 deprecated `penalty`; before, `l1_ratio` did not apply to liblinear.
IS_L1 = {"l1_ratio": 1.0} if Version(sklearn.__version__) >= Version("1.8") else {"penalty": "l1"}


class LinearData(NamedTuple):
    """Labelled cells to fit linear models to."""

    features_cf: np.ndarray  # (n_cells, n_features)
    logged: sparse.csr_matrix | None  # log-normalised, (n_cells, n_genes); None without genes
    codes: np.ndarray  # labels
    class_weight: ClassWeight

    def rows(self, rows: np.ndarray) -> LinearData:
        """Return some of the cells."""
        logged = None if self.logged is None else self.logged[rows]
        return LinearData(self.features_cf[rows], logged, self.codes[rows], self.class_weight)


class LinearModels(NamedTuple):
    """Both linear models, on the CPU."""

    classifier: CellClassifier
    gene_classifier: GeneClassifier

    @classmethod
    def copy_of(cls, classifier: CellClassifier, gene_classifier: GeneClassifier) -> LinearModels:
        """Return copies: a fit that fails leaves the originals unchanged."""
        return cls(deepcopy(classifier).cpu(), deepcopy(gene_classifier).cpu())

    def fit(self, data: LinearData, blocks: list[int], seed: int) -> None:
        """Fit both models; ``blocks`` are sizes of the groups of features with one scale."""
        fit_cell_classifier(
            self.classifier, data.features_cf, data.codes, blocks, data.class_weight
        )
        if data.logged is not None:
            fit_gene_classifier(
                self.gene_classifier, data.logged, data.codes, data.class_weight, seed
            )

    @torch.no_grad()
    def log_probabilities(self, data: LinearData, gene_weight: float) -> np.ndarray:
        """Return the log of the averaged probabilities, shape ``(n_cells, n_labels)``."""
        by_cell_cl = self.classifier(torch.from_numpy(data.features_cf)).log_softmax(dim=1)
        if data.logged is None:
            return by_cell_cl.numpy()
        by_genes_cl = self.gene_classifier(
            torch.from_numpy(data.logged.data),
            torch.from_numpy(data.logged.indices).long(),
            torch.from_numpy(data.logged.indptr).long(),
        )
        return average_log_probabilities(
            by_cell_cl, by_genes_cl, torch.tensor(gene_weight)
        ).numpy()


def cross_validate(
    models: LinearModels,
    data: LinearData,
    blocks: list[int],
    gene_weight: float,
    seed: int,
    after_fold: Callable[[], object],
) -> np.ndarray | None:
    """Return out-of-fold log-probabilities; ``None`` if the labels have too few cells."""
    log_p_cl = np.empty((len(data.codes), len(models.gene_classifier.bias)), dtype=np.float32)
    n_folds = min(N_FOLDS, max(np.bincount(data.codes).tolist()))
    if n_folds < 2:
        return None
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a label with few cells may be missing in some folds
        warnings.filterwarnings("ignore", message="The least populated class")
        pairs = list(folds.split(data.codes, data.codes))
    if any(len(np.unique(data.codes[fitted])) < 2 for fitted, _ in pairs):
        return None
    for fitted, held_out in pairs:
        of_fold = LinearModels.copy_of(*models)
        of_fold.fit(data.rows(fitted), blocks, seed)
        log_p_cl[held_out] = of_fold.log_probabilities(data.rows(held_out), gene_weight)
        after_fold()
    return log_p_cl


def split_labelled(codes: np.ndarray, train_size: float, seed: int) -> list[np.ndarray]:
    """Return rows of training, validation and (no) test cells, split within each label.

    Labels with fewer than five cells, unlabelled cells (-1) included, are only trained on.
    """
    if not 0 < train_size <= 1:
        raise ValueError(f"train_size={train_size} must be above 0 and at most 1.")
    rng = np.random.default_rng(seed)
    is_validation = np.zeros(len(codes), dtype=bool)
    for code in np.unique(codes):
        rows = rng.permutation(np.flatnonzero(codes == code))
        n_validation = round((1 - train_size) * len(rows) - 1e-9)
        is_validation[rows[:n_validation]] = len(rows) >= MIN_FOR_SPLIT
    rows = np.arange(len(codes))
    return [rows[~is_validation], rows[is_validation], rows[:0]]


def draw_labelled(rows: np.ndarray, codes: np.ndarray, seed: int) -> np.ndarray:
    """Return at most about 20,000 of the rows, keeping up to 50 cells of each label."""
    if len(rows) <= MAX_CELLS:
        return rows
    rng = np.random.default_rng(seed)
    drawn = []
    for code in np.unique(codes[rows]):
        of_label = rows[codes[rows] == code]
        n_kept = max(MIN_DRAWN, round(MAX_CELLS * len(of_label) / len(rows)))
        drawn.append(rng.permutation(of_label)[:n_kept])
    return np.sort(np.concatenate(drawn))


def fit_cell_classifier(
    classifier: CellClassifier,
    features_cf: np.ndarray,
    codes: np.ndarray,
    blocks: list[int],
    class_weight: ClassWeight,
) -> None:
    """Fit a logistic regression to features; within a block they keep their proportions."""
    ends = np.cumsum(blocks)
    std = features_cf.std(axis=0)
    scales = [part.mean() for part in np.split(std, ends[:-1])]
    scale = np.maximum(np.repeat(scales, blocks), 1e-8)
    mean = features_cf.mean(axis=0)
    with threadpool_limits(1):  # sums in a fixed order, for reproducible results
        model = LogisticRegression(max_iter=2000, class_weight=class_weight)
        model.fit((features_cf - mean) / scale, codes)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn gives coefficients for the second label only
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        classifier.is_fitted.fill_(True)
        classifier.mean.copy_(torch.from_numpy(mean))
        classifier.scale.copy_(torch.from_numpy(scale))
        classifier.linear.weight.zero_()
        classifier.linear.bias.fill_(NEVER)
        classifier.linear.weight[model.classes_] = torch.from_numpy(weight).float()
        classifier.linear.bias[model.classes_] = torch.from_numpy(bias).float()


def fit_gene_classifier(
    classifier: GeneClassifier,
    logged: sparse.csr_matrix,
    codes: np.ndarray,
    class_weight: ClassWeight,
    seed: int,
) -> None:
    """Fit logistic regressions with an L1 penalty, each label against the others."""
    weight = torch.zeros_like(classifier.weight)
    bias = torch.full_like(classifier.bias, NEVER)
    # Not in parallel: liblinear's random state is shared by all threads, and it copies the data.
    for label in np.unique(codes):
        model = LogisticRegression(
            solver="liblinear", class_weight=class_weight, random_state=seed, **IS_L1
        ).fit(logged, codes == label)
        weight[:, label] = torch.from_numpy(model.coef_[0]).float()
        bias[label] = float(model.intercept_[0])
    classifier.weight.copy_(weight)
    classifier.bias.copy_(bias)


def fit_temperature(log_p_cl: np.ndarray, codes: np.ndarray) -> float:
    """Return the temperature under which held-out cells are most likely (Guo et al. 2017).

    The log of the temperature has a normal prior with mean 0 and standard deviation 0.5; with
    fewer than 20 cells the temperature is 1.
    """
    if len(codes) < MIN_FOR_TEMPERATURE:
        return 1.0
    log_p = torch.from_numpy(log_p_cl).double()
    target = torch.from_numpy(codes).long()
    # A label without training cells does not tell how confident the model should be.
    is_possible = log_p.gather(1, target[:, None])[:, 0] > MIN_LOG_P
    log_p, target = log_p[is_possible], target[is_possible]

    def loss(log_temperature: float) -> float:
        scaled = log_p / np.exp(log_temperature)
        prior = 0.5 * (log_temperature / LOG_TEMPERATURE_STD) ** 2
        return float(F.cross_entropy(scaled, target, reduction="sum")) + prior

    return float(np.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded").x))
