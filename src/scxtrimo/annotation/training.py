"""Learning the labels: recipes, the linear models, calibration, and the fine-tuning objective."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import sklearn
import torch
from packaging.version import Version
from pydantic import NonNegativeFloat
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.class_weight import compute_class_weight
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from .._logging import logger
from .._validation import Validated, check
from ..data.fields import CategoryField
from ..data.vocabulary import preview
from ..latent import MAX_CELLS, log_normalize, read_counts
from ..model.base import PROGRESS_SECONDS
from ..model.depth import TargetDepth
from ..model.derive import register_field
from ..nn.ragged import RaggedBatch
from ..nn.ranges import Fraction, PositiveProbability
from ..nn.xtrimogene import Losses
from ..train.plan import VALIDATION_EPOCH, FinetuningConfig, XTrimoGenePlan
from ..train.splitter import as_sets
from .module import (
    CellClassifier,
    GeneClassifier,
    LabelPanel,
    XTrimoGeneAnnotatorModule,
    average_log_probabilities,
)

if TYPE_CHECKING:
    from .model import XTrimoGeneAnnotator

Recipe = Literal["linear", "finetune", "published"]
ClassWeight = Literal["balanced"] | None
MACRO_F1 = "macro_f1_validation"
INVERSE_PENALTIES = (0.3, 0.1, 1.0, 0.03)  # of the cell classifier; the first unless one is chosen
GENE_WEIGHTS = (0.5, 0.0, 0.25, 0.75, 1.0)
MIN_COMPARED = 100  # labelled cells for a choice by the standard error
MAX_LOSS = 20.0  # of a cell in a comparison: a label may have no cells in a fold
NEVER = -1e4  # bias of a label without training cells, which is never predicted
# scikit-learn 1.8 deprecated `penalty`; before, `l1_ratio` did not apply to liblinear.
IS_L1 = {"l1_ratio": 1.0} if Version(sklearn.__version__) >= Version("1.8") else {"penalty": "l1"}


@dataclass(frozen=True)
class AnnotationConfig(Validated):
    """The objective of an annotator.

    Parameters
    ----------
    class_weight
        ``"balanced"`` gives all labels the same weight, whatever their number of cells.
    label_smoothing
        Part of the target that is spread over all labels.
    reconstruction_weight
        Weight of the masked objective of :class:`~scxtrimo.model.XTrimoGene`; 0 leaves it out.

    Examples
    --------
    >>> from scxtrimo.annotation import AnnotationConfig
    >>> AnnotationConfig(class_weight="balanced").label_smoothing
    0.0
    """

    class_weight: ClassWeight = None
    label_smoothing: Fraction = 0.0
    reconstruction_weight: NonNegativeFloat = 1.0


class AnnotatorPlan(XTrimoGenePlan):
    """Adds the cross-entropy of the labels to the objective."""

    module: XTrimoGeneAnnotatorModule
    label_weights: Tensor

    def __init__(
        self,
        module: XTrimoGeneAnnotatorModule,
        *args: Any,
        annotation: AnnotationConfig,
        measured: Tensor,
        label_weights: Tensor,
        **kwargs: Any,
    ) -> None:
        super().__init__(module, *args, **kwargs)
        self.annotation, self.measured = annotation, measured
        self.panel: LabelPanel | None = None
        self.register_buffer("label_weights", label_weights, persistent=False)
        self._validated: list[tuple[Tensor, Tensor]] = []

    def _loss(self, batch: RaggedBatch, epoch: int) -> Losses:
        """Cross-entropy of labelled, unmasked cells, plus the masked objective of all cells."""
        labels_c = batch["labels"]
        is_labelled = labels_c >= 0
        whole = batch
        if self.module.config.read_depth_aware:  # as in predictions
            target = TargetDepth("t", float(self.module.typical_depth))
            whole = batch | RaggedBatch(depths=target.tokens(batch["library_size"]))
        cells = self.module.encode(whole)
        # In bfloat16 the features would differ from those of predictions.
        with torch.autocast(labels_c.device.type, enabled=False):
            if self.panel is None:  # not earlier: a checkpoint may be loaded after __init__
                with torch.inference_mode(False), torch.no_grad():
                    self.panel = self.module.label_panel(self.measured.to(labels_c.device))
            logits_cl = self.module.classifier(self.module.features(batch, cells, self.panel))
        if epoch == VALIDATION_EPOCH:
            self._validated.append((logits_cl[is_labelled].argmax(1), labels_c[is_labelled]))
        labels_c = labels_c.clamp(min=0)
        cross_entropy_c = F.cross_entropy(
            logits_cl,
            labels_c,
            weight=self.label_weights,
            label_smoothing=self.annotation.label_smoothing,
            reduction="none",
        )
        weight_c = self.label_weights[labels_c] * is_labelled
        # The clamp makes the loss of a batch without labels 0.
        cross_entropy = (cross_entropy_c * is_labelled).sum() / weight_c.sum().clamp(min=1e-8)
        metrics = {"cross_entropy": cross_entropy.detach()}
        weight = self.annotation.reconstruction_weight
        if not weight:
            return Losses(cross_entropy, torch.zeros_like(cross_entropy_c), metrics)
        masked = super()._loss(batch, epoch)
        loss = cross_entropy + weight * masked.loss
        return Losses(loss, masked.reconstruction_c, masked.metrics | metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the macro-averaged F1 score of the validation cells."""
        parts = zip(*self._validated, strict=True)
        predicted, labels = (torch.cat(part).cpu().numpy() for part in parts)
        self._validated.clear()
        if len(labels):
            score = f1_score(labels, predicted, labels=np.unique(labels), average="macro")
            self.log(MACRO_F1, float(score), batch_size=len(labels))


