"""What all models have: a network made for registered data, and results from it."""

from __future__ import annotations

import threading
import weakref
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
from .._validation import Seed, check
from ..config import XTrimoGeneConfig, choose_size
from ..data.dataset import covariate_keys
from ..data.fields import CountsField
from ..data.vocabulary import DEFAULT_MIN_GENE_OVERLAP, GeneVocabulary
from ..train.module import XTrimoGeneModule
from ._attention import AttentionMixin
from ._expression import ExpressionMixin
from ._genes import GeneEmbeddingsMixin
from ._hub import HubMixin
from ._inference import InferenceMixin
from ._latent import LatentMixin
from .registration import MODALITY_KEY, SetupMixin, select_modality
from .training import TrainingMixin


class XTrimoGeneBase(
    SetupMixin,
    TrainingMixin,
    LatentMixin,
    InferenceMixin,
    ExpressionMixin,
    GeneEmbeddingsMixin,
    AttentionMixin,
    HubMixin,
    BaseModelClass,
):
    """xTrimoGene for registered data; see :class:`~scxtrimo.model.XTrimoGene`.

    Parameters
    ----------
    adata, size, config, registry, seed, **hyperparameters
        See :class:`~scxtrimo.model.XTrimoGene`.
    """

    _module_cls: type[XTrimoGeneModule] = XTrimoGeneModule
    _config_cls: type[XTrimoGeneConfig] = XTrimoGeneConfig
    _vocabulary: GeneVocabulary | None = None  # derived from the registry when first asked for

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
        self._queries, self._registering = {}, threading.RLock()
        self._mdata = None
        if isinstance(adata, MuData):
            self._mdata = weakref.ref(adata)
            adata = select_modality(adata, adata.uns.get(MODALITY_KEY))
        super().__init__(adata, registry)
        if self._mdata is not None and (mdata := self._mdata()) is not None:
            self._select_modality(mdata, self.registry["setup_args"])  # its columns may be newer
        if self._adata_manager is not None and not self._adata_manager.is_current():
            logger.info("The data changed after `setup_anndata`: they are set up again.")
            self._adata_manager = self._set_up_again(self._adata_manager)
            self.registry_ = self._adata_manager.registry
            self.summary_stats = self._adata_manager.summary_stats
        # A later set-up of the same data must not change what this model was made for.
        self.registry_ = deepcopy(self.registry)
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
        self.config_ = config or self._config_cls.from_size(size, **hyperparameters)
        self.seed_ = check("seed", scvi.settings.seed or 0 if seed is None else seed, Seed)
        self.module = self._make_module()
        self.init_params_ = self._get_init_params(locals())

    def _make_module(self) -> XTrimoGeneModule:
        """Return the module with random weights."""
        keys = covariate_keys(self.registry_)
        if keys and not self.config_.has_bottleneck:
            logger.info("Without a bottleneck decoder, batch and covariates are not used.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_)
            return self._module_cls(
                len(self.vocabulary),
                tuple(self.summary_stats[f"n_{key}"] for key in keys),
                self.config_,
                self.seed_,
                has_batches=REGISTRY_KEYS.BATCH_KEY in keys,
                **self._module_arguments(),
            )

    def _module_arguments(self) -> dict[str, Any]:
        """Return what the module of this class takes beyond that of :class:`XTrimoGene`."""
        return {}

    @property
    def config(self) -> XTrimoGeneConfig:
        """The hyper-parameters.

        Examples
        --------
        >>> model.config.n_latent
        32
        """
        return self.config_

    @property
    def provenance(self) -> dict[str, str]:
        """Source of weights, a published file or a pretraining run. Empty if there is none.

        Examples
        --------
        >>> model.provenance
        {}
        """
        return self.provenance_

    @property
    def vocabulary(self) -> GeneVocabulary:
        """The genes the model knows.

        Examples
        --------
        >>> len(model.vocabulary), model.vocabulary.gene_ids[:2]
        (765, ('HES4', 'TNFRSF4'))
        """
        if self._vocabulary is None:
            state = self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]
            self._vocabulary = GeneVocabulary.from_dict(state[CountsField.VOCABULARY_KEY])
        return self._vocabulary

    @property
    def input_genes(self) -> np.ndarray:
        """Identifiers of the genes the encoder reads, chosen when training starts.

        Examples
        --------
        >>> model.input_genes.shape
        (765,)
        """
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
            f"{type(self).__name__} {self.size_!r} with {n_parameters:,} parameters "
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
