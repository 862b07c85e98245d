"""A network made for registered data: construction, ``setup_anndata``, and other data."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import scvi
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import _constants

from .._logging import logger
from .._validation import Seed, check
from ..checkpoint.pretrained import DEFAULT, PretrainedNetwork, bundled
from ..config import XTrimoGeneConfig, choose_size
from ..data.columns import as_text, get_column
from ..data.dataset import CATEGORICAL_PREFIX, RaggedDataManager, covariate_keys
from ..data.fields import CategoryField, CompleteLabelsField, CountsField
from ..data.gene_table import GeneAliases, GeneTable, read_aliases
from ..data.vocabulary import DEFAULT_MIN_GENE_OVERLAP, VAR_NAMES, GeneVocabulary
from ..latent import LatentSpace
from ..nn.ranges import Probability
from ..nn.xtrimogene import NetConfig, XTrimoGeneModule
from ._scvi import BaseModelClass

MODALITY_KEY = "_scxtrimo_modality"
COPIED_KEY = "_scxtrimo_copied"  # columns of mdata.obs that a modality has a copy of
AUTO = "auto"
SIZE_OF_DEFAULT = "small"  # larger data, on a GPU, are worth larger networks
MIN_KNOWN_GENES = 500  # from which a pretrained network may say something of a cell
# Hyper-parameters that weights are made for
SHAPE = {field.name for field in fields(NetConfig)} - {
    *("dropout", "n_covariate", "likelihood_weight", "imputation_weight")
}


class QuerySetup(NamedTuple):
    """How data other than those of the training are registered."""

    setup_args: dict[str, Any]
    gene_aliases: dict[str, str]
    min_gene_overlap: float


class KnownGenes(NamedTuple):
    """A pretrained network, and where it has the genes of a model (-1: it does not)."""

    network: PretrainedNetwork
    places: np.ndarray


@dataclass
class Query:
    """What a model knows of data other than its own, as long as they exist."""

    data: weakref.ref[AnnData | MuData]
    setup: QuerySetup | None = None
    manager: RaggedDataManager | None = None  # without the data; None before the first use


def select_modality(
    data: AnnData | MuData, modality: str | None = None, obs_keys: Sequence[str] = ()
) -> AnnData:
    """Return the AnnData to work on; a modality of a MuData gets columns ``obs_keys`` of it."""
    if isinstance(data, AnnData):
        return data
    if not isinstance(data, MuData):
        raise TypeError(f"Expected an AnnData or a MuData, got {type(data).__name__}.")
    if modality not in data.mod:
        raise ValueError(
            f"modality={modality!r} is not in the MuData, which has {list(data.mod)}. Name one of "
            'these: `setup_anndata(mdata, modality="...")` or, for other data than those of the '
            'training, `model.prepare_query_anndata(mdata, modality="...")`.'
        )
    adata = data.mod[modality]
    # A copy follows the original until it is changed.
    copied = dict(adata.uns.get(COPIED_KEY, {}))
    for key in obs_keys:
        if key not in data.obs:
            continue
        column = data.obs[key].reindex(adata.obs_names)
        is_copy = key in copied or key not in adata.obs
        if not is_copy or (key in adata.obs and adata.obs[key].equals(column)):
            continue
        if key in adata.obs and copied[key] != hash_texts(as_text(adata.obs[key])):
            continue  # it was changed, and is the modality's own from now on
        adata.obs[key] = column
        adata.uns[COPIED_KEY] = copied | {key: hash_texts(as_text(column))}
    return adata


def own_view(adata: AnnData) -> None:
    """Turn a view into an AnnData of its own, in place; scvi-tools needs one."""
    if adata.is_view:
        logger.info("The AnnData is a view of another one; it is made an independent copy.")
        adata._init_as_actual(adata.to_memory() if adata.isbacked else adata.copy())


class RegisteredModel(BaseModelClass):
    """A network for registered data, which are found by identity and aligned to the model.

    A set-up of the same data for another model, or an edit in place, can therefore not shift genes
    or batches, as it could where scvi-tools finds data by an identifier in ``adata.uns``.
    """

    _module_cls: type[XTrimoGeneModule] = XTrimoGeneModule
    _config_cls: type[XTrimoGeneConfig] = XTrimoGeneConfig
    _vocabulary: GeneVocabulary | None = None  # derived from the registry when first asked for
    module: Any  # an XTrimoGeneModule, or what a wing makes of it
    pretrained_: str | None = None  # the network whose weights the training starts from
    _own_hyperparameters: tuple[str, ...] = ()
    gene_aliases_: dict[str, str]
    min_gene_overlap_: float
    _queries: dict[int, Query]  # by the identity of the data
    _registering: threading.RLock
    _mdata: weakref.ref[MuData] | None

    def __init__(
        self,
        adata: AnnData | MuData | None = None,
        size: str = "auto",
        *,
        config: XTrimoGeneConfig | None = None,
        registry: dict[str, Any] | None = None,
        pretrained: str | os.PathLike | None = AUTO,
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
            former = self._adata_manager
            self._adata_manager = self._make_manager(_setup_method_args(former.registry))
            self._adata_manager.register_fields(former.adata, former._source_registry)
            self.registry_ = self._adata_manager.registry
            self.summary_stats = self._adata_manager.summary_stats
        # A later set-up of the same data must not change what this model was made for.
        self.registry_ = deepcopy(self.registry)
        if config is not None and (hyperparameters or size != "auto"):
            raise TypeError(
                "Give either `config` or `size` and single hyper-parameters, not both."
            )
        self._own_hyperparameters = tuple(hyperparameters)
        is_new = registry is None and config is None and size == AUTO
        known = self._known_to(pretrained, is_new, hyperparameters)
        if config is not None:
            size = "custom"
        elif known is not None:
            if known.network.config.n_inducing is not None:
                hyperparameters = {"predict_from": "tokens"} | hyperparameters
            own = self._config_cls.from_size(SIZE_OF_DEFAULT, **hyperparameters)
            taken = (SHAPE | {"n_components"}) - hyperparameters.keys()
            config = replace(own, **{name: getattr(known.network.config, name) for name in taken})
            size = self.pretrained_ = known.network.name
        elif size == AUTO:
            size = choose_size(self.summary_stats.n_cells, torch.cuda.is_available())
            logger.info(f"Chose size {size!r} for {self.summary_stats.n_cells:,} cells.")
        self.size_ = size
        self.provenance_: dict[str, str] = {}
        self.gene_aliases_, self.min_gene_overlap_ = {}, DEFAULT_MIN_GENE_OVERLAP
        self.config_ = config or self._config_cls.from_size(size, **hyperparameters)
        self.seed_ = check("seed", scvi.settings.seed or 0 if seed is None else seed, Seed)
        self.module = self._make_module()
        if known is not None:
            known.network.load_into(self.module.net, known.places)
            self.module.is_read.copy_(torch.from_numpy(known.places >= 0))
            self.provenance_ = dict(known.network.provenance)
        del known  # its weights are those of the module now
        self.init_params_ = self._get_init_params(locals())

    def _known_to(
        self, pretrained: str | os.PathLike | None, is_new: bool, hyperparameters: Iterable[str]
    ) -> KnownGenes | None:
        """Return the pretrained network to start from, and where it has the genes of the data."""
        if pretrained is None or (pretrained == AUTO and not (is_new and DEFAULT in bundled())):
            return None
        others = sorted(SHAPE.intersection(hyperparameters))
        if pretrained == AUTO:
            n_cells = self.summary_stats.n_cells
            if others or choose_size(n_cells, torch.cuda.is_available()) != SIZE_OF_DEFAULT:
                return None
        elif not is_new or others:
            raise TypeError(
                f"pretrained={str(pretrained)!r} has its own hyper-parameters: leave "
                f"{', '.join(others) or '`size` and `config`'} out, or pass `pretrained=None`."
            )
        network = PretrainedNetwork.read(DEFAULT if pretrained == AUTO else pretrained)
        places = network.places_of(self.vocabulary)
        n_known = int((places >= 0).sum())
        if n_known >= MIN_KNOWN_GENES:
            logger.info(
                f"Starting from {network.name!r}, which knows {n_known:,} of the {len(places):,} "
                "genes; `pretrained=None` trains from scratch."
            )
            return KnownGenes(network, places)
        message = (
            f"{network.name!r} knows {n_known:,} of the {len(places):,} genes, at least "
            f"{MIN_KNOWN_GENES} are needed"
        )
        if pretrained != AUTO:
            raise ValueError(f"pretrained={str(pretrained)!r}: {message}.")
        logger.info(f"Training from scratch: {message}.")
        return None

    def _make_module(self) -> XTrimoGeneModule:
        """Return the module with random weights."""
        keys = covariate_keys(self.registry_)
        if keys and not self.config_.has_bottleneck:
            logger.info("Without a bottleneck decoder, batch and covariates are not used.")
        config, n_categories = self.config_, tuple(self.summary_stats[f"n_{key}"] for key in keys)
        has_batches = REGISTRY_KEYS.BATCH_KEY in keys
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_)
            module = self._module_cls(
                len(self.vocabulary),
                n_categories,
                config,
                self.seed_,
                has_batches=has_batches,
                **self._module_arguments(),
            )
        if config.uses_components:
            n_batches = n_categories[0] if has_batches else 1
            module.latent_space = LatentSpace(
                module.n_genes,
                config.n_representation,
                n_batches,
                config.measured_weight,
                config.n_predictors,
            )
        return module

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
        latent = f"{config.n_representation} dimensions"
        if not config.has_bottleneck:
            latent += " (S, T, maximum, mean)"
        return (
            f"{type(self).__name__} {self.size_!r} with {n_parameters:,} parameters "
            f"({in_genes:,} of them gene embeddings), "
            f"{'trained' if self.is_trained_ else 'not trained'}\n"
            f"  vocabulary: {len(self.vocabulary):,} genes, of which the encoder reads "
            f"{int(self.module.is_read.sum()):,}\n"
            f"  encoder: {config.n_layers} layers of width {config.n_hidden}, "
            f"{config.n_heads} heads; latent representation: {latent}\n"
            f"  decoders: {', '.join(self.module.net.decoders)}"
            f"{'; aware of the read depth' if config.read_depth_aware else ''}\n"
            f"  covariates: {covariates}; seed: {self.seed_}"
        )

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData | MuData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        gene_id_key: str | None = None,
        modality: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Say where the counts, the genes and the covariates are, and check them.

        Parameters
        ----------
        adata
            Data with raw counts, in memory or backed. A view is made an independent copy.
        layer
            Layer with the raw counts; ``None`` for ``adata.X``.
        batch_key
            Column of ``adata.obs`` with the batch, which the latent representation integrates.
        labels_key
            Column of ``adata.obs`` with labels. They are not used in training.
        categorical_covariate_keys
            Columns of ``adata.obs`` that the decoder of the counts takes, not integrated.
        gene_id_key
            Column of ``adata.var`` with gene identifiers; ``None`` for ``adata.var_names``.
        modality
            Modality of a MuData, for instance ``"rna"``. Columns are looked up in its ``obs`` and
            then in that of the MuData.
        **kwargs
            ``source_registry``: registry of a trained model to align the data to.

        Raises
        ------
        ValueError
            If counts are not raw, a cell has none, or a category is missing. The message names the
            field, an offending value and the way out.

        Examples
        --------
        >>> import scxtrimo
        >>> adata = scxtrimo.datasets.pbmc68k()
        >>> scxtrimo.model.XTrimoGene.setup_anndata(adata, labels_key="bulk_labels")
        """
        setup_args = {name: value for name, value in locals().items() if name != "kwargs"}
        cls._register(adata, cls._get_setup_method_args(**setup_args), **kwargs)

    @classmethod
    def _own_fields(cls, args: Mapping[str, Any], roles: Mapping[str, Any]) -> list[Any]:
        """Return further fields of a set-up; ``roles`` are the arguments of the training."""
        if roles["labels_key"] is None:
            return []
        return [CompleteLabelsField(args["labels_key"])]

    @classmethod
    def _make_manager(
        cls,
        setup_method_args: dict[str, Any],
        gene_aliases: Mapping[str, str] | None = None,
        min_gene_overlap: float = DEFAULT_MIN_GENE_OVERLAP,
        trained_args: Mapping[str, Any] | None = None,
    ) -> RaggedDataManager:
        """Return a data manager with the fields of the training, or else of the set-up."""
        args = setup_method_args[_constants._SETUP_ARGS_KEY]
        roles = args if trained_args is None else trained_args
        counts = CountsField(args["layer"], args["gene_id_key"], gene_aliases, min_gene_overlap)
        fields: list[Any] = [counts]
        if roles["batch_key"] is not None:
            fields.append(CategoryField(REGISTRY_KEYS.BATCH_KEY, args["batch_key"]))
        covariates = roles["categorical_covariate_keys"] or ()
        columns = args["categorical_covariate_keys"] or [None] * len(covariates)
        for name, key in zip(covariates, columns, strict=True):
            fields.append(CategoryField(f"{CATEGORICAL_PREFIX}{name}", key))
        fields += cls._own_fields(args, roles)
        return RaggedDataManager(fields=fields, setup_method_args=setup_method_args)

    @classmethod
    def _register(
        cls, mdata: AnnData | MuData, setup_method_args: dict[str, Any], **kwargs: Any
    ) -> None:
        """Register data as the arguments of the set-up say."""
        args = setup_method_args[_constants._SETUP_ARGS_KEY]
        keys = args["categorical_covariate_keys"]
        if isinstance(keys, str):
            raise TypeError(
                f"categorical_covariate_keys={keys!r} must be a list of keys: [{keys!r}]."
            )
        if keys is not None:
            args["categorical_covariate_keys"] = [
                check("categorical_covariate_keys", key, str) for key in keys
            ]
        for name in (*_columns(args), "layer", "gene_id_key", "modality"):
            args[name] = check(name, args[name], str | None)
        adata = cls._select_modality(mdata, args)
        own_view(adata)
        # A copy carries the identifier of its original, whose set-up must not be replaced.
        known = cls._setup_adata_manager_store.get(adata.uns.get(_constants._SCVI_UUID_KEY, ""))
        if known is not None and known.adata is not adata:
            adata.uns[_constants._SCVI_UUID_KEY] = str(uuid4())
        manager = cls._make_manager(setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)
        if isinstance(mdata, MuData):
            mdata.uns[MODALITY_KEY] = args["modality"]  # for the model that is made next

    def prepare_query_anndata(
        self,
        adata: AnnData | MuData,
        *,
        gene_id_key: str | None = None,
        gene_aliases: GeneAliases = None,
        min_gene_overlap: float | None = None,
        **setup_args: Any,
    ) -> None:
        """Align other data to the model, where the defaults do not fit.

        Any method that takes ``adata`` does this by itself, with the set-up of the training data.
        Which genes were found is written to ``adata.uns["scxtrimo_gene_coverage"]``.

        Parameters
        ----------
        adata
            Other data, with other genes, another order of genes or other identifiers.
        gene_id_key
            Column of ``adata.var`` with the identifiers, or ``"var_names"``. By default that of
            the training data, and another one only if not a single gene is found there.
        gene_aliases
            How to find genes under other identifiers: a mapping from those in the data to those
            in the model; a :class:`~scxtrimo.data.GeneTable` or the path of one, for previous and
            alias symbols and Ensembl ids; or ``"hgnc"``, to download one once.
        min_gene_overlap
            Smallest acceptable fraction of the model's genes, by default a quarter. Genes that
            are missing are not read; they are predicted all the same.
        **setup_args
            Arguments of :meth:`setup_anndata` that differ from those of the training data;
            ``batch_key=None`` for data of none of the batches of the training.

        Raises
        ------
        ValueError
            If too few genes are found.

        Examples
        --------
        >>> query = adata[:100, :300].copy()
        >>> query.layers["counts"] = query.X.copy()
        >>> model.prepare_query_anndata(query, layer="counts")
        >>> round(query.uns["scxtrimo_gene_coverage"]["overlap"], 2)
        0.39
        """
        if not isinstance(self, RegisteredModel):  # as in scvi-tools, where it is of the class
            raise TypeError(
                "prepare_query_anndata is a method of a model here: "
                "`model.prepare_query_anndata(adata)`."
            )
        trained_args = self.registry[_constants._SETUP_ARGS_KEY]
        if unknown := sorted(set(setup_args) - set(trained_args)):
            raise TypeError(f"Unknown arguments {unknown}; choose from {sorted(trained_args)}.")
        args = trained_args | setup_args
        given = adata
        adata = self._select_modality(adata, args)
        own_view(adata)
        if gene_id_key is not None:
            if gene_id_key != VAR_NAMES:
                get_column(adata.var, "adata.var", gene_id_key)  # a wrong one raises here
            args["gene_id_key"] = gene_id_key
        _check_roles(trained_args, args)
        query = self._query_setup(args, gene_aliases, min_gene_overlap)
        self._register_query(adata, query)
        self._query_of(adata).setup = self._query_of(given).setup = query

    def _setup_of(self, adata: AnnData | MuData) -> QuerySetup:
        """Return how data are registered: as they were prepared, or as those of the training."""
        known = self._queries.get(id(adata))
        if known is not None and known.setup is not None:
            return known.setup
        return self._query_setup(self.registry[_constants._SETUP_ARGS_KEY])

    def _query_of(self, adata: AnnData | MuData) -> Query:
        """Return what is known of some data, to be filled in."""
        with self._registering:
            key = id(adata)
            if key not in self._queries:
                self._queries[key] = Query(weakref.ref(adata))
                # Before the identity is used again; neither keeps the other alive.
                weakref.finalize(adata, _forget, weakref.ref(self), key).atexit = False
            return self._queries[key]

    def _query_setup(
        self,
        setup_args: dict[str, Any],
        gene_aliases: GeneAliases = None,
        min_gene_overlap: float | None = None,
    ) -> QuerySetup:
        """Return a set-up with the model's own names of genes where no others are given."""
        names, overlap = self.gene_aliases_, self.min_gene_overlap_
        if gene_aliases is not None:  # a plain mapping, which can be saved with the model
            read, genes = read_aliases(gene_aliases), self.vocabulary.gene_ids
            names = read.aliases_of(genes) if isinstance(read, GeneTable) else dict(read)
        if min_gene_overlap is not None:
            overlap = check("min_gene_overlap", min_gene_overlap, Probability)
        return QuerySetup(setup_args, names, overlap)

    def _remember_names(self, gene_aliases: GeneAliases, min_gene_overlap: float | None) -> None:
        """Use these for all data from now on, also after saving and loading."""
        setup = self._query_setup({}, gene_aliases, min_gene_overlap)
        self.gene_aliases_, self.min_gene_overlap_ = setup.gene_aliases, setup.min_gene_overlap

    def _register_query(self, adata: AnnData, query: QuerySetup) -> None:
        """Align data to the model and make that the registration in use for them."""
        trained = _setup_method_args(self.registry)
        manager = self._make_manager(
            trained | {_constants._SETUP_ARGS_KEY: query.setup_args},
            query.gene_aliases,
            query.min_gene_overlap,
            trained[_constants._SETUP_ARGS_KEY],
        )
        manager.register_fields(adata, source_registry=self.registry)
        if adata is self.adata:
            self._adata_manager = manager
        else:
            self._query_of(adata).manager = manager.without_data()

    def get_anndata_manager(
        self, adata: AnnData | MuData, required: bool = False
    ) -> RaggedDataManager | None:
        """Return the registration of these very data with this model, if there is one.

        Parameters
        ----------
        adata, required
            The data, and whether to raise where there is none.

        Returns
        -------
        The registration, or ``None``.

        Examples
        --------
        >>> model.get_anndata_manager(model.adata) is model.adata_manager
        True
        """
        own = self._adata_manager
        if own is not None and own.adata is adata:
            return own
        query = self._queries.get(id(adata))
        if query is not None and query.manager is not None:
            return query.manager.with_data(adata)
        if required:
            raise ValueError("These data are not registered with this model.")
        return None

    def _manager_of(self, adata: AnnData) -> RaggedDataManager:
        """Return the registration of data that are registered."""
        manager = self.get_anndata_manager(adata, required=True)
        assert manager is not None
        return manager

    def _validate_anndata(
        self, adata: AnnData | MuData | None = None, copy_if_view: bool = True
    ) -> AnnData:
        """Return data that are registered with this model, registering them if need be."""
        data = self.adata if adata is None else adata
        if data is None:
            raise ValueError("The model was loaded without data; pass `adata=...`.")
        mdata = self._mdata() if self._mdata is not None else None
        if data is self.adata and mdata is not None:
            data = mdata  # whose columns the model's own data have copies of
        with self._registering:  # two threads may ask for the same data
            selected = self._select_modality(data, self._setup_of(data).setup_args)
            own_view(selected)
            manager = self.get_anndata_manager(selected)
            if manager is None or not manager.is_current():
                self._register_query(selected, self._setup_of(selected))
            else:
                manager.write_coverage()
        return selected

    @property
    def adata(self) -> Any:
        """The model's own data, if it has any; others put in their place are aligned to it.

        Examples
        --------
        >>> model.adata.shape
        (700, 765)
        """
        return self._adata

    @adata.setter
    def adata(self, adata: AnnData | MuData) -> None:
        if adata is None:
            raise ValueError("adata=None: a model's data can be replaced, not taken away.")
        self._attach(adata)

    def _attach(self, adata: AnnData | MuData) -> None:
        """Make other data the model's own."""
        self._adata = self._validate_anndata(adata)
        self._mdata = weakref.ref(adata) if isinstance(adata, MuData) else None
        self._adata_manager = self._manager_of(self._adata)
        self._query_of(self._adata).manager = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process: other data, the trainer, a lock."""
        state = self.__dict__ | {"_queries": {}, "_mdata": None, "trainer": None}
        del state["_registering"]
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy the model for this process: what is known of other data stays known."""
        model = type(self).__new__(type(self))
        memo[id(self)] = model
        model.__setstate__(deepcopy(self.__getstate__(), memo))
        for query in list(self._queries.values()):
            if (data := query.data()) is not None and data is not self.adata:
                known = model._query_of(data)
                known.setup, known.manager = query.setup, query.manager
        return model

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._registering = threading.RLock()

    @staticmethod
    def _select_modality(data: AnnData | MuData, args: dict[str, Any]) -> AnnData:
        named = [args[name] for name in _columns(args)]
        keys = [key for key in (*named, *(args["categorical_covariate_keys"] or ())) if key]
        return select_modality(data, args["modality"], keys)