def label_weights(codes: np.ndarray, n_labels: int, class_weight: ClassWeight) -> Tensor:
    """Return the weight of every label in the cross-entropy, 1 for labels without cells."""
    weights, present = torch.ones(n_labels), np.unique(codes)
    values = compute_class_weight(class_weight, classes=present, y=codes)
    weights[torch.from_numpy(present)] = torch.from_numpy(values).float()
    return weights


def choose_recipe(
    recipe: Recipe | None,
    annotation: AnnotationConfig,
    finetuning: FinetuningConfig,
    **others: object,
) -> tuple[Recipe, AnnotationConfig, FinetuningConfig]:
    """Return the recipe with its objective; ``others`` are other arguments of a fine-tuning."""
    only_finetuning = others | {
        "freeze, layer_decay or lora_rank": finetuning != FinetuningConfig(),
        "label_smoothing": annotation.label_smoothing,
        "reconstruction_weight": annotation.reconstruction_weight != 1,
    }
    asked = [name for name, value in only_finetuning.items() if value]
    if recipe is None:
        recipe = "finetune" if asked else "linear"
    check("recipe", recipe, Recipe)
    if recipe == "linear" and asked:
        raise ValueError(f"recipe='linear' does not fine-tune: leave out {asked}.")
    if recipe == "published":
        if finetuning != FinetuningConfig() or annotation != AnnotationConfig():
            raise ValueError(
                "recipe='published' fixes what is trained and the objective: leave out "
                "`finetuning`, `freeze`, `layer_decay`, `lora_rank`, `class_weight`, "
                "`label_smoothing` and `reconstruction_weight`."
            )
        finetuning = FinetuningConfig(freeze="all_but_last_1")
        annotation = AnnotationConfig(class_weight="balanced", reconstruction_weight=0.0)
    return recipe, annotation, finetuning


