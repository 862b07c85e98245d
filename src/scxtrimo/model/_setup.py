"""From AnnData or MuData to a registered data manager."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data import _constants
from scvi.model.base import BaseModelClass

from .._logging import logger
from ..data import (
    CategoryField,
    CountsField,
    LabelsField,
    LibrarySizeField,
    PerturbationField,
    PerturbationNames,
    RaggedDataManager,
)
from ..data.dataset import CATEGORICAL_PREFIX
from ..data.fields import get_column
from ..data.gene_table import GeneAliases, GeneTable, read_aliases
from ..data.perturbations import POPULATION
from ..data.vocabulary import DEFAULT_MIN_GENE_OVERLAP, VAR_NAMES

MODALITY_KEY = "_scxtrimo_modality"
UNLABELED = "unlabeled_category"  # argument of the set-up of models of which labels are a part


@dataclass(frozen=True)
class QuerySetup:
    """How data other than those of the training are registered.

    Parameters
    ----------
    setup_args
        Arguments of ``setup_anndata``.
    gene_aliases, min_gene_overlap
        See :meth:`SetupMixin.prepare_query_anndata`.
    """

    setup_args: dict[str, Any]
    gene_aliases: Mapping[str, str] | None = None
    min_gene_overlap: float = DEFAULT_MIN_GENE_OVERLAP


def select_modality(
    data: AnnData | MuData, modality: str | None = None, obs_keys: Sequence[str] = ()
) -> AnnData:
    """Return the AnnData to work on.

    Parameters
    ----------
    data
        An AnnData, returned as it is, or a MuData.
    modality
        Which modality of a MuData.
    obs_keys
        Columns to copy from ``mdata.obs`` where the modality lacks them.

    Raises
    ------
    ValueError
        If the modality is not named or does not exist.
    """
    if isinstance(data, AnnData):
        return data
    if not isinstance(data, MuData):
        raise TypeError(f"Expected an AnnData or a MuData, got {type(data).__name__}.")
    if modality not in data.mod:
        raise ValueError(
            f"modality={modality!r} is not in the MuData, which has {list(data.mod)}. Name one of "
            'these: `setup_anndata(mdata, modality="...")`.'
        )
    adata = data.mod[modality]
    for key in obs_keys:
        if key not in adata.obs and key in data.obs:
            adata.obs[key] = data.obs[key].reindex(adata.obs_names).to_numpy()
    return adata


def own_view(adata: AnnData) -> None:
    """Turn a view into an AnnData of its own, in place; scvi-tools needs one."""
    if adata.is_view:
        logger.info("The AnnData is a view of another one; it is made an independent copy.")
        adata._init_as_actual(adata.to_memory() if adata.isbacked else adata.copy())


class SetupMixin(BaseModelClass):
    """``setup_anndata`` and the registration of other data.

    scvi-tools finds registrations by an identifier in ``adata.uns``; this class finds those of a
    model by the data object itself, checks that it still has the columns it was registered with,
    and always aligns to the registry of the model. A set-up of the same data for another model,
    or a subset in place, can therefore not shift genes.
    """

    _query_manager: RaggedDataManager | None
    _prepared: dict[int, QuerySetup]
    gene_aliases_: dict[str, str]
    min_gene_overlap_: float

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
            Data with raw counts: CSR, CSC (converted when read) or dense, in memory or backed. A
            MuData needs ``modality``. A view is made an independent copy.
        layer
            Layer with the raw counts; ``None`` for ``adata.X``.
        batch_key
            Column of ``adata.obs`` with the batch. The latent representation integrates it, and
            the decoder of the counts is conditioned on it; the encoder is not.
        labels_key
            Column of ``adata.obs`` with labels. They are not used in training.
        categorical_covariate_keys
            Columns of ``adata.obs`` with further categories that the decoder of the counts is
            conditioned on. They are not integrated.
        gene_id_key
            Column of ``adata.var`` with gene identifiers, for instance Ensembl ids; ``None`` for
            ``adata.var_names``.
        modality
            Modality of a MuData, for instance ``"rna"``. Columns named above are looked up in the
            modality's ``obs`` and then in that of the MuData.
        **kwargs
            ``source_registry``: registry of a trained model to align the data to.

        Raises
        ------
        ValueError
            If a key or layer does not exist, gene identifiers are not unique, counts are not raw
            counts, a cell has no counts, or a category is missing. The message names the field,
            an offending value and the way out.

        Examples
        --------
        >>> import scxtrimo
        >>> adata = scxtrimo.datasets.pbmc68k()
        >>> scxtrimo.model.XTrimoGene.setup_anndata(adata, labels_key="bulk_labels")
        """
        setup_args = {name: value for name, value in locals().items() if name != "kwargs"}
        cls._register(adata, cls._get_setup_method_args(**setup_args), **kwargs)

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
        adata = cls._select_modality(mdata, args)
        own_view(adata)
        # A copy carries the identifier of its original, whose set-up must not be replaced.
        known = cls._setup_adata_manager_store.get(adata.uns.get(_constants._SCVI_UUID_KEY))
        if known is not None and known.adata is not adata:
            adata.uns[_constants._SCVI_UUID_KEY] = str(uuid4())
        manager = make_manager(setup_method_args)
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

        Parameters
        ----------
        adata
            Other data, with other genes, another order of genes or other identifiers.
        gene_id_key
            Column of ``adata.var`` with the identifiers, or ``"var_names"``. By default the one of
            these in which most of the model's genes are found.
        gene_aliases
            How to find genes under other identifiers: a mapping from those in the data to those
            in the model; a :class:`~scxtrimo.data.GeneTable`, or the path of a table of HGNC, to
            translate previous and alias symbols and Ensembl ids; ``"hgnc"`` to download this
            table once.
        min_gene_overlap
            Smallest acceptable fraction of the model's genes, by default a quarter. Genes that
            are missing are not read; they are predicted all the same.
        **setup_args
            Arguments of :meth:`setup_anndata` that differ from those of the training data, for
            instance ``layer`` or ``batch_key``.

        Raises
        ------
        ValueError
            If too few genes are found, or the data are not as :meth:`setup_anndata` wants them.

        Notes
        -----
        The coverage report (genes matched, renamed, missing; columns unused) is written to
        ``adata.uns["scxtrimo_gene_coverage"]``.

        Examples
        --------
        >>> query = adata[:100, :300].copy()
        >>> query.layers["counts"] = query.X.copy()
        >>> model.prepare_query_anndata(query, layer="counts")
        >>> round(query.uns["scxtrimo_gene_coverage"]["overlap"], 2)
        0.39
        """
        trained_args = self.registry[_constants._SETUP_ARGS_KEY]
        if unknown := sorted(set(setup_args) - set(trained_args)):
            raise TypeError(f"Unknown arguments {unknown}; choose from {sorted(trained_args)}.")
        args = trained_args | setup_args
        adata = self._select_modality(adata, args)
        own_view(adata)
        if gene_id_key is not None:
            if gene_id_key != VAR_NAMES:
                get_column(adata.var, "var", gene_id_key)  # a wrong one raises here
            args["gene_id_key"] = gene_id_key
        query = self._query_setup(args, gene_aliases, min_gene_overlap)
        self._register_query(adata, query)
        self._prepared[id(adata)] = query
        weakref.finalize(adata, self._prepared.pop, id(adata), None)  # before the id is reused

    def _query_setup(
        self,
        setup_args: dict[str, Any],
        gene_aliases: GeneAliases = None,
        min_gene_overlap: float | None = None,
    ) -> QuerySetup:
        """Return a set-up with the model's own names of genes where no others are given."""
        aliases = self.gene_aliases_ if gene_aliases is None else self._read_aliases(gene_aliases)
        overlap = self.min_gene_overlap_ if min_gene_overlap is None else min_gene_overlap
        return QuerySetup(setup_args, aliases, overlap)

    def _read_aliases(self, gene_aliases: GeneAliases) -> dict[str, str]:
        """Return aliases as a plain mapping, which can be saved with the model."""
        aliases = read_aliases(gene_aliases)
        if isinstance(aliases, GeneTable):
            return aliases.aliases_of(self.vocabulary.gene_ids)
        return dict(aliases)

    def _remember_names(self, gene_aliases: GeneAliases, min_gene_overlap: float | None) -> None:
        """Use these for all data from now on, also after saving and loading."""
        if gene_aliases is not None:
            self.gene_aliases_ = self._read_aliases(gene_aliases)
        if min_gene_overlap is not None:
            self.min_gene_overlap_ = min_gene_overlap

    def _register_query(self, adata: AnnData, query: QuerySetup) -> None:
        """Align data to the model and make that the registration in use for them."""
        setup_method_args = {
            key: self.registry[key]
            for key in (_constants._MODEL_NAME_KEY, _constants._SETUP_METHOD_NAME)
        } | {_constants._SETUP_ARGS_KEY: query.setup_args}
        manager = make_manager(setup_method_args, query.gene_aliases, query.min_gene_overlap)
        manager.register_fields(adata, source_registry=self.registry)
        if adata is self.adata:
            self._adata_manager = manager
        else:
            self._query_manager = manager  # only the last one: it keeps its data alive

    def get_anndata_manager(
        self, adata: AnnData | MuData, required: bool = False
    ) -> RaggedDataManager | None:
        """Return the registration of these very data with this model, if there is one.

        Parameters
        ----------
        adata
            The data.
        required
            Raise instead of returning ``None``.

        Returns
        -------
        The registration, or ``None``.

        Raises
        ------
        ValueError
            If there is none and ``required`` is true.

        Examples
        --------
        >>> model.get_anndata_manager(model.adata) is model.adata_manager
        True
        >>> model.get_anndata_manager(adata.copy()) is None
        True
        """
        for manager in (self._adata_manager, self._query_manager):
            if manager is not None and manager.adata is adata:
                return manager
        if required:
            raise ValueError("These data are not registered with this model.")
        return None

    def _validate_anndata(
        self, adata: AnnData | MuData | None = None, copy_if_view: bool = True
    ) -> AnnData:
        """Return data that are registered with this model, registering them if need be."""
        data = self.adata if adata is None else adata
        if data is None:
            raise ValueError("The model was loaded without data; pass `adata=...`.")
        trained_args = self.registry[_constants._SETUP_ARGS_KEY]
        selected = self._select_modality(data, trained_args)
        own_view(selected)
        manager = self.get_anndata_manager(selected)
        if manager is None or not _is_up_to_date(manager):
            query = self._prepared.get(id(selected)) or self._query_setup(trained_args)
            self._register_query(selected, query)
        return selected

    def _attach(self, adata: AnnData | MuData) -> None:
        """Make other data the model's own."""
        self._adata = self._validate_anndata(adata)
        manager = self.get_anndata_manager(self._adata)
        assert manager is not None  # it was registered just now
        self._adata_manager, self._query_manager = manager, None

    @staticmethod
    def _select_modality(data: AnnData | MuData, args: dict[str, Any]) -> AnnData:
        own = ("batch_key", "labels_key", "perturbation_key", "population_key", "library_size_key")
        keys = [*(args.get(name) for name in own), *(args["categorical_covariate_keys"] or ())]
        return select_modality(data, args["modality"], [key for key in keys if key])