def _forget(model: weakref.ref[RegisteredModel], key: int) -> None:
    """Drop what a model knows of data that are gone."""
    if (alive := model()) is not None:
        alive._queries.pop(key, None)


def _check_roles(trained_args: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    """Refuse columns for which the model has no role."""
    keys = [trained_args["categorical_covariate_keys"], args["categorical_covariate_keys"]]
    n_trained, n_asked = (len(part or ()) for part in keys)
    roles = ("batch_key", "labels_key")
    if wrong := [k for k in roles if args[k] is not None and trained_args[k] is None]:
        raise ValueError(f"{wrong[0]}={args[wrong[0]]!r}: the model was set up without one.")
    if n_asked not in (0, n_trained):
        raise ValueError(
            f"categorical_covariate_keys={keys[1]!r} must name {n_trained} columns, in the order "
            f"of those of the training, {keys[0]!r}."
        )


def _columns(args: Mapping[str, Any]) -> list[str]:
    """Return the names of the arguments of a set-up that name a column of ``adata.obs``."""
    return [name for name in args if name.endswith("_key") and name != "gene_id_key"]


def _setup_method_args(registry: Mapping[str, Any]) -> dict[str, Any]:
    keys = (_constants._MODEL_NAME_KEY, _constants._SETUP_METHOD_NAME, _constants._SETUP_ARGS_KEY)
    return {key: registry[key] for key in keys}


def registry_of_genes(
    model_class: type[RegisteredModel],
    genes: Sequence[str],
    setup_args: dict[str, Any],
    batches: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the registry of a model of these genes, and batches, that has seen no data."""
    counts = np.ones((1, len(genes)), dtype=np.float32)
    one_cell = AnnData(sparse.vstack([sparse.csr_matrix(counts)] * max(1, len(batches))))
    one_cell.var_names = list(genes)
    if batches:
        one_cell.obs[setup_args["batch_key"]] = list(batches)
    counts_only = setup_args | {"layer": None, "gene_id_key": None}
    method_args = {
        "model_name": model_class.__name__,
        "setup_method_name": "setup_anndata",
        "setup_args": counts_only,
    }
    manager = model_class._make_manager(method_args)
    manager.register_fields(one_cell)
    return manager.registry | {"setup_args": setup_args}


def hash_texts(texts: Iterable[object]) -> str:
    """Return a hash of texts in their order."""
    return hashlib.sha256("\n".join(map(str, texts)).encode()).hexdigest()