def draw_per_label(codes: np.ndarray, seed: int, n_of: Callable[[int], int]) -> np.ndarray:
    """Return places of ``n_of(n)`` of the n cells of every label, drawn at random and sorted."""
    rng = np.random.default_rng(seed)
    places = [rng.permutation(np.flatnonzero(codes == code)) for code in np.unique(codes)]
    return np.sort(np.concatenate([of_label[: n_of(len(of_label))] for of_label in places]))


def split_labelled(
    codes: np.ndarray,
    train_size: float | None,
    seed: int,
    indexing: Any = None,
    early_stopping: bool = False,
) -> list[np.ndarray]:
    """Return rows of training, validation and test cells, split within each label if at all."""
    if indexing is not None:
        split = as_sets(indexing, len(codes))
    else:
        size = 0.9 if train_size is None else check("train_size", train_size, PositiveProbability)
        validation = draw_per_label(  # of unlabelled cells, too
            codes, seed, lambda n: round((1 - size) * n - 1e-9) if n >= 5 else 0
        )
        split = [np.delete(np.arange(len(codes)), validation), validation, np.arange(0)]
    if early_stopping and not (codes[split[1]] >= 0).any():
        raise ValueError(
            "early_stopping=True needs labelled validation cells, but there are none. Lower "
            "`train_size`, or label more cells: a label with fewer than five is only trained on."
        )
    return split


def label_codes(model: XTrimoGeneAnnotator) -> np.ndarray:
    """Return the labels of the model's own cells as numbers, -1 for unlabelled cells."""
    state = model._manager_of(model.adata).get_state_registry(REGISTRY_KEYS.LABELS_KEY)
    return np.asarray(state[CategoryField.CODES_KEY])


def learn_present_labels(model: XTrimoGeneAnnotator) -> None:
    """Take over the labels that the data have now, if they differ from the model's."""
    setup = model._setup_of(model.adata)
    (field,) = model._own_fields(setup.setup_args, setup.setup_args)
    state = field.register_field(model.adata)
    present = state[CategoryField.MAPPING_KEY].tolist()
    if set(present) == set(model._labels_state()[CategoryField.MAPPING_KEY]):
        return
    logger.info(f"The labels are now {preview(present, 10)}; they were {model.labels.tolist()}.")
    model.registry_ = deepcopy(model.registry_)
    register_field(model.registry_, field, state)
    model.summary_stats = AnnDataManager._get_summary_stats_from_registry(model.registry_)
    model._register_query(model.adata, setup)
    # A whole new module, as the random weights of its classifier depend on those drawn before.
    fresh: Any = model._make_module().to(model.device)
    model.module.classifier = fresh.classifier
    model.module.gene_classifier = fresh.gene_classifier


@contextmanager
def labels_unchanged_if_interrupted(model: XTrimoGeneAnnotator) -> Iterator[None]:
    """Restore the model, its labels and its classifiers if an exception is raised."""
    heads = model.module.classifier, model.module.gene_classifier
    with model._unchanged_if_interrupted(
        "registry_", "summary_stats", "_adata_manager", "_held_out"
    ):
        try:
            yield
        except BaseException:  # the weights are restored into these modules
            model.module.classifier, model.module.gene_classifier = heads
            raise


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


class Choice(NamedTuple):
    """What cross-validation chooses between: how strong a penalty, how much of the genes."""

    inverse_penalty: float
    gene_weight: float


class LinearModels(NamedTuple):
    """Both linear models, on the CPU."""

    classifier: CellClassifier
    gene_classifier: GeneClassifier

    def copied(self) -> LinearModels:
        """Return copies on the CPU: a fit that fails leaves the originals unchanged."""
        models = deepcopy(self)
        for model in models:
            model.cpu()
        return models

    def fitted(self, data: LinearData, inverse_penalty: float) -> LinearModels:
        """Return fitted copies."""
        models = self.copied()
        fit_cell_classifier(models.classifier, data, inverse_penalty)
        if data.logged is not None:
            fit_gene_classifier(models.gene_classifier, data)
        return models

    @torch.no_grad()
    def by_cell(self, data: LinearData) -> Tensor:
        """Return log-probabilities by the representation, shape ``(n_cells, n_labels)``."""
        return self.classifier(torch.from_numpy(data.features_cf)).log_softmax(dim=1)

    @torch.no_grad()
    def by_genes(self, data: LinearData) -> Tensor:
        """Return log-probabilities by the genes."""
        assert data.logged is not None
        parts = data.logged.data, data.logged.indices, data.logged.indptr
        values, gene_ids, cu_seqlens = map(torch.from_numpy, parts)
        return self.gene_classifier(values, gene_ids.long(), cu_seqlens)