def _is_up_to_date(manager: RaggedDataManager) -> bool:
    """Return whether the data still have the cells and columns they were registered with."""
    state = manager.get_state_registry(REGISTRY_KEYS.X_KEY)
    return manager.adata.n_obs == state[CountsField.N_OBS_KEY] and manager.adata.var_names.equals(
        state[CountsField.COLUMNS_KEY]
    )


def make_manager(
    setup_method_args: dict[str, Any],
    gene_aliases: Mapping[str, str] | None = None,
    min_gene_overlap: float = DEFAULT_MIN_GENE_OVERLAP,
) -> RaggedDataManager:
    """Return a data manager with the fields that the set-up asks for."""
    args = setup_method_args[_constants._SETUP_ARGS_KEY]
    fields = [
        CountsField(args["layer"], args["gene_id_key"], gene_aliases, min_gene_overlap),
    ]
    if args["batch_key"] is not None:
        fields.append(CategoryField(REGISTRY_KEYS.BATCH_KEY, args["batch_key"]))
    for key in args["categorical_covariate_keys"] or ():
        fields.append(CategoryField(f"{CATEGORICAL_PREFIX}{key}", key))
    if UNLABELED in args:
        fields.append(LabelsField(args["labels_key"], args[UNLABELED]))
    elif args["labels_key"] is not None:
        fields.append(CategoryField(REGISTRY_KEYS.LABELS_KEY, args["labels_key"]))
    return RaggedDataManager(
        fields=fields + perturbation_fields(args), setup_method_args=setup_method_args
    )


def perturbation_fields(args: Mapping[str, Any]) -> list[Any]:
    """Return the fields with perturbations, if the set-up asks for any."""
    if "perturbation_key" not in args:
        return []
    names = PerturbationNames(args["control"], args["separator"])
    fields: list[Any] = [PerturbationField(args["perturbation_key"], names)]
    if args["population_key"] is not None:
        fields.append(CategoryField(POPULATION, args["population_key"]))
    if args["library_size_key"] is not None:
        fields.append(LibrarySizeField(args["library_size_key"]))
    return fields


def registry_of_genes(
    model_class: type[BaseModelClass], genes: Sequence[str], setup_args: dict[str, Any]
) -> dict[str, Any]:
    """Return the registry of a model of these genes that has seen no data."""
    one_cell = AnnData(np.ones((1, len(genes)), dtype=np.float32))
    one_cell.var_names = list(genes)
    counts_only = setup_args | {"layer": None, "gene_id_key": None}
    method_args = {
        "model_name": model_class.__name__,
        "setup_method_name": "setup_anndata",
        "setup_args": counts_only,
    }
    manager = make_manager(method_args)
    manager.register_fields(one_cell)
    return manager.registry | {"setup_args": setup_args}
