"""xTrimoGene for AnnData."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import scvi
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass

from .._logging import logger
from ..data import CountsField, GeneVocabulary, covariate_keys
from ..data.vocabulary import DEFAULT_MIN_GENE_OVERLAP
from ..module import XTrimoGeneConfig, XTrimoGeneModule, choose_size
from ._expression import ExpressionMixin
from ._genes import GeneEmbeddingsMixin
from ._inference import InferenceMixin
from ._latent import LatentMixin
from ._published import PublishedMixin
from ._saving import SavingMixin
from ._setup import MODALITY_KEY, SetupMixin, select_modality
from ._training import TrainingMixin


class XTrimoGene(
    SetupMixin,
    TrainingMixin,
    LatentMixin,
    InferenceMixin,
    ExpressionMixin,
    GeneEmbeddingsMixin,
    PublishedMixin,
    SavingMixin,
    BaseModelClass,
):
    """Transformer over the expressed genes of a cell :cite:p:`Gong2023`.

    The encoder reads only the genes a cell expresses; a cell vector and the gene embeddings
    predict all counts of the cell, and a cross-attention decoder the genes hidden from the
    encoder. Trained on the user's own cells from scratch. The latent representation consists of
    principal components, partly as measured and partly as predicted from the cell vector.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    size
        ``"auto"``, or one of :data:`scxtrimo.module.SIZES`: ``"tiny"``, ``"1m"``, ``"3m"``,
        ``"10m"``, ``"100m"``.
    config
        All hyper-parameters at once, instead of ``size``.
    registry
        Registry of a saved model, instead of ``adata``.
    seed
        Seed of weights, split, masks and order of the cells; by default ``scvi.settings.seed``,
        or 0. On a CPU equal seeds give equal models, bit for bit.
    **hyperparameters
        Fields of :class:`~scxtrimo.module.XTrimoGeneConfig` that differ from those of ``size``.

    Raises
    ------
    ValueError
        If the data were not set up, or a hyper-parameter has an impossible value.
    TypeError
        If a hyper-parameter is unknown.

    Examples
    --------
    >>> import scxtrimo
    >>> adata = scxtrimo.pp.pbmc68k_counts()
    >>> scxtrimo.model.XTrimoGene.setup_anndata(adata)
    >>> model = scxtrimo.model.XTrimoGene(adata, size="tiny")
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> adata.obsm["X_xtrimo"] = model.get_latent_representation()
    >>> adata.obsm["X_xtrimo"].shape
    (700, 32)
    """

    _module_cls = XTrimoGeneModule

    def __init__(
        self,
        adata: AnnData | MuData | None = None,
        size: str = "auto",
        *,
        config: XTrimoGeneConfig | None = None,
        registry: dict[str, Any] | None = None,
        seed: int | None = None,
        **hyperparameters: Any,
    ) -> None:
        if isinstance(adata, MuData):
            adata = select_modality(adata, adata.uns.get(MODALITY_KEY))
        self._query_manager, self._prepared = None, {}
        super().__init__(adata, registry)
        # A later set-up of the same data must not change what this model was made for.
        self.registry_: dict[str, Any] = deepcopy(self.registry)
        if config is not None and (hyperparameters or size != "auto"):
            raise TypeError(
                "Give either `config` or `size` and single hyper-parameters, not both."
            )
        if config is not None:
            size = "custom"
        elif size == "auto":
            size = choose_size(self.summary_stats.n_cells, torch.cuda.is_available())
            logger.info(f"Chose size {size!r} for {self.summary_stats.n_cells:,} cells.")
        self.size_ = size
        self.provenance_: dict[str, str] = {}
        self.gene_aliases_, self.min_gene_overlap_ = {}, DEFAULT_MIN_GENE_OVERLAP
        self.config_ = config or XTrimoGeneConfig.from_size(size, **hyperparameters)
        self.seed_ = int(seed if seed is not None else scvi.settings.seed or 0)
        n_categories = tuple(
            self.summary_stats[f"n_{key}"] for key in covariate_keys(self.registry)
        )
        if n_categories and not self.config_.has_bottleneck:
            logger.info("Without a bottleneck decoder, batch and covariates are not used.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_)
            self.module = self._module_cls(
                len(self.vocabulary),
                n_categories,
                self.config_,
                self.seed_,
                has_batches=REGISTRY_KEYS.BATCH_KEY in covariate_keys(self.registry),
            )
        self.init_params_ = self._get_init_params(locals())

    @property
    def config(self) -> XTrimoGeneConfig:
        """The hyper-parameters."""
        return self.config_

    @property
    def provenance(self) -> dict[str, str]:
        """Where published weights came from: file, hash, version, licence. Empty if from none."""
        return self.provenance_

    @property
    def vocabulary(self) -> GeneVocabulary:
        """The genes the model knows."""
        state = self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]
        return GeneVocabulary.from_dict(state[CountsField.VOCABULARY_KEY])

    @property
    def input_genes(self) -> np.ndarray:
        """Identifiers of the genes the encoder reads, chosen when training starts."""
        return np.asarray(self.vocabulary.gene_ids)[self.module.is_read.cpu().numpy()]

    def __repr__(self) -> str:
        config = self.config_
        n_parameters = sum(p.numel() for p in self.module.parameters())
        in_genes = self.module.net.gene_embeddings.numel()
        covariates = ", ".join(covariate_keys(self.registry_)) or "none"
        if config.has_bottleneck:
            latent = f"{config.n_latent} dimensions"
        else:
            latent = f"{4 * config.n_hidden} dimensions (S, T, maximum, mean)"
        return (
            f"XTrimoGene {self.size_!r} with {n_parameters:,} parameters "
            f"({in_genes:,} of them gene embeddings), "
            f"{'trained' if self.is_trained_ else 'not trained'}\n"
            f"  vocabulary: {len(self.vocabulary):,} genes, of which the encoder reads "
            f"{int(self.module.is_read.sum()):,}\n"
            f"  encoder: {config.n_layers} layers of width {config.n_hidden}, "
            f"{config.n_heads} heads; latent representation: {latent}\n"
            f"  decoders: {', '.join(self.module.decoders)}"
            f"{'; aware of the read depth' if config.read_depth_aware else ''}\n"
            f"  covariates: {covariates}; seed: {self.seed_}"
        )