def cross_validate(
    models: LinearModels, data: LinearData, choices: list[Choice], after_fold: Callable[[], object]
) -> dict[Choice, np.ndarray]:
    """Return out-of-fold log-probabilities by choice; none if the labels have too few cells."""
    n_folds = min(n_folds_for(len(data.codes)), int(np.max(np.bincount(data.codes))))
    if n_folds < 2:
        return {}
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=data.seed)
    with warnings.catch_warnings():  # a label with few cells may be missing in some folds
        warnings.filterwarnings("ignore", message="The least populated class")
        pairs = list(folds.split(data.codes, data.codes))
    if any(len(np.unique(data.codes[fitted])) < 2 for fitted, _ in pairs):
        return {}
    shape = len(data.codes), len(models.gene_classifier.bias)
    log_p = {choice: np.empty(shape, dtype=np.float32) for choice in choices}
    for fitted, held_out in pairs:
        known, unknown = data.rows(fitted), data.rows(held_out)
        of_fold, by_genes_cl = models.copied(), None
        if data.logged is not None:
            fit_gene_classifier(of_fold.gene_classifier, known)
            by_genes_cl = of_fold.by_genes(unknown)
        for inverse_penalty in dict.fromkeys(choice.inverse_penalty for choice in choices):
            fit_cell_classifier(of_fold.classifier, known, inverse_penalty)
            by_cell_cl = of_fold.by_cell(unknown)
            for choice in choices:
                if choice.inverse_penalty == inverse_penalty:
                    log_p[choice][held_out] = average(by_cell_cl, by_genes_cl, choice.gene_weight)
        after_fold()
    return log_p


def n_folds_for(n_cells: int) -> int:
    """Return into how many parts cells are divided: few cells need all the others."""
    return 5 if n_cells <= 2000 else 3


def average(by_cell_cl: Tensor, by_genes_cl: Tensor | None, gene_weight: float) -> np.ndarray:
    """Average the probabilities of both models, given and returned as logs."""
    if by_genes_cl is None:
        return by_cell_cl.numpy()
    weight = torch.tensor(float(gene_weight))
    return average_log_probabilities(by_cell_cl, by_genes_cl, weight).numpy()


def choose(log_p: dict[Choice, np.ndarray], codes: np.ndarray) -> Choice:
    """Return the choice under which held-out labels are most likely, once it is calibrated.

    Among those that are as good, within the standard error of the difference, genes alone come
    first, unless few labels make this error large; then the most even average of both models,
    which is safest where other cells differ from these.
    """
    likelihood = {}
    for choice, log_p_cl in log_p.items():
        calibrated_cl = log_softmax(log_p_cl / fit_temperature(log_p_cl, codes), axis=1)
        likelihood[choice] = np.maximum(calibrated_cl[np.arange(len(codes)), codes], -MAX_LOSS)
    mean = {choice: float(each.mean()) for choice, each in likelihood.items()}
    best = max(mean, key=lambda choice: mean[choice])
    losses = {choice: likelihood[best] - each for choice, each in likelihood.items()}
    error = {choice: loss.std() / np.sqrt(len(loss)) for choice, loss in losses.items()}
    as_good = [choice for choice, loss in losses.items() if loss.mean() <= error[choice]]
    alone = [choice for choice in as_good if choice.gene_weight == 1]
    if alone and len(codes) >= MIN_COMPARED:
        return alone[0]
    return min(as_good, key=lambda c: (abs(c.gene_weight - 0.5), -mean[c]))


