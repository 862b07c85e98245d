"""Training of an annotator: the network, the linear models, fine-tuning, calibration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import PositiveInt
from scipy import sparse
from scipy.special import softmax
from scvi.data import AnnDataManager, _constants
from tqdm.auto import tqdm

from .._logging import logger
from .._validation import check
from ..data.fields import CategoryField, LabelsField
from ..data.vocabulary import preview
from ..model.base import XTrimoGeneBase
from ..model.batches import PROGRESS_SECONDS
from ..model.derive import register_field
from ..model.files import hash_texts
from ..model.registration import UNLABELED
from ..model.training import as_epochs, default_batch_size, default_lr
from ..train.datamodule import as_sets
from ..train.finetuning import FinetuningConfig
from ..train.initialization import log_normalize, read_counts
from ..train.plan import OptimizerConfig, XTrimoGenePlan
from ..train.trainer import KeepBest, as_list, objective_of
from .linear import (
    N_FOLDS,
    LinearData,
    LinearModels,
    cross_validate,
    draw_labelled,
    fit_temperature,
    split_labelled,
)
from .module import XTrimoGeneAnnotatorModule
from .plan import AnnotationConfig, AnnotatorPlan, ClassWeight, label_weights
from .prediction import AnnotationMixin

Recipe = Literal["linear", "finetune", "published"]
FINETUNING_STEPS = 200
MACRO_F1 = "macro_f1_validation"


class AnnotatorTrainingMixin(AnnotationMixin, XTrimoGeneBase):
    """``train`` of an annotator."""

    module: XTrimoGeneAnnotatorModule
    _annotation: AnnotationConfig | None = None  # none while the network is trained by itself
    _held_out: pd.DataFrame | None = None
    _held_out_labels: pd.Series

    def train(  # type: ignore[override]
        self,
        max_epochs: int | None = None,
        recipe: Recipe | None = None,
        *,
        freeze: str | None = None,
        layer_decay: float = 1.0,
        lora_rank: int = 0,
        class_weight: ClassWeight = None,
        label_smoothing: float = 0.0,
        reconstruction_weight: float = 1.0,
        finetuning: FinetuningConfig | None = None,
        early_stopping: bool = False,
        pretrain_epochs: int | None = None,
        train_size: float | None = None,
        ckpt_path: str | os.PathLike | None = None,
        optimizer: OptimizerConfig | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the network on all cells if it was not trained yet, then learn the labels.

        The labels are those that the data have now: corrected, renamed or new ones are learned by
        training again. A fine-tuning moves the cell vectors but not the latent space, which the
        classifier relies on: for embeddings, prefer the model before it.

        Parameters
        ----------
        max_epochs
            Passes of a fine-tuning over the training cells, by default about 200 steps.
        recipe
            ``"linear"``: the two linear models and their calibration alone, the network stays as
            it is. ``"finetune"``: from there, the network and a two-layer perceptron are trained
            on the labels. ``"published"``: the last layer of the encoder, what pools it and a
            two-layer perceptron with random weights are trained with a weighted cross-entropy,
            without the masked objective :cite:p:`Gong2023`. By default ``"finetune"`` if anything
            is asked for that only applies to it, else ``"linear"``: on a few thousand cells
            fine-tuning was not better.
        freeze, layer_decay, lora_rank
            What is fine-tuned, see :class:`~scxtrimo.train.FinetuningConfig`.
        class_weight, label_smoothing, reconstruction_weight
            Objective, see :class:`~scxtrimo.annotation.AnnotationConfig`. The class weight
            applies to the linear models as well.
        finetuning
            All of ``freeze``, ``layer_decay`` and the low-rank adapters at once.
        early_stopping
            Stop a fine-tuning when the macro-averaged F1 score of the validation cells has not
            risen for ``early_stopping_patience`` epochs, and go back to the best epoch.
        pretrain_epochs
            Epochs of :meth:`XTrimoGene.train`, if the network was not trained yet; by default
            chosen from the number of cells.
        train_size
            Which part of the cells to learn from, of every label alike. The others calibrate the
            probabilities; a label of fewer than five cells is only learned from. By default nine
            tenths in a fine-tuning. Linear models learn from all labelled cells by default, and
            are calibrated on five-fold cross-validated probabilities. Either way
            :attr:`held_out` has the probabilities of cells that were not learned from.
        ckpt_path
            A ``last.ckpt`` to go on from, see :meth:`XTrimoGene.train`.
        optimizer, datasplitter_kwargs, plan_kwargs, **kwargs
            See :meth:`XTrimoGene.train`; optimiser and ``plan_kwargs`` are those of the
            fine-tuning.

        Raises
        ------
        ValueError
            If an argument has an impossible value or does not go with the recipe.
        FileNotFoundError
            If ``ckpt_path`` does not exist.

        Examples
        --------
        >>> annotator.train()
        >>> annotator.train(
        ...     max_epochs=1, freeze="encoder", class_weight="balanced", enable_progress_bar=False
        ... )
        """
        check("early_stopping", early_stopping, bool)
        max_epochs, pretrain_epochs = (
            as_epochs(max_epochs),
            as_epochs(pretrain_epochs, "pretrain_epochs"),
        )
        check("batch_size", kwargs.get("batch_size"), PositiveInt | None)
        if "validation_size" in kwargs:
            raise TypeError(
                "validation_size= is not an argument here: the cells that are not learned from "
                "calibrate the probabilities. Lower `train_size` for more of them."
            )
        if self.adata_manager is None:
            raise ValueError(
                "The annotator has no data to train on; load it with `load(..., adata=...)`."
            )
        self._validate_anndata()
        if finetuning is None:
            finetuning = FinetuningConfig(freeze, layer_decay, lora_rank)
        elif (freeze, layer_decay, lora_rank) != (None, 1.0, 0):
            raise TypeError("Give either `finetuning` or `freeze`, `layer_decay`, `lora_rank`.")
        annotation = AnnotationConfig(class_weight, label_smoothing, reconstruction_weight)
        only_finetuning = {
            "max_epochs": max_epochs is not None,
            "freeze, layer_decay or lora_rank": finetuning != FinetuningConfig(),
            "label_smoothing": label_smoothing > 0,
            "reconstruction_weight": reconstruction_weight != 1,
            "early_stopping": early_stopping,
            "optimizer": optimizer is not None,
            "plan_kwargs": bool(plan_kwargs),
        }
        asked = [name for name, is_given in only_finetuning.items() if is_given]
        if recipe is None:
            recipe = "finetune" if asked else "linear"
        if recipe not in ("linear", "finetune", "published"):
            raise ValueError(f"recipe={recipe!r} must be 'linear', 'finetune' or 'published'.")
        if recipe == "linear" and asked:
            raise ValueError(f"recipe='linear' does not fine-tune: leave out {asked}.")
        if recipe == "published":
            given_weight = reconstruction_weight != 1
            if finetuning != FinetuningConfig() or class_weight or label_smoothing or given_weight:
                raise ValueError("recipe='published' says itself what is trained, and how.")
            finetuning = FinetuningConfig(freeze="all_but_last_1")
            annotation = AnnotationConfig(class_weight="balanced", reconstruction_weight=0.0)
        finetuning.check(self.config_.n_layers)
        with ExitStack() as stack:
            stack.enter_context(self._progress_as_asked(kwargs))
            if self.is_trained_:
                stack.enter_context(self._labels_kept_if_interrupted())
            if ckpt_path is None:
                self._learn_present_labels()
            codes = self._codes()
            splitting = dict(datasplitter_kwargs or {})
            given = splitting.pop("external_indexing", None)
            cross_validated = recipe == "linear" and train_size is None and given is None
            if given is None:
                splits = split_labelled(
                    codes, 0.9 if train_size is None else train_size, self.seed_
                )
            else:
                splits = as_sets(given, len(codes))
            splitting["external_indexing"] = splits
            train_rows, validation_rows, _ = splits
            if early_stopping and not (codes[validation_rows] >= 0).any():
                raise ValueError(
                    "early_stopping=True needs labelled validation cells, but every label has so "
                    "few cells that all are trained on. Lower `train_size`."
                )
            kwargs["datasplitter_kwargs"] = splitting
            # From random weights as fast as ever; what is good already moves slowly.
            lr = default_lr(self.config_.n_hidden) * (1.0 if recipe == "published" else 0.1)
            if plan_kwargs:
                plan_kwargs = {"lr": lr} | plan_kwargs
            elif optimizer is None:
                optimizer = OptimizerConfig(lr=lr)
            if recipe != "linear":
                self._make_plan(optimizer, kwargs.get("masking"), finetuning, plan_kwargs or {})
            resumed = None if ckpt_path is None else objective_of(ckpt_path)
            if resumed == AnnotatorPlan.__name__ and recipe == "linear":
                raise ValueError(
                    f"ckpt_path={str(ckpt_path)!r} is of a fine-tuning: repeat its arguments, "
                    "such as `max_epochs`."
                )
            try:
                if resumed == XTrimoGenePlan.__name__ or not (self.is_trained_ or resumed):
                    self._annotation = None
                    start = ckpt_path if resumed else None
                    super().train(max_epochs=pretrain_epochs, ckpt_path=start, **kwargs)
                    # That the network is trained stays, whatever happens now.
                    stack.enter_context(self._labels_kept_if_interrupted())
                    resumed = ckpt_path = None
                if resumed is None:
                    rows = np.arange(len(codes)) if cross_validated else train_rows
                    self._fit_linear(rows, codes, annotation.class_weight, recipe, cross_validated)
                if recipe != "linear":
                    self._annotation = annotation
                    if max_epochs is None:
                        n_cells = kwargs.get("batch_size") or default_batch_size(self.adata.n_obs)
                        n_steps = max(1, len(train_rows) // n_cells)
                        max_epochs = int(np.clip(round(FINETUNING_STEPS / n_steps), 3, 100))
                    if early_stopping:
                        kwargs["callbacks"] = [
                            *as_list(kwargs.get("callbacks")),
                            KeepBest(MACRO_F1),
                        ]
                        kwargs |= {
                            "early_stopping_monitor": MACRO_F1,
                            "early_stopping_mode": "max",
                        }
                    super().train(
                        max_epochs=max_epochs,
                        early_stopping=early_stopping,
                        ckpt_path=ckpt_path,
                        optimizer=optimizer,
                        plan_kwargs=plan_kwargs,
                        finetuning=finetuning,
                        **kwargs,
                    )
            finally:
                self._annotation = None
            if not cross_validated:
                self._calibrate(validation_rows, codes)

    def _learn_present_labels(self) -> None:
        """Take over the labels that the data have now, if they are others than the model's."""
        args = self._setup_of(self.adata).setup_args
        field = LabelsField(args["labels_key"], args[UNLABELED])
        state = field.register_field(self.adata)
        present = state[CategoryField.MAPPING_KEY].tolist()
        before = self.registry_[_constants._FIELD_REGISTRIES_KEY][field.registry_key]
        known = before[_constants._STATE_REGISTRY_KEY]
        if set(present) == set(known[CategoryField.MAPPING_KEY]):
            return
        logger.info(
            f"The labels are now {preview(present, 10)}; they were {self.labels.tolist()}."
        )
        self.registry_ = deepcopy(self.registry_)
        register_field(self.registry_, field, state)
        self.summary_stats = AnnDataManager._get_summary_stats_from_registry(self.registry_)
        self._register_query(self.adata, self._setup_of(self.adata))
        fresh = self._make_module().to(self.device)
        self.module.classifier = fresh.classifier
        self.module.gene_classifier = fresh.gene_classifier
        self.module.temperature.fill_(1.0)
        self._held_out = None

    @contextmanager
    def _labels_kept_if_interrupted(self) -> Iterator[None]:
        """Give the annotator back as it was, if what is done to it does not come to an end."""
        names = ("registry_", "summary_stats", "_adata_manager", "_held_out")
        heads = self.module.classifier, self.module.gene_classifier
        with self._unchanged_if_interrupted(*names):
            try:
                yield
            except BaseException:  # weights are put back into these
                self.module.classifier, self.module.gene_classifier = heads
                raise

    def _trained_on(self) -> dict[str, str]:
        hashes = super()._trained_on()
        if self._annotation is not None:
            hashes["labels"] = hash_texts((*self.labels, *self._codes().tolist()))
        return hashes

    def _plan_class(self) -> type[XTrimoGenePlan]:
        return XTrimoGenePlan if self._annotation is None else AnnotatorPlan

    def _plan_arguments(self) -> dict[str, Any]:
        if self._annotation is None:
            return {}
        codes = self._codes()
        return {
            "annotation": self._annotation,
            "measured": self._measured_genes(self.adata),
            "label_weights": label_weights(
                codes[codes >= 0], len(self.labels), self._annotation.class_weight
            ),
        }

    def _finish_training(self, rows: np.ndarray) -> None:
        # The classifier was trained on the latent space as it is.
        if self._annotation is None:
            super()._finish_training(rows)

    def _fit_linear(
        self,
        rows: np.ndarray,
        codes: np.ndarray,
        class_weight: ClassWeight,
        recipe: Recipe,
        cross_validated: bool,
    ) -> None:
        """Fit the linear models to labelled cells."""
        rows = draw_labelled(rows[codes[rows] >= 0], codes, self.seed_)
        counts = np.bincount(codes[rows], minlength=len(self.labels))
        if few := [f"{self.labels[i]!r} ({counts[i]})" for i in np.flatnonzero(counts < 10)]:
            logger.info(f"Labels with fewer than 10 cells to learn from: {', '.join(few)}.")
        if (counts > 0).sum() < 2:
            raise ValueError(
                "The cells to learn from have fewer than two labels. Raise `train_size`."
            )
        models = LinearModels.copy_of(self.module.classifier, self.module.gene_classifier)
        models.classifier.reset()
        gene_weight = 0.0 if recipe == "published" else self.module.config.gene_weight
        # Random numbers of data loaders come from the global state.
        with torch.random.fork_rng(devices=[]):
            features = self._features(rows)
        data = LinearData(
            features, self._logged(rows) if gene_weight else None, codes[rows], class_weight
        )
        with tqdm(
            total=1 + N_FOLDS * cross_validated,
            desc="Fitting linear models",
            unit="fit",
            delay=PROGRESS_SECONDS,
            disable=not self._shows_progress,
        ) as bar:
            models.fit(data, self.module.feature_blocks, self.seed_)
            bar.update()
            if cross_validated:
                held_out = cross_validate(
                    models, data, self.module.feature_blocks, gene_weight, self.seed_, bar.update
                )
        if recipe == "published":
            models.classifier.start_at_random(self.seed_)
        if not self.module.mean_expression.any() and data.logged is not None:  # as published
            mean = np.asarray(data.logged.mean(axis=0)).ravel().astype(np.float32)
            self.module.mean_expression.copy_(torch.from_numpy(mean))
        # The fit did not fail: only now is anything replaced.
        self.module.classifier.load_state_dict(models.classifier.state_dict())
        self.module.gene_classifier.load_state_dict(models.gene_classifier.state_dict())
        self.module.gene_weight.fill_(gene_weight)
        if cross_validated and held_out is not None:
            self._set_temperature(held_out, rows, codes)
        elif cross_validated:
            logger.info("Too few labelled cells to calibrate the probabilities on.")
            self.module.temperature.fill_(1.0)
            self._held_out = None

    def _logged(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Return log-normalised expression, shape ``(n_rows, n_genes)``."""
        return log_normalize(read_counts(self.adata_manager, rows, len(self.vocabulary)))

    def _calibrate(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Choose the temperature on the labelled validation cells."""
        self.module.temperature.fill_(1.0)
        rows = rows[codes[rows] >= 0]
        if len(rows) == 0:
            self._held_out = None
            return
        with torch.random.fork_rng(devices=[]):
            probabilities = np.asarray(self.predict(indices=rows, soft=True))
        self._set_temperature(np.log(np.maximum(probabilities, 1e-30)), rows, codes)

    def _set_temperature(self, log_p_cl: np.ndarray, rows: np.ndarray, codes: np.ndarray) -> None:
        """Calibrate on cells that were not learned from, and keep their probabilities."""
        temperature = fit_temperature(log_p_cl, codes[rows])
        self.module.temperature.fill_(temperature)
        probabilities = softmax(log_p_cl / temperature, axis=1)
        names = self.adata.obs_names[rows]
        self._held_out = pd.DataFrame(probabilities, index=names, columns=self.labels)
        self._held_out_labels = pd.Series(self.labels[codes[rows]], index=names, name="label")

    @property
    def held_out(self) -> pd.DataFrame:
        """Probabilities of the labels for cells that these were not learned from.

        After cross-validation all labelled cells, otherwise those of the validation split; shape
        ``(n_cells, n_labels)``. The honest input of :func:`scxtrimo.tl.annotation_report` and
        :func:`scxtrimo.tl.coverage_accuracy`. It is not saved with the model.

        Raises
        ------
        ValueError
            If the annotator was not trained since it was loaded, or no cell was held out.

        Examples
        --------
        >>> predicted = annotator.held_out.idxmax(axis=1)
        >>> report = scxtrimo.tl.annotation_report(annotator.held_out_labels, predicted)
        """
        if self._held_out is None:
            raise ValueError(
                "No cells were held out, or the annotator was not trained since it was loaded."
            )
        return self._held_out

    @property
    def held_out_labels(self) -> pd.Series:
        """The labels that the held-out cells have in the data, in the same order.

        Examples
        --------
        >>> annotator.held_out_labels.shape == annotator.held_out.shape[:1]
        True
        """
        assert self.held_out is not None  # raises if there are none
        return self._held_out_labels
