"""The module with a head for the labels of cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor

from .._validation import Fraction, Probability
from ..config import XTrimoGeneConfig
from ..latent import Panel
from ..nn.embedding import normalize_counts
from ..nn.encoded import EncodedCells
from ..nn.ragged import to_tokens
from ..train.module import XTrimoGeneModule
from .classifiers import CellClassifier, GeneClassifier, average_log_probabilities


@dataclass(frozen=True)
class XTrimoGeneAnnotatorConfig(XTrimoGeneConfig):
    """Hyper-parameters of an :class:`~scxtrimo.model.XTrimoGeneAnnotator`.

    Parameters
    ----------
    n_hidden, n_layers, n_heads, n_bins, bin_alpha, n_pool, n_latent, imputation_decoder
        See :class:`~scxtrimo.model.XTrimoGeneConfig`.
    n_decoder_hidden, n_decoder_layers, n_decoder_heads, decoder_head_width
        See :class:`~scxtrimo.model.XTrimoGeneConfig`.
    redraw_features_every, read_depth_aware, n_covariate, n_input_genes, pca_initialization
        See :class:`~scxtrimo.model.XTrimoGeneConfig`.
    latent_space, measured_weight, likelihood_weight, imputation_weight
        See :class:`~scxtrimo.model.XTrimoGeneConfig`.
    activation, norm_first, dropout
        See :class:`~scxtrimo.model.XTrimoGeneConfig`.
    n_classifier_hidden, classifier_dropout
        Inner width and dropout of the perceptron, see ``CellClassifier``.
    gene_weight
        Share of the linear model on genes in the probabilities, from 0 to 1; 0 leaves it out.

    Notes
    -----
    Besides there are the fields of :class:`~scxtrimo.model.XTrimoGeneConfig`.

    Examples
    --------
    >>> from scxtrimo.annotation import XTrimoGeneAnnotatorConfig
    >>> XTrimoGeneAnnotatorConfig.from_size("1m", gene_weight=0.3).n_hidden
    64
    """

    n_classifier_hidden: PositiveInt = 128
    classifier_dropout: Fraction = 0.1
    gene_weight: Probability = 0.5


class LabelPanel(NamedTuple):
    """What the genes that some data have mean for their annotation.

    Parameters
    ----------
    components
        The same for the principal components; ``None`` if the model has none.
    gene_offset_l
        What genes that the data lack add to the scores of the linear model on genes, shape
        ``(n_labels,)``.

    Examples
    --------
    >>> import torch
    >>> measured = torch.ones(len(annotator.vocabulary), dtype=torch.bool)
    >>> panel = annotator.module.label_panel(measured)
    >>> panel.gene_offset_l.abs().sum()  # no gene is missing
    tensor(0.)
    """

    components: Panel | None
    gene_offset_l: Tensor


class XTrimoGeneAnnotatorModule(XTrimoGeneModule):
    r"""An ``XTrimoGeneModule`` that tells labels apart.

    .. math::
        p_{cl} \propto \left( (1 - w) \, \mathrm{softmax}_l(C(z_c)) + w \, G_l(v_c)
            \right)^{1 / T}

    :math:`C` is a ``CellClassifier`` on the principal components, batches
    integrated (see :class:`LatentSpace`), and the cell vector of the network, :math:`G` a
    ``GeneClassifier`` on the log-normalised expression, :math:`w` the
    ``gene_weight`` and :math:`T` a temperature. Of published models :math:`C` sees the published
    cell embedding.

    Parameters
    ----------
    n_genes, n_categories, config, seed, has_batches
        See :class:`XTrimoGeneModule`.
    n_labels
        Number of labels.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.annotation import XTrimoGeneAnnotatorConfig
    >>> from scxtrimo.annotation.module import XTrimoGeneAnnotatorModule
    >>> config = XTrimoGeneAnnotatorConfig.from_size("tiny", latent_space="bottleneck")
    >>> module = XTrimoGeneAnnotatorModule(10, (), config, n_labels=3).eval()
    >>> module.feature_blocks
    [32]
    >>> batch = {
    ...     "counts": torch.tensor([1.0, 2.0, 3.0]),
    ...     "gene_ids": torch.tensor([0, 4, 9]),
    ...     "cu_seqlens": torch.tensor([0, 1, 3], dtype=torch.int32),
    ...     "library_size": torch.tensor([1.0, 5.0]),
    ...     "categories": torch.zeros(2, 0, dtype=torch.int64),
    ... }
    >>> cells = module.inference(**batch)["cells"]
    >>> panel = module.label_panel(measured=torch.ones(10, dtype=torch.bool))
    >>> module.features(batch, cells, panel).shape
    torch.Size([2, 32])
    >>> module.label_log_probabilities(batch, cells, panel).shape
    torch.Size([2, 3])
    >>> module.genes_log_probabilities(batch, panel).shape
    torch.Size([2, 3])
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

        Returns
        -------
        What the methods below take.
        """
        space = self.latent_space
        return LabelPanel(
            None if space is None else space.panel(measured),
            self.gene_classifier.missing(self.mean_expression, measured),
        )

    def features(self, batch: dict[str, Any], cells: EncodedCells, panel: LabelPanel) -> Tensor:
        """Return what the classifier sees.

        Parameters
        ----------
        batch
            Ragged batch with all expressed genes, see :class:`~scxtrimo.data.RaggedDataset`.
        cells
            Its cells, encoded.
        panel
            What :meth:`label_panel` returned for the genes of the data.

        Returns
        -------
        float32, shape ``(n_cells, n_features)``.
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
        """Return calibrated log-probabilities of the labels.

        Parameters
        ----------
        batch, cells, panel
            See :meth:`features`.

        Returns
        -------
        Tensor of shape ``(n_cells, n_labels)``.
        """
        log_p_cl = self.classifier(self.features(batch, cells, panel)).log_softmax(dim=1)
        if self.gene_weight > 0:
            by_genes_cl = self.genes_log_probabilities(batch, panel)
            log_p_cl = average_log_probabilities(log_p_cl, by_genes_cl, self.gene_weight)
        return (log_p_cl / self.temperature).log_softmax(dim=1)

    def genes_log_probabilities(self, batch: dict[str, Any], panel: LabelPanel) -> Tensor:
        """Return the log-probabilities of the linear model on genes.

        Parameters
        ----------
        batch, panel
            See :meth:`features`.

        Returns
        -------
        Tensor of shape ``(n_cells, n_labels)``.
        """
        counts_t, cu_seqlens = batch["counts"], batch["cu_seqlens"]
        library_size_t = to_tokens(batch["library_size"], cu_seqlens, len(counts_t))
        values_t = normalize_counts(counts_t, library_size_t)
        return self.gene_classifier(values_t, batch["gene_ids"], cu_seqlens, panel.gene_offset_l)