def fit_cell_classifier(
    classifier: CellClassifier, data: LinearData, inverse_penalty: float
) -> None:
    """Fit a logistic regression to features; within a block they keep their proportions."""
    std, mean = data.features_cf.std(axis=0), data.features_cf.mean(axis=0)
    scales = [part.mean() for part in np.split(std, np.cumsum(data.blocks)[:-1])]
    scale = np.maximum(np.repeat(scales, data.blocks), 1e-8)
    options = {"max_iter": 2000, "class_weight": data.class_weight}
    with threadpool_limits(1):  # sums in a fixed order, for reproducible results
        model = LogisticRegression(C=inverse_penalty, **options)
        model.fit((data.features_cf - mean) / scale, data.codes)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn gives coefficients for the second label only
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    classifier.reset()
    with torch.no_grad():
        classifier.is_fitted.fill_(True)
        classifier.mean.copy_(torch.from_numpy(mean))
        classifier.scale.copy_(torch.from_numpy(scale))
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


@torch.no_grad()
def features_of(model: XTrimoGeneAnnotator, rows: np.ndarray) -> np.ndarray:
    """Return the input of the cell classifier for the model's own cells."""
    panel = model._label_panel(model.adata)
    with torch.random.fork_rng(devices=[]):  # data loaders draw from the global random state
        parts = [
            model.module.features(batch, model._encode(batch), panel).cpu()
            for _, batch in model._batches(None, rows, None, "Reading features")
        ]
    return torch.cat(parts).numpy()


def fit_linear_models(
    model: XTrimoGeneAnnotator,
    rows: np.ndarray,
    codes: np.ndarray,
    recipe: Recipe,
    class_weight: ClassWeight,
    cross_validated: bool,
) -> None:
    """Fit the linear models to the labelled cells among ``rows``, and calibrate if asked to."""
    module, seed = model.module, model.seed_
    rows = rows[codes[rows] >= 0]
    if (n_rows := len(rows)) > MAX_CELLS:  # about so many then, and up to 50 of each label
        drawn = draw_per_label(codes[rows], seed, lambda n: max(50, round(MAX_CELLS * n / n_rows)))
        rows = np.sort(rows[drawn])
    counts = np.bincount(codes[rows], minlength=len(model.labels))
    if few := [f"{model.labels[i]!r} ({counts[i]})" for i in np.flatnonzero(counts < 10)]:
        logger.info(f"Labels with fewer than 10 cells to learn from: {', '.join(few)}.")
    if (counts > 0).sum() < 2:
        raise ValueError("The cells to learn from have fewer than two labels. Raise `train_size`.")
    gene_weight = 0.0 if recipe == "published" else module.config.gene_weight
    if module.latent_space is not None:
        module.component_weight.copy_(module.latent_space.measured_weight)
    features_cf, logged = features_of(model, rows), None
    if gene_weight != 0:
        logged = log_normalize(read_counts(model.adata_manager, rows, len(model.vocabulary)))
    data = LinearData(features_cf, logged, codes[rows], module.feature_blocks, class_weight, seed)
    models = LinearModels(module.classifier, module.gene_classifier)
    weights = GENE_WEIGHTS if gene_weight is None else (gene_weight,)
    choices = [Choice(c, w) for c in INVERSE_PENALTIES for w in weights if w < 1]
    choices += [Choice(INVERSE_PENALTIES[0], w) for w in weights if w == 1]
    text: Any = {"desc": "Fitting linear models", "unit": "fit", "delay": PROGRESS_SECONDS}
    n_fits = 1 + (n_folds_for(len(rows)) if recipe == "linear" else 0)
    with tqdm(total=n_fits, disable=not model._shows_progress, **text) as bar:
        # A fine-tuning changes what the linear models would be chosen for.
        is_linear = recipe == "linear"
        held_out = cross_validate(models, data, choices, bar.update) if is_linear else {}
        choice = choose(held_out, data.codes) if held_out else choices[0]
        models = models.fitted(data, choice.inverse_penalty)
        bar.update()
    if held_out:
        _report(held_out, choice, data.codes)
    if recipe == "published":
        models.classifier.start_at_random(seed)
    if not module.mean_expression.any() and logged is not None:  # as in published checkpoints
        mean = np.asarray(logged.mean(axis=0)).ravel().astype(np.float32)
        module.mean_expression.copy_(torch.from_numpy(mean))
    module.classifier.load_state_dict(models.classifier.state_dict())
    module.gene_classifier.load_state_dict(models.gene_classifier.state_dict())
    module.gene_weight.fill_(choice.gene_weight)
    if cross_validated:
        if not held_out:
            logger.info("Too few labelled cells to calibrate the probabilities on.")
        set_temperature(model, held_out.get(choice), rows, codes)


