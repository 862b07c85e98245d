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

from .._validation import check
from ..latent import MAX_CELLS
from ..nn.ranges import PositiveProbability
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
    """Labelled cells to fit linear models to, and how."""

    features_cf: np.ndarray  # (n_cells, n_features)
    logged: sparse.csr_matrix | None  # log-normalised, (n_cells, n_genes); None without genes
    codes: np.ndarray  # labels
    blocks: list[int]  # sizes of the groups of features with one scale
    class_weight: ClassWeight
    seed: int

    def rows(self, rows: np.ndarray) -> LinearData:
        """Return some of the cells."""
        logged = None if self.logged is None else self.logged[rows]
        return self._replace(
            features_cf=self.features_cf[rows], logged=logged, codes=self.codes[rows]
        )


class LinearModels(NamedTuple):
    """Both linear models, on the CPU."""

    classifier: CellClassifier
    gene_classifier: GeneClassifier

    @classmethod
    def copy_of(cls, classifier: CellClassifier, gene_classifier: GeneClassifier) -> LinearModels:
        """Return copies: a fit that fails leaves the originals unchanged."""
        return cls(deepcopy(classifier).cpu(), deepcopy(gene_classifier).cpu())

    def fit(self, data: LinearData) -> None:
        """Fit both models."""
        fit_cell_classifier(self.classifier, data)
        if data.logged is not None:
            fit_gene_classifier(self.gene_classifier, data)

    @torch.no_grad()
    def log_probabilities(self, data: LinearData, gene_weight: float) -> np.ndarray:
        """Return the log of the averaged probabilities, shape ``(n_cells, n_labels)``."""
        log_p_cl = self.classifier(torch.from_numpy(data.features_cf)).log_softmax(dim=1)
        if (logged := data.logged) is not None:
            values, gene_ids, ends = map(
                torch.from_numpy, (logged.data, logged.indices, logged.indptr)
            )
            by_genes_cl = self.gene_classifier(values, gene_ids.long(), ends.long())
            log_p_cl = average_log_probabilities(log_p_cl, by_genes_cl, torch.tensor(gene_weight))
        return log_p_cl.numpy()


def cross_validate(
    models: LinearModels, data: LinearData, gene_weight: float, after_fold: Callable[[], object]
) -> np.ndarray | None:
    """Return out-of-fold log-probabilities; ``None`` if the labels have too few cells."""
    log_p_cl = np.empty((len(data.codes), len(models.gene_classifier.bias)), dtype=np.float32)
    n_folds = min(N_FOLDS, np.bincount(data.codes).max())
    if n_folds < 2:
        return None
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=data.seed)
    with warnings.catch_warnings():  # a label with few cells may be missing in some folds
        warnings.filterwarnings("ignore", message="The least populated class")
        pairs = list(folds.split(data.codes, data.codes))
    if any(len(np.unique(data.codes[fitted])) < 2 for fitted, _ in pairs):
        return None
    for fitted, held_out in pairs:
        of_fold = LinearModels.copy_of(*models)
        of_fold.fit(data.rows(fitted))
        log_p_cl[held_out] = of_fold.log_probabilities(data.rows(held_out), gene_weight)
        after_fold()
    return log_p_cl


def split_labelled(codes: np.ndarray, train_size: float, seed: int) -> list[np.ndarray]:
    """Return rows of training, validation and (no) test cells, split within each label.

    Labels with fewer than five cells, unlabelled cells (-1) included, are only trained on.
    """
    train_size = check("train_size", train_size, PositiveProbability)
    rng = np.random.default_rng(seed)
    is_validation = np.zeros(len(codes), dtype=bool)
    for code in np.unique(codes):
        rows = rng.permutation(np.flatnonzero(codes == code))
        n_validation = round((1 - train_size) * len(rows) - 1e-9)
        is_validation[rows[:n_validation]] = len(rows) >= MIN_FOR_SPLIT
    return [np.flatnonzero(~is_validation), np.flatnonzero(is_validation), np.arange(0)]


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


def fit_cell_classifier(classifier: CellClassifier, data: LinearData) -> None:
    """Fit a logistic regression to features; within a block they keep their proportions."""
    std, mean = data.features_cf.std(axis=0), data.features_cf.mean(axis=0)
    scales = [part.mean() for part in np.split(std, np.cumsum(data.blocks)[:-1])]
    scale = np.maximum(np.repeat(scales, data.blocks), 1e-8)
    with threadpool_limits(1):  # sums in a fixed order, for reproducible results
        model = LogisticRegression(max_iter=2000, class_weight=data.class_weight)
        model.fit((data.features_cf - mean) / scale, data.codes)
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


def fit_gene_classifier(classifier: GeneClassifier, data: LinearData) -> None:
    """Fit logistic regressions with an L1 penalty, each label against the others."""
    classifier.weight.zero_()
    classifier.bias.fill_(NEVER)
    options = {"solver": "liblinear", "class_weight": data.class_weight} | IS_L1
    # Not in parallel: liblinear's random state is shared by all threads, and it copies the data.
    for label in np.unique(data.codes):
        model = LogisticRegression(random_state=data.seed, **options)
        model.fit(data.logged, data.codes == label)
        classifier.weight[:, label] = torch.from_numpy(model.coef_[0]).float()
        classifier.bias[label] = float(model.intercept_[0])


def fit_temperature(log_p_cl: np.ndarray, codes: np.ndarray) -> float:
    """Return the temperature under which held-out cells are most likely (Guo et al. 2017).

    Its log has a normal prior around 0; with fewer than 20 cells the temperature is 1.
    """
    if len(codes) < MIN_FOR_TEMPERATURE:
        return 1.0
    # A label without training cells does not tell how confident the model should be.
    is_possible = log_p_cl[np.arange(len(codes)), codes] > MIN_LOG_P
    log_p = torch.from_numpy(log_p_cl[is_possible]).double()
    target = torch.from_numpy(codes[is_possible]).long()

    def loss(log_temperature: float) -> float:
        scaled = log_p / np.exp(log_temperature)
        prior = 0.5 * (log_temperature / LOG_TEMPERATURE_STD) ** 2
        return float(F.cross_entropy(scaled, target, reduction="sum")) + prior

    return float(np.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded").x))
