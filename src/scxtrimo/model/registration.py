"""From AnnData or MuData to a registered data manager."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from copy import deepcopy
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
from .._validation import Probability, check
from ..data.columns import as_text, get_column
from ..data.dataset import CATEGORICAL_PREFIX, RaggedDataManager
from ..data.fields import CategoryField, CompleteLabelsField, CountsField, LabelsField
from ..data.gene_table import GeneAliases, GeneTable, read_aliases
from ..data.vocabulary import DEFAULT_MIN_GENE_OVERLAP, VAR_NAMES
from ..perturbation.groups import (
    POPULATION,
    LibrarySizeField,
    PerturbationField,
    PerturbationNames,
)
from .files import hash_texts

MODALITY_KEY = "_scxtrimo_modality"
COPIED_KEY = "_scxtrimo_copied"  # columns of mdata.obs that a modality has a copy of
OBS_KEYS = ("batch_key", "labels_key", "perturbation_key", "population_key", "library_size_key")
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


@dataclass
class Query:
    """What a model knows of data other than its own, as long as they exist.

    Parameters
    ----------
    data
        The data.
    setup
        How they are registered.
    manager
        Their registration, without the data; ``None`` before the first use.
    """

    data: weakref.ref[AnnData | MuData]
    setup: QuerySetup | None = None
    manager: RaggedDataManager | None = None


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
        Columns to copy from ``mdata.obs`` where the modality has none of its own. A copy follows
        the original until it is changed.

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
            'these: `setup_anndata(mdata, modality="...")` or, for other data than those of the '
            'training, `model.prepare_query_anndata(mdata, modality="...")`.'
        )
    adata = data.mod[modality]
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


class SetupMixin(BaseModelClass):
    """``setup_anndata`` and the registration of other data.

    scvi-tools finds registrations by an identifier in ``adata.uns``; this class finds those of a
    model by the data object itself, checks that cells, genes and registered columns are those it
    was made of (:meth:`~scxtrimo.data.RaggedDataManager.is_current`), and always aligns to the
    registry of the model. A set-up of the same data for another model, or an edit in place, can
    therefore not shift genes or batches.
    """

    _queries: dict[int, Query]  # by the identity of the data
    _registering: threading.RLock
    _mdata: weakref.ref[MuData] | None
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
        if keys is not None:
            args["categorical_covariate_keys"] = [
                check("categorical_covariate_keys", key, str) for key in keys
            ]
        for name in (*OBS_KEYS, "layer", "gene_id_key", "modality"):
            if name in args:
                args[name] = check(name, args[name], str | None)
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
            Column of ``adata.var`` with the identifiers, or ``"var_names"``. By default the column
            named for the training data, if there is one by that name, else ``"var_names"``, and
            another column only if not a single gene is found there.
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
            instance ``layer`` or ``batch_key``; ``batch_key=None`` for data of none of the batches
            of the training.

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
        if not isinstance(self, SetupMixin):  # as in scvi-tools, where it is of the class
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

    def _set_up_again(self, manager: RaggedDataManager) -> RaggedDataManager:
        """Return the registration of data that changed after their set-up."""
        keys = (
            _constants._MODEL_NAME_KEY,
            _constants._SETUP_METHOD_NAME,
            _constants._SETUP_ARGS_KEY,
        )
        again = make_manager({key: manager.registry[key] for key in keys})
        again.register_fields(manager.adata, manager._source_registry)
        return again

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
        aliases = self.gene_aliases_ if gene_aliases is None else self._read_aliases(gene_aliases)
        overlap = check("min_gene_overlap", min_gene_overlap, Probability | None)
        overlap = self.min_gene_overlap_ if overlap is None else overlap
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
            self.min_gene_overlap_ = check("min_gene_overlap", min_gene_overlap, Probability)

    def _register_query(self, adata: AnnData, query: QuerySetup) -> None:
        """Align data to the model and make that the registration in use for them."""
        setup_method_args = {
            key: self.registry[key]
            for key in (_constants._MODEL_NAME_KEY, _constants._SETUP_METHOD_NAME)
        } | {_constants._SETUP_ARGS_KEY: query.setup_args}
        manager = make_manager(
            setup_method_args,
            query.gene_aliases,
            query.min_gene_overlap,
            self.registry[_constants._SETUP_ARGS_KEY],
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
        own = self._adata_manager
        if own is not None and own.adata is adata:
            return own
        query = self._queries.get(id(adata))
        if query is not None and query.manager is not None:
            return query.manager.with_data(adata)
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
        manager = self.get_anndata_manager(self._adata)
        assert manager is not None  # it was registered just now
        self._adata_manager = manager
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
        named = [args.get(name) for name in OBS_KEYS]
        keys = [key for key in (*named, *(args["categorical_covariate_keys"] or ())) if key]
        return select_modality(data, args["modality"], keys)


def _forget(model: weakref.ref[SetupMixin], key: int) -> None:
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


def make_manager(
    setup_method_args: dict[str, Any],
    gene_aliases: Mapping[str, str] | None = None,
    min_gene_overlap: float = DEFAULT_MIN_GENE_OVERLAP,
    trained_args: Mapping[str, Any] | None = None,
) -> RaggedDataManager:
    """Return a data manager with the fields that the set-up asks for.

    With ``trained_args`` it has those of the training; of a column that ``setup_method_args`` does
    not name, no category is known.
    """
    args = setup_method_args[_constants._SETUP_ARGS_KEY]
    roles = args if trained_args is None else trained_args
    fields: list[Any] = [
        CountsField(args["layer"], args["gene_id_key"], gene_aliases, min_gene_overlap),
    ]
    if roles["batch_key"] is not None:
        fields.append(CategoryField(REGISTRY_KEYS.BATCH_KEY, args["batch_key"]))
    covariates = roles["categorical_covariate_keys"] or ()
    columns = args["categorical_covariate_keys"] or [None] * len(covariates)
    for name, key in zip(covariates, columns, strict=True):
        fields.append(CategoryField(f"{CATEGORICAL_PREFIX}{name}", key))
    if UNLABELED in roles:
        fields.append(LabelsField(args["labels_key"], args[UNLABELED]))
    elif roles["labels_key"] is not None:
        fields.append(CompleteLabelsField(args["labels_key"]))
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