def _report(held_out: dict[Choice, np.ndarray], choice: Choice, codes: np.ndarray) -> None:
    """Say how good the choice is, beside genes alone if both were tried."""
    accuracy = {c: float((log_p.argmax(1) == codes).mean()) for c, log_p in held_out.items()}
    text = f"Labels of held-out cells: accuracy {accuracy[choice]:.3f}"
    if len({c.gene_weight for c in held_out}) > 1:
        (alone,) = [accuracy[c] for c in held_out if c.gene_weight == 1]
        if choice.gene_weight == 1:
            text += " by genes alone, which are used: the representation does no better"
        else:
            text += f", by genes alone {alone:.3f}"
    logger.info(f"{text} ({len(codes):,} cells, cross-validated).")


def calibrate(model: XTrimoGeneAnnotator, rows: np.ndarray, codes: np.ndarray) -> None:
    """Choose the temperature on the labelled cells among ``rows``, the validation cells."""
    set_temperature(model, None, rows, codes)
    rows = rows[codes[rows] >= 0]
    if len(rows):
        with torch.random.fork_rng(devices=[]):
            probabilities = np.asarray(model.predict(indices=rows, soft=True))
        set_temperature(model, np.log(np.maximum(probabilities, 1e-30)), rows, codes)


def set_temperature(
    model: XTrimoGeneAnnotator, log_p_cl: np.ndarray | None, rows: np.ndarray, codes: np.ndarray
) -> None:
    """Calibrate on cells that were not learned from, if any, and keep their probabilities."""
    temperature, model._held_out = 1.0, None
    if log_p_cl is not None:
        temperature = fit_temperature(log_p_cl, codes[rows])
        names = model.adata.obs_names[rows]
        probabilities = softmax(log_p_cl / temperature, axis=1)
        model._held_out = (
            pd.DataFrame(probabilities, index=names, columns=model.labels),
            pd.Series(model.labels[codes[rows]], index=names, name="label"),
        )
    model.module.temperature.fill_(temperature)


def fit_temperature(log_p_cl: np.ndarray, codes: np.ndarray) -> float:
    """Return the temperature under which held-out cells are most likely (Guo et al. 2017)."""
    if len(codes) < 20:
        return 1.0
    # A label without training cells does not tell how confident the model should be.
    is_possible = log_p_cl[np.arange(len(codes)), codes] > -60
    log_p = torch.from_numpy(log_p_cl[is_possible]).double()
    target = torch.from_numpy(codes[is_possible]).long()

    def loss(log_temperature: float) -> float:
        scaled = log_p / np.exp(log_temperature)
        prior = 0.5 * (log_temperature / 0.5) ** 2  # a normal one around 0
        return float(F.cross_entropy(scaled, target, reduction="sum")) + prior

    return float(np.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded").x))
