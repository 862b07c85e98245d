"""The linear models of an annotator: on features of cells, and on genes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

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

from ..train.initialization import MAX_CELLS
from .classifiers import CellClassifier, GeneClassifier, average_log_probabilities
from .plan import ClassWeight

N_FOLDS = 5
MIN_FOR_SPLIT = 5
MIN_DRAWN = 50
MIN_FOR_TEMPERATURE = 20
LOG_TEMPERATURE_STD = 0.5
MIN_LOG_P = -60.0
# `penalty` is deprecated from 1.8 on, and `l1_ratio` was for another solver before.
IS_L1 = {"l1_ratio": 1.0} if Version(sklearn.__version__) >= Version("1.8") else {"penalty": "l1"}


class LinearData(NamedTuple):
    """Labelled cells.

    Parameters
    ----------
    features_cf
        Features of the cells, shape ``(n_cells, n_features)``.
    logged
        Log-normalised expression, shape ``(n_cells, n_genes)``; ``None`` to leave genes out.
    codes
        The labels.
    class_weight
        See :class:`AnnotationConfig`.
    """

    features_cf: np.ndarray
    logged: sparse.csr_matrix | None
    codes: np.ndarray
    class_weight: ClassWeight

    def rows(self, rows: np.ndarray) -> LinearData:
        """Return some of the cells."""
        logged = None if self.logged is None else self.logged[rows]
        return LinearData(self.features_cf[rows], logged, self.codes[rows], self.class_weight)


class LinearModels(NamedTuple):
    """Both linear models, on the CPU.

    Parameters
    ----------
    classifier, gene_classifier
        What is fitted.
    """

    classifier: CellClassifier
    gene_classifier: GeneClassifier

    @classmethod
    def copy_of(cls, *models: Any) -> LinearModels:
        """Return copies, so that the models stay whole if anything fails."""
        return cls(*(deepcopy(model).cpu() for model in models))

    def fit(self, data: LinearData, blocks: list[int], seed: int) -> None:
        """Fit both to labelled cells.

        Parameters
        ----------
        data
            The cells.
        blocks, seed
            See :func:`fit_cell_classifier` and :func:`fit_gene_classifier`.
        """
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
        share = torch.tensor(gene_weight)
        return average_log_probabilities(by_cell_cl, by_genes_cl, share).numpy()


def cross_validate(
    models: LinearModels,
    data: LinearData,
    blocks: list[int],
    gene_weight: float,
    seed: int,
    progress: Callable[[], Any],
) -> np.ndarray | None:
    """Return log-probabilities of cells from models that were not fitted to them.

    ``None`` if the labels have too few cells for that.

    Parameters
    ----------
    models
        Models of the right shape; they are copied.
    data
        The cells.
    blocks
        See :func:`fit_cell_classifier`.
    gene_weight
        Share of the model on genes.
    seed
        Seed of the five folds and of the solver.
    progress
        Called after every fold.
    """
    log_p_cl = np.empty((len(data.codes), len(models.gene_classifier.bias)), dtype=np.float32)
    n_folds = min(N_FOLDS, max(np.bincount(data.codes).tolist()))
    if n_folds < 2:
        return None
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a label of a few cells is not in all folds: so be it
        warnings.filterwarnings("ignore", message="The least populated class")
        pairs = list(folds.split(data.codes, data.codes))
    if any(len(np.unique(data.codes[fitted])) < 2 for fitted, _ in pairs):
        return None
    for fitted, held_out in pairs:
        of_fold = LinearModels.copy_of(*models)
        of_fold.fit(data.rows(fitted), blocks, seed)
        log_p_cl[held_out] = of_fold.log_probabilities(data.rows(held_out), gene_weight)
        progress()
    return log_p_cl


def split_labelled(codes: np.ndarray, train_size: float, seed: int) -> list[np.ndarray]:
    """Split cells into training and validation cells, of every label alike.

    Parameters
    ----------
    codes
        Labels of all cells, -1 for none.
    train_size
        Which part is trained on.
    seed
        Seed of the split.

    Returns
    -------
    Rows of training, validation and test cells; the last are none.

    Examples
    --------
    >>> train, validation, _ = split_labelled(np.array([0] * 20 + [1] * 4 + [-1] * 10), 0.9, 0)
    >>> len(train), len(validation)
    (31, 3)
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
    """Return the cells that linear models are fitted to: all, or 20,000 drawn at random.

    Of every label 50 cells are kept at least, if there are as many.

    Parameters
    ----------
    rows
        Labelled training cells.
    codes
        Labels of all cells.
    seed
        Seed of the draw.
    """
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
    """Start the classifier with a logistic regression on the features.

    Parameters
    ----------
    classifier
        What to fit, on the CPU.
    features_cf
        Features of labelled training cells, shape ``(n_cells, n_features)``.
    codes
        Their labels.
    blocks
        Numbers of features that share one scale: principal components keep their proportions.
    class_weight
        See :class:`AnnotationConfig`.
    """
    ends = np.cumsum(blocks)
    std = features_cf.std(axis=0)
    scales = [part.mean() for part in np.split(std, ends[:-1])]
    scale = np.maximum(np.repeat(scales, blocks), 1e-8)
    mean = features_cf.mean(axis=0)
    with threadpool_limits(1):  # sums in one order: results repeat
        model = LogisticRegression(max_iter=2000, class_weight=class_weight)
        model.fit((features_cf - mean) / scale, codes)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # of two labels, there are coefficients of the second only
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        classifier.is_fitted.fill_(True)
        classifier.mean.copy_(torch.from_numpy(mean))
        classifier.scale.copy_(torch.from_numpy(scale))
        classifier.linear.weight.zero_()
        # A label without a training cell is never predicted.
        classifier.linear.bias.fill_(-1e4)
        classifier.linear.weight[model.classes_] = torch.from_numpy(weight).float()
        classifier.linear.bias[model.classes_] = torch.from_numpy(bias).float()


