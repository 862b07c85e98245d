"""What is trained: the network, its objective, and what it keeps of the training data."""

from __future__ import annotations

from dataclasses import asdict
from inspect import signature
from typing import Any, NoReturn

import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn

from ..config import XTrimoGeneConfig
from ..latent import LatentSpace
from ..nn.decoders import Decoder, PerformerDecoder
from ..nn.embedding import normalize_counts
from ..nn.encoded import EncodedCells
from ..nn.ragged import cells_of, mean_per_cell, select_tokens, sum_per_cell, to_tokens
from ..nn.xtrimogene import XTrimoGeneNet

PUBLISHED_TARGET_DEPTH = 4.0


class XTrimoGeneModule(BaseModuleClass):
    r"""xTrimoGene with the objective that makes its cell vector.

    .. math::
        \mathcal{L} = -\frac{w_l}{N}\sum_c \sum_g \frac{x_{cg}}{n_c} \log \rho_{cg}
            + w_i \, \mathrm{mean}_{(c, g) \in T} (\hat v_{cg} - v_{cg})^2

    The first term is the multinomial likelihood of all counts of a cell given its cell
    vector, per count; the second the masked regression through the imputation decoder.
    The encoder sees unmasked genes only, in both. Published models have the second term alone.

    Parameters
    ----------
    n_genes
        Number of genes in the vocabulary.
    n_categories
        Number of categories of each categorical covariate.
    config
        Hyper-parameters.
    seed
        Seed of the random features of a Performer.
    has_batches
        Whether the first categorical covariate is the batch.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.model import XTrimoGeneConfig
    >>> from scxtrimo.train.module import XTrimoGeneModule
    >>> module = XTrimoGeneModule(10, (3,), XTrimoGeneConfig.from_size("tiny"), has_batches=True)
    >>> list(module.decoders), module.sees_all_genes
    (['bottleneck', 'cross_attention'], False)
    >>> module.positions.shape
    torch.Size([10, 32])
    >>> batch = {
    ...     "counts": torch.tensor([1.0, 2.0, 3.0]),
    ...     "gene_ids": torch.tensor([0, 4, 9]),
    ...     "cu_seqlens": torch.tensor([0, 1, 3], dtype=torch.int32),
    ...     "library_size": torch.tensor([1.0, 5.0]),
    ...     "categories": torch.tensor([[0], [2]]),
    ... }
    >>> module.batch_codes(batch)
    tensor([0, 2])
    >>> module.inference(**batch)["cells"].latent_cz.shape
    torch.Size([2, 32])
    """

    is_read: Tensor
    mean_expression: Tensor
    typical_depth: Tensor

    def __init__(
        self,
        n_genes: int,
        n_categories: tuple[int, ...],
        config: XTrimoGeneConfig,
        seed: int = 0,
        has_batches: bool = False,
    ) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.config = config
        self.seed = seed
        self.has_batches = has_batches
        of_network = signature(XTrimoGeneNet).parameters
        network = {k: v for k, v in asdict(config).items() if k in of_network}
        if not config.imputation_weight:  # what is not trained does not exist
            network["imputation_decoder"] = None
        self.net = XTrimoGeneNet(
            n_genes,
            n_categories=n_categories,
            bottleneck=config.has_bottleneck,
            seed=seed,
            **network,
        )
        self.latent_space: LatentSpace | None = None
        if config.uses_components:
            n_batches = n_categories[0] if has_batches else 1
            self.latent_space = LatentSpace(
                n_genes, config.n_latent, n_batches, config.measured_weight
            )
        self.register_buffer("is_read", torch.ones(n_genes, dtype=torch.bool))
        self.register_buffer("mean_expression", torch.zeros(n_genes))
        self.register_buffer("typical_depth", torch.tensor(PUBLISHED_TARGET_DEPTH))

    def set_gene_statistics(
        self,
        is_read: Tensor,
        mean_expression: Tensor,
        rates: Tensor,
        embeddings: Tensor,
        typical_depth: Tensor,
        components: dict[str, Tensor],
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
        typical_depth
            Median of the log10 total counts, a scalar.
        components
            Principal components, for the :class:`LatentSpace`.

        Examples
        --------
        >>> import torch
        >>> from scxtrimo.model import XTrimoGeneConfig
        >>> from scxtrimo.train.module import XTrimoGeneModule
        >>> config = XTrimoGeneConfig.from_size("tiny", latent_space="bottleneck")
        >>> module = XTrimoGeneModule(10, (), config)
        >>> module.set_gene_statistics(
        ...     is_read=torch.arange(10) < 8,
        ...     mean_expression=torch.rand(10),
        ...     rates=torch.full((10,), 0.1),
        ...     embeddings=torch.randn(10, 4),
        ...     typical_depth=torch.tensor(3.5),
        ...     components={},
        ... )
        >>> int(module.is_read.sum())
        8
        """
        with torch.no_grad():
            self.is_read.copy_(is_read)
            self.mean_expression.copy_(mean_expression)
            self.typical_depth.copy_(typical_depth)
            if self.net.bottleneck is not None:
                self.net.bottleneck.log_baseline.copy_(rates.log())
                if (
                    self.config.pca_initialization and embeddings.shape[1]
                ):  # latent dimensions start as the first components
                    nn.init.eye_(self.net.bottleneck.to_query.weight)
            if self.config.pca_initialization:
                self.net.gene_embeddings[:, : embeddings.shape[1]] = embeddings
            if self.latent_space is not None:
                self.latent_space.set(**components)

    @property
    def decoders(self) -> dict[str, Decoder]:
        """The decoders by name."""
        decoders: dict[str, Decoder] = {}
        if self.net.bottleneck is not None:
            decoders["bottleneck"] = self.net.bottleneck
        if self.net.imputation is not None:
            decoders[self.config.imputation_decoder] = self.net.imputation
        return decoders

    @property
    def positions(self) -> Tensor:
        """Embeddings of all genes and depth tokens, as decoders take them."""
        return self.net.embedding.gene.weight

    @property
    def sees_all_genes(self) -> bool:
        """Whether the imputation decoder works on all genes and must know which are masked."""
        return isinstance(self.net.imputation, PerformerDecoder)

    def batch_codes(self, batch: dict[str, Any]) -> Tensor | None:
        """Return the batches of the cells.

        Parameters
        ----------
        batch
            Ragged batch, see :class:`~scxtrimo.data.RaggedDataset`.

        Returns
        -------
        int64, shape ``(n_cells,)``; ``None`` if the model was set up without a ``batch_key``.
        """
        return batch["categories"][:, 0] if self.has_batches else None

    def redraw_features(self, step: int) -> None:
        """Give a Performer other random features, every so many steps of training.

        Parameters
        ----------
        step
            The step. Nothing happens but every ``config.redraw_features_every`` steps.

        Examples
        --------
        >>> from scxtrimo.model import XTrimoGeneConfig
        >>> from scxtrimo.train.module import XTrimoGeneModule
        >>> module = XTrimoGeneModule(10, (), XTrimoGeneConfig.from_size("published-1m"))
        >>> before = module.net.imputation.performer.layers[0].attention.features.clone()
        >>> module.redraw_features(step=1000)
        >>> bool((before == module.net.imputation.performer.layers[0].attention.features).all())
        False
        """
        every = self.config.redraw_features_every
        if step and step % every == 0 and isinstance(self.net.imputation, PerformerDecoder):
            self.net.imputation.performer.redraw(self.seed + 1000 * (step // every))

    def _get_inference_input(self, tensors: dict[str, Any], **kwargs: object) -> dict:
        # Where counts were taken away, the encoder sees what is left.
        counts = tensors.get("input_counts", tensors["counts"])
        library_size = tensors.get("input_library_size", tensors["library_size"])
        keep = self.is_read[tensors["gene_ids"]] & (counts > 0)
        if "visible" in tensors:
            keep = keep & tensors["visible"]
        inputs: dict[str, Any] = {
            "counts": counts[keep],
            "gene_ids": tensors["gene_ids"][keep],
            "cu_seqlens": select_tokens(keep, tensors["cu_seqlens"]),
            "library_size": library_size,
            "categories": tensors["categories"],
        }
        if self.config.read_depth_aware:
            measured = torch.stack([tensors["library_size"], library_size], dim=1).log10()
            inputs["depths"] = tensors.get("depths", measured)
            inputs["scale"] = tensors.get("scale", 1e4)
        if "hidden_gene_ids" in tensors and self.sees_all_genes:
            names = ("values", "gene_ids", "cu_seqlens")
            inputs["hidden"] = tuple(tensors[f"hidden_{name}"] for name in names)
        return inputs

    @auto_move_data
    def inference(
        self,
        counts: Tensor,
        gene_ids: Tensor,
        cu_seqlens: Tensor,
        library_size: Tensor,
        categories: Tensor,
        depths: Tensor | None = None,
        scale: float = 1e4,
        hidden: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> dict[str, EncodedCells]:
        """Encode the visible genes.

        Parameters
        ----------
        counts, gene_ids, cu_seqlens, library_size, categories, depths, scale
            See :meth:`scxtrimo.nn.XTrimoGeneNet.encode`.
        hidden
            Values, genes and cell boundaries of what is masked, see
            :meth:`scxtrimo.nn.XTrimoGeneNet.hide`.

        Returns
        -------
        The ``cells``.
        """
        cells = self.net.encode(
            counts, gene_ids, cu_seqlens, library_size, categories, depths, scale
        )
        return {"cells": cells if hidden is None else self.net.hide(cells, *hidden)}

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
        """Decode.

        Parameters
        ----------
        cells
            The encoded cells.
        target_gene_ids, target_cu_seqlens
            Genes to predict and boundaries of the cells.

        Returns
        -------
        ``log_rates`` of all genes, shape ``(n_cells, n_genes)``, and ``imputed`` values of the
        target genes, shape ``(n_targets,)``; what the model has of both.
        """
        outputs = {}
        if self.net.bottleneck is not None:
            outputs["log_rates"] = self.net.bottleneck.log_rates(cells, self.positions)
        if self.net.imputation is not None:
            outputs["imputed"] = self.net.imputation(
                cells, self.positions, target_gene_ids, target_cu_seqlens
            )
        return outputs

    def loss(
        self, tensors: dict[str, Tensor], inference_outputs: dict, generative_outputs: dict
    ) -> LossOutput:
        """Return the objective.

        ``reconstruction_loss`` is its first term, per cell; without a bottleneck decoder it is
        the squared error per cell, averaged over its targets.

        Parameters
        ----------
        tensors
            A masked batch, see :func:`~scxtrimo.nn.mask_batch`.
        inference_outputs, generative_outputs
            What :meth:`inference` and :meth:`generative` returned.

        Returns
        -------
        Loss and metrics.
        """
        terms, metrics = [], {}
        if "imputed" in generative_outputs:
            error_t = (generative_outputs["imputed"].float() - target_values(tensors)).square()
            weights_t = tensors["target_weights"]
            error_t = error_t * (weights_t / weights_t.mean())
            mse = error_t.sum() / max(len(error_t), 1)  # a small batch may have no targets
            metrics["imputation_mse"] = mse.detach()
            terms.append(self.config.imputation_weight * mse)
            reconstruction_c = mean_per_cell(error_t[:, None], tensors["target_cu_seqlens"])[:, 0]
        if "log_rates" in generative_outputs:
            reconstruction_c = self._negative_log_likelihood(
                tensors, generative_outputs["log_rates"]
            )
            terms.append(self.config.likelihood_weight * reconstruction_c.mean())
        return LossOutput(
            loss=torch.stack(terms).sum(),
            reconstruction_loss=reconstruction_c,
            extra_metrics=metrics,
        )

    def _negative_log_likelihood(self, tensors: dict[str, Tensor], log_rates: Tensor) -> Tensor:
        """Multinomial, per count, without the terms that only depend on the counts."""
        counts, cu_seqlens = tensors["counts"], tensors["cu_seqlens"]
        flat_t = cells_of(cu_seqlens, len(counts)) * self.n_genes + tensors["gene_ids"]
        # `index_select`, as the backward of plain indexing is not deterministic on CPU.
        log_rates_t = log_rates.flatten().index_select(0, flat_t)
        return -sum_per_cell(counts * log_rates_t, cu_seqlens) / tensors["library_size"]

    @torch.inference_mode()
    def sample(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse: sampling is not part of this model.

        Parameters
        ----------
        *args, **kwargs
            Anything.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError("XTrimoGene does not sample counts.")


def target_values(tensors: dict[str, Tensor]) -> Tensor:
    """Return the log-normalised expression of the target genes of a masked batch."""
    counts_t, cu_seqlens = tensors["target_counts"], tensors["target_cu_seqlens"]
    return normalize_counts(
        counts_t, to_tokens(tensors["library_size"], cu_seqlens, len(counts_t))
    )
