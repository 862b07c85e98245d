"""The network with its two classifiers of cells: what is saved of an annotator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import XTrimoGeneConfig
from ..latent import Panel
from ..nn.layers import normalize_counts
from ..nn.ragged import EncodedCells, RaggedBatch, to_tokens
from ..nn.ranges import Fraction, PositiveInt, Probability
from ..nn.xtrimogene import XTrimoGeneModule


@dataclass(frozen=True)
class XTrimoGeneAnnotatorConfig(XTrimoGeneConfig):
    """Hyper-parameters of an annotator, beyond :class:`~scxtrimo.model.XTrimoGeneConfig`.

    Parameters
    ----------
    n_classifier_hidden, classifier_dropout
        Inner width and dropout of the two-layer perceptron that fine-tuning trains.
    gene_weight
        Weight of the linear model on genes in the averaged probabilities, by default found by
        cross-validation; 0 leaves it out.

    Examples
    --------
    >>> from scxtrimo.annotation import XTrimoGeneAnnotatorConfig
    >>> XTrimoGeneAnnotatorConfig.from_size("1m", gene_weight=0.3).n_hidden
    64
    """

    n_classifier_hidden: PositiveInt = 128
    classifier_dropout: Fraction = 0.1
    gene_weight: Probability | None = None


class LabelPanel(NamedTuple):
    """What the genes measured in some data mean for the classifiers."""

    components: Panel | None  # for the latent space, if there is one
    gene_offset_l: Tensor  # what unmeasured genes add to the scores, shape (n_labels,)


class CellClassifier(nn.Module):
    """Sum of a linear model and a perceptron (Gong et al. 2023), which is zero at the start."""

    mean: Tensor
    scale: Tensor
    is_fitted: Tensor

    def __init__(self, n_features: int, n_labels: int, n_inner: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool))
        self.linear = nn.Linear(n_features, n_labels)
        first, last = nn.Linear(n_features, n_inner), nn.Linear(n_inner, n_labels)
        self.mlp = nn.Sequential(first, nn.GELU(), nn.Dropout(dropout), last)
        self.reset()

    def reset(self) -> None:
        """Set both outputs to zero: all labels are equally probable."""
        for part in (self.linear, self.mlp[-1]):
            for parameter in part.parameters():
                nn.init.zeros_(parameter)

    def start_at_random(self, seed: int) -> None:
        """Drop the linear model and give the perceptron random weights."""
        self.reset()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in self.mlp:
                if isinstance(part, nn.Linear):
                    part.reset_parameters()

    def forward(self, features_cf: Tensor) -> Tensor:
        """Return logits, shape ``(n_cells, n_labels)``."""
        normalized_cf = (features_cf - self.mean) / self.scale
        return self.linear(normalized_cf) + self.mlp(normalized_cf)


class GeneClassifier(nn.Module):
    """Logistic regressions on log-normalised expression, each label against the others."""

    weight: Tensor
    bias: Tensor

    def __init__(self, n_genes: int, n_labels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_genes, n_labels))
        self.register_buffer("bias", torch.zeros(n_labels))

    def forward(
        self,
        values_t: Tensor,
        gene_ids_t: Tensor,
        cu_seqlens: Tensor,
        offset_l: Tensor | float = 0.0,
    ) -> Tensor:
        """Return log-probabilities, shape ``(n_cells, n_labels)``."""
        # One weighted sum per cell, without an intermediate of shape (n_tokens, n_labels).
        starts_c = cu_seqlens[:-1].long()
        score_cl = F.embedding_bag(
            gene_ids_t, self.weight, starts_c, mode="sum", per_sample_weights=values_t
        )
        return F.logsigmoid(score_cl + self.bias + offset_l).log_softmax(dim=1)


def average_log_probabilities(
    by_cell_cl: Tensor, by_genes_cl: Tensor, gene_weight: Tensor
) -> Tensor:
    """Return the log of the weighted average of two sets of probabilities, given as logs."""
    # A weight of 0 needs no special case, as exp(-inf) = 0.
    weights = torch.stack([1 - gene_weight, gene_weight]).log()
    return torch.logaddexp(weights[0] + by_cell_cl, weights[1] + by_genes_cl)


class XTrimoGeneAnnotatorModule(XTrimoGeneModule):
    """An ``XTrimoGeneModule`` with two classifiers, whose probabilities are averaged."""

    config: XTrimoGeneAnnotatorConfig
    added_buffers = (*XTrimoGeneModule.added_buffers, "component_weight")
    temperature: Tensor
    gene_weight: Tensor
    component_weight: Tensor

    def __init__(self, *args: Any, n_labels: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        inner = self.config.n_classifier_hidden, self.config.classifier_dropout
        self.classifier = CellClassifier(sum(self.feature_blocks), n_labels, *inner)
        self.gene_classifier = GeneClassifier(self.n_genes, n_labels)
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("gene_weight", torch.tensor(float(self.config.gene_weight or 0)))
        # How much of the components is measured; all of it in earlier versions.
        n_components = self.config.n_representation if self.config.uses_components else 0
        self.register_buffer("component_weight", torch.ones(n_components))

    @property
    def feature_blocks(self) -> list[int]:
        """Sizes of the groups of features that are scaled together."""
        if not self.config.has_bottleneck:
            return [self.config.n_hidden] * 4  # S, T, maximum and mean
        components = [self.config.n_representation] if self.config.uses_components else []
        return [*components, self.config.n_latent]

    def label_panel(self, measured: Tensor) -> LabelPanel:
        """Return the panel of the measured genes: bool, shape ``(n_genes,)``."""
        components = None if self.latent_space is None else self.latent_space.panel(measured)
        unmeasured = self.mean_expression * ~measured  # counts as average
        return LabelPanel(components, unmeasured @ self.gene_classifier.weight)

    def features(self, batch: RaggedBatch, cells: EncodedCells, panel: LabelPanel) -> Tensor:
        """Return integrated components, if there are any, and cell vectors, for the classifier."""
        vector_cz = cells.latent_cz.float()
        if self.latent_space is None:
            return vector_cz
        assert panel.components is not None
        components_ck = self.latent_space(
            self.predictors(cells),
            self.latent_space.measure(batch),
            panel.components,
            self.batch_codes(batch),
            measured_weight=self.component_weight,
        )
        return torch.cat([components_ck, vector_cz], dim=1)

    def label_log_probabilities(
        self, batch: RaggedBatch, cells: EncodedCells, panel: LabelPanel
    ) -> Tensor:
        """Return calibrated log-probabilities, shape ``(n_cells, n_labels)``."""
        log_p_cl = self.classifier(self.features(batch, cells, panel)).log_softmax(dim=1)
        if self.gene_weight > 0:
            counts_t, ids_t, cu_seqlens = batch["counts"], batch["gene_ids"], batch["cu_seqlens"]
            library_size_t = to_tokens(batch["library_size"], cu_seqlens, len(counts_t))
            values_t = normalize_counts(counts_t, library_size_t)
            by_genes_cl = self.gene_classifier(values_t, ids_t, cu_seqlens, panel.gene_offset_l)
            log_p_cl = average_log_probabilities(log_p_cl, by_genes_cl, self.gene_weight)
        return (log_p_cl / self.temperature).log_softmax(dim=1)
