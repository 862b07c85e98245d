"""What is trained: the network, its objective, and what it keeps of the training data."""

from __future__ import annotations

from dataclasses import asdict

import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor
from torch.nn import functional as F

from ..nn import Decoder, EncodedCells, XTrimoGeneNet, normalize_counts
from ..nn.ragged import cells_of, select_tokens, sum_per_cell
from .config import XTrimoGeneConfig

NOT_NETWORK = ("n_input_genes", "imputation_weight")
DECODERS = ("bottleneck", "cross_attention")


class XTrimoGeneModule(BaseModuleClass):
    r"""xTrimoGene with the objective that makes its latent representation.

    .. math::
        \mathcal{L} = -\frac{1}{N}\sum_c \sum_g \frac{x_{cg}}{n_c} \log \rho_{cg}
            + w \, \mathrm{mean}_{(c, g) \in T} (\hat v_{cg} - v_{cg})^2

    The first term is the multinomial likelihood of all counts of a cell given its latent
    representation, per count; the second the masked regression through the cross-attention
    decoder. The encoder sees unmasked genes only, in both.

    Parameters
    ----------
    n_genes
        Number of genes in the vocabulary.
    n_categories
        Number of categories of each categorical covariate.
    config
        Hyper-parameters.
    """

    def __init__(
        self, n_genes: int, n_categories: tuple[int, ...], config: XTrimoGeneConfig
    ) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.imputation_weight = config.imputation_weight
        network = {k: v for k, v in asdict(config).items() if k not in NOT_NETWORK}
        self.net = XTrimoGeneNet(n_genes, n_categories=n_categories, **network)
        self.register_buffer("is_read", torch.ones(n_genes, dtype=torch.bool))
        self.register_buffer("mean_expression", torch.zeros(n_genes))

    def set_gene_statistics(
        self, is_read: Tensor, mean_expression: Tensor, rates: Tensor, embeddings: Tensor
    ) -> None:
        """Start from what the training cells say about the genes.

        Parameters
        ----------
        is_read
            Genes the encoder reads, bool, shape ``(n_genes,)``.
        mean_expression
            Mean log-normalised expression, shape ``(n_genes,)``.
        rates
            Fraction of all counts, positive, shape ``(n_genes,)``.
        embeddings
            Initial gene embeddings, shape ``(n_genes, n)`` with ``n`` at most the width of the
            model; the remaining dimensions keep their random values.
        """
        with torch.no_grad():
            self.is_read.copy_(is_read)
            self.mean_expression.copy_(mean_expression)
            self.net.bottleneck.log_baseline.copy_(rates.log())
            self.net.gene_embeddings[:, : embeddings.shape[1]] = embeddings

    def decoder(self, name: str) -> Decoder:
        """Return a decoder by name, one of :data:`DECODERS`."""
        if name not in DECODERS:
            raise ValueError(f"decoder={name!r} is unknown; choose one of {list(DECODERS)}.")
        return getattr(self.net, name)

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs: object) -> dict:
        keep = self.is_read[tensors["gene_ids"]]
        if "visible" in tensors:
            keep = keep & tensors["visible"]
        return {
            "counts": tensors["counts"][keep],
            "gene_ids": tensors["gene_ids"][keep],
            "cu_seqlens": select_tokens(keep, tensors["cu_seqlens"]),
            "library_size": tensors["library_size"],
            "categories": tensors["categories"],
        }

    @auto_move_data
    def inference(
        self,
        counts: Tensor,
        gene_ids: Tensor,
        cu_seqlens: Tensor,
        library_size: Tensor,
        categories: Tensor,
    ) -> dict[str, EncodedCells]:
        """Encode the visible genes; see :meth:`scxtrimo.nn.XTrimoGeneNet.encode`."""
        return {"cells": self.net.encode(counts, gene_ids, cu_seqlens, library_size, categories)}

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict, **kwargs: object
    ) -> dict:
        return inference_outputs | {
            "target_gene_ids": tensors["target_gene_ids"],
            "target_cu_seqlens": tensors["target_cu_seqlens"],
        }

    @auto_move_data
    def generative(
        self, cells: EncodedCells, target_gene_ids: Tensor, target_cu_seqlens: Tensor
    ) -> dict[str, Tensor]:
        """Predict log-rates of all genes, and the values of the target genes."""
        genes = self.net.gene_embeddings
        outputs = {"log_rates": self.net.bottleneck.log_rates(cells, genes)}
        if self.imputation_weight:
            outputs["imputed"] = self.net.cross_attention(
                cells, genes, target_gene_ids, target_cu_seqlens
            )
        return outputs

    def loss(
        self, tensors: dict[str, Tensor], inference_outputs: dict, generative_outputs: dict
    ) -> LossOutput:
        """Return the objective; ``reconstruction_loss`` is the first term, per cell."""
        counts, library_size = tensors["counts"], tensors["library_size"]
        cells_t = cells_of(tensors["cu_seqlens"], counts.shape[0])
        # `index_select`, as the backward of plain indexing is not deterministic on CPU.
        flat_t = cells_t * self.n_genes + tensors["gene_ids"]
        log_rates_t = generative_outputs["log_rates"].flatten().index_select(0, flat_t)
        nll_c = -sum_per_cell(counts * log_rates_t, tensors["cu_seqlens"]) / library_size
        loss = nll_c.mean()
        metrics = {}
        if "imputed" in generative_outputs:
            mse = F.mse_loss(generative_outputs["imputed"].float(), target_values(tensors))
            metrics["imputation_mse"] = mse.detach()
            loss = loss + self.imputation_weight * mse
        return LossOutput(loss=loss, reconstruction_loss=nll_c, extra_metrics=metrics)

    @torch.inference_mode()
    def sample(self, *args: object, **kwargs: object) -> Tensor:
        """Refuse: sampling is not part of this model."""
        raise NotImplementedError("XTrimoGene does not sample counts.")


def target_values(tensors: dict[str, Tensor]) -> Tensor:
    """Return the log-normalised expression of the target genes of a masked batch."""
    target_cells = cells_of(tensors["target_cu_seqlens"], tensors["target_counts"].shape[0])
    return normalize_counts(tensors["target_counts"], tensors["library_size"][target_cells])
