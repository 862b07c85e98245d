"""The objective of an annotator that is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat
from scvi.module.base import LossOutput
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional as F

from .._validation import Fraction, Validated
from ..train.depth import TargetDepth
from ..train.plan import VALIDATION_EPOCH, XTrimoGenePlan
from .module import LabelPanel, XTrimoGeneAnnotatorModule

ClassWeight = Literal["balanced"] | None


@dataclass(frozen=True)
class AnnotationConfig(Validated):
    """The objective of an annotator.

    Parameters
    ----------
    class_weight
        ``"balanced"`` gives all labels the same weight whatever the number of their cells.
    label_smoothing
        How much of the target is spread over all labels.
    reconstruction_weight
        Weight of the objective of :class:`~scxtrimo.model.XTrimoGene`, on all cells, labelled or
        not; 0 leaves it out.

    Examples
    --------
    >>> AnnotationConfig(class_weight="balanced").label_smoothing
    0.0
    """

    class_weight: ClassWeight = None
    label_smoothing: Fraction = 0.0
    reconstruction_weight: NonNegativeFloat = 1.0


class AnnotatorPlan(XTrimoGenePlan):
    """Adds the cross-entropy of the labels to the objective.

    Parameters
    ----------
    module
        What is trained.
    *args
        See :class:`XTrimoGenePlan`.
    annotation
        The objective.
    measured
        Genes that the training data have, bool, shape ``(n_genes,)``.
    label_weights
        Weight of every label, shape ``(n_labels,)``.
    **kwargs
        See :class:`XTrimoGenePlan`.
    """

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
        self.annotation = annotation
        self.measured = measured
        self.panel: LabelPanel | None = None
        self.register_buffer("label_weights", label_weights, persistent=False)
        self._validated: list[tuple[Tensor, Tensor]] = []

    def _loss(self, batch: dict[str, Tensor], epoch: int) -> LossOutput:
        """Cross-entropy of labelled cells, seen whole, plus the masked objective of all."""
        labels_c = batch["labels"]
        whole = batch
        if self.module.config.read_depth_aware:  # as predictions are made
            target = TargetDepth("t", float(self.module.typical_depth))
            whole = batch | {"depths": target.tokens(batch["library_size"])}
        cells = self.module.inference(**self.module._get_inference_input(whole))["cells"]
        # In bfloat16 features would not be those of predictions.
        with torch.autocast(labels_c.device.type, enabled=False):
            if self.panel is None:  # only now: a checkpoint to go on from is loaded
                with torch.inference_mode(False), torch.no_grad():
                    self.panel = self.module.label_panel(self.measured.to(labels_c.device))
            features_cf = self.module.features(batch, cells, self.panel)
            logits_cl = self.module.classifier(features_cf)
        is_labelled = labels_c >= 0
        if epoch == VALIDATION_EPOCH:
            self._validated.append((logits_cl[is_labelled].argmax(1), labels_c[is_labelled]))
        cross_entropy_c = F.cross_entropy(
            logits_cl,
            labels_c.clamp(min=0),
            weight=self.label_weights,
            label_smoothing=self.annotation.label_smoothing,
            reduction="none",
        )
        weight_c = self.label_weights[labels_c.clamp(min=0)] * is_labelled
        # A batch without labels adds nothing.
        cross_entropy = (cross_entropy_c * is_labelled).sum() / weight_c.sum().clamp(min=1e-8)
        metrics = {"cross_entropy": cross_entropy.detach()}
        weight = self.annotation.reconstruction_weight
        if not weight:
            return LossOutput(
                loss=cross_entropy,
                reconstruction_loss=torch.zeros_like(cross_entropy_c),
                extra_metrics=metrics,
            )
        masked = super()._loss(batch, epoch)
        return LossOutput(
            loss=cross_entropy + weight * masked.loss,
            reconstruction_loss=masked.reconstruction_loss,
            extra_metrics=masked.extra_metrics | metrics,
        )

    def on_validation_epoch_end(self) -> None:
        """Log the macro-averaged F1 score of the validation cells."""
        predicted, labels = (
            torch.cat(part).cpu().numpy() for part in zip(*self._validated, strict=True)
        )
        self._validated.clear()
        if len(labels):
            score = f1_score(labels, predicted, labels=np.unique(labels), average="macro")
            self.log("macro_f1_validation", float(score), batch_size=len(labels))


def label_weights(codes: np.ndarray, n_labels: int, class_weight: ClassWeight) -> Tensor:
    """Return the weight of every label; a label without cells has weight 1.

    Examples
    --------
    >>> label_weights(np.array([0, 0, 0, 1]), 2, "balanced")
    tensor([0.6667, 2.0000])
    """
    weights = torch.ones(n_labels)
    if class_weight is not None:
        present = np.unique(codes)
        values = compute_class_weight(class_weight, classes=present, y=codes)
        weights[torch.from_numpy(present)] = torch.from_numpy(values).float()
    return weights