def fit_gene_classifier(
    classifier: GeneClassifier,
    logged: sparse.csr_matrix,
    codes: np.ndarray,
    class_weight: ClassWeight,
    seed: int,
) -> None:
    """Fit logistic regressions with an L1 penalty, each label against the others.

    Parameters
    ----------
    classifier
        What to fit, on the CPU.
    logged
        Log-normalised expression of labelled training cells, shape ``(n_cells, n_genes)``.
    codes
        Their labels.
    class_weight
        See :class:`AnnotationConfig`.
    seed
        Seed of the solver.
    """
    weight = torch.zeros_like(classifier.weight)
    bias = torch.full_like(classifier.bias, -1e4)
    # One after the other: the solver has one random state for all threads, and copies the data.
    for label in np.unique(codes):
        model = LogisticRegression(
            solver="liblinear", class_weight=class_weight, random_state=seed, **IS_L1
        ).fit(logged, codes == label)
        weight[:, label] = torch.from_numpy(model.coef_[0]).float()
        bias[label] = float(model.intercept_[0])
    classifier.weight.copy_(weight)
    classifier.bias.copy_(bias)


def fit_temperature(log_p_cl: np.ndarray, codes: np.ndarray) -> float:
    """Return the temperature under which held-out cells are most likely.

    A few cells say little: the logarithm of the temperature has a normal prior around 0 with a
    standard deviation of a half, and below 20 cells the temperature is 1.

    Parameters
    ----------
    log_p_cl
        Log-probabilities of the labels, shape ``(n_cells, n_labels)``.
    codes
        The true labels.

    Notes
    -----
    Guo et al. 2017; the prior is ours.
    """
    if len(codes) < MIN_FOR_TEMPERATURE:
        return 1.0
    log_p = torch.from_numpy(log_p_cl).double()
    target = torch.from_numpy(codes).long()
    # A label that the model never saw says nothing about how sure it should be.
    is_possible = log_p.gather(1, target[:, None])[:, 0] > MIN_LOG_P
    log_p, target = log_p[is_possible], target[is_possible]

    def loss(log_temperature: float) -> float:
        scaled = log_p / np.exp(log_temperature)
        prior = 0.5 * (log_temperature / LOG_TEMPERATURE_STD) ** 2
        return float(F.cross_entropy(scaled, target, reduction="sum")) + prior

    return float(np.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded").x))
