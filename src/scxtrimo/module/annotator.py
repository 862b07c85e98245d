"""The module with a head for the labels of cells."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..nn import (
    CellClassifier,
    EncodedCells,
    GeneClassifier,
    average_log_probabilities,
    normalize_counts,
)
from ..nn.ragged import to_tokens
from .config import XTrimoGeneAnnotatorConfig
from .latent_space import Panel
from .xtrimogene import XTrimoGeneModule


class LabelPanel(NamedTuple):
    """What the genes that some data have mean for their annotation."""

    components: Panel | None
    gene_offset_l: Tensor


class XTrimoGeneAnnotatorModule(XTrimoGeneModule):
    r"""An :class:`XTrimoGeneModule` that tells labels apart.

    .. math::
        p_{cl} \propto \left( (1 - w) \, \mathrm{softmax}_l(C(z_c)) + w \, G_l(v_c)
            \right)^{1 / T}

    :math:`C` is a :class:`~scxtrimo.nn.CellClassifier` on the principal components, batches
    integrated (see :class:`LatentSpace`), and the cell vector of the network, :math:`G` a
    :class:`~scxtrimo.nn.GeneClassifier` on the log-normalised expression, :math:`w` the
    ``gene_weight`` and :math:`T` a temperature. Of published models :math:`C` sees the published
    cell embedding.

    Parameters
    ----------
    n_genes, n_categories, config, seed, has_batches
        See :class:`XTrimoGeneModule`.
    n_labels
        Number of labels.
    """

    config: XTrimoGeneAnnotatorConfig
    temperature: Tensor
    gene_weight: Tensor

    def __init__(
        self,
        n_genes: int,
        n_categories: tuple[int, ...],
        config: XTrimoGeneAnnotatorConfig,
        seed: int = 0,
        has_batches: bool = False,
        *,
        n_labels: int,
    ) -> None:
        super().__init__(n_genes, n_categories, config, seed, has_batches)
        self.classifier = CellClassifier(
            sum(self.feature_blocks),
            n_labels,
            config.n_classifier_hidden,
            config.classifier_dropout,
        )
        self.gene_classifier = GeneClassifier(n_genes, n_labels)
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("gene_weight", torch.tensor(float(config.gene_weight)))

    @property
    def feature_blocks(self) -> list[int]:
        """Numbers of features that belong together and share one scale."""
        if not self.config.has_bottleneck:
            return [self.config.n_hidden] * 4  # S, T, maximum and mean
        n_latent = self.config.n_latent
        return [n_latent, n_latent] if self.config.uses_components else [n_latent]

    def label_panel(self, measured: Tensor) -> LabelPanel:
        """Return what the genes of some data mean.

        Parameters
        ----------
        measured
            Genes the data have, bool, shape ``(n_genes,)``.
        """
        space = self.latent_space
        return LabelPanel(
            None if space is None else space.panel(measured),
            self.gene_classifier.missing(self.mean_expression, measured),
        )

    def features(self, batch: dict[str, Any], cells: EncodedCells, panel: LabelPanel) -> Tensor:
        """Return what the classifier sees, shape ``(n_cells, n_features)``.

        Parameters
        ----------
        batch
            Ragged batch with all expressed genes, see :class:`~scxtrimo.data.RaggedDataset`.
        cells
            Its cells, encoded.
        panel
            What :meth:`label_panel` returned for the genes of the data.
        """
        vector_cz = cells.latent_cz.float()
        if self.latent_space is None:
            return vector_cz
        assert panel.components is not None
        components_ck = self.latent_space(
            vector_cz,
            self.latent_space.measure(batch),
            panel.components,
            self.batch_codes(batch),
            measured_weight=1.0,  # what the network predicts is in the cell vector already
        )
        return torch.cat([components_ck, vector_cz], dim=1)

    def label_log_probabilities(
        self, batch: dict[str, Any], cells: EncodedCells, panel: LabelPanel
    ) -> Tensor:
        """Return calibrated log-probabilities of the labels, shape ``(n_cells, n_labels)``.

        Parameters
        ----------
        batch, cells, panel
            See :meth:`features`.
        """
        log_p_cl = self.classifier(self.features(batch, cells, panel)).log_softmax(dim=1)
        if self.gene_weight > 0:
            by_genes_cl = self.genes_log_probabilities(batch, panel)
            log_p_cl = average_log_probabilities(log_p_cl, by_genes_cl, self.gene_weight)
        return (log_p_cl / self.temperature).log_softmax(dim=1)

    def genes_log_probabilities(self, batch: dict[str, Any], panel: LabelPanel) -> Tensor:
        """Return the log-probabilities of the linear model on genes."""
        counts_t, cu_seqlens = batch["counts"], batch["cu_seqlens"]
        library_size_t = to_tokens(batch["library_size"], cu_seqlens, len(counts_t))
        values_t = normalize_counts(counts_t, library_size_t)
        return self.gene_classifier(values_t, batch["gene_ids"], cu_seqlens, panel.gene_offset_l)
