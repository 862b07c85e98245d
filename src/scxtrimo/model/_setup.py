"""From AnnData or MuData to a registered data manager."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data import _constants
from scvi.model.base import BaseModelClass

from .._logging import logger
from ..data import CategoryField, CountsField, RaggedDataManager
from ..data.dataset import CATEGORICAL_PREFIX
from ..data.vocabulary import DEFAULT_MIN_GENE_OVERLAP

MODALITY_KEY = "_scxtrimo_modality"


def select_modality(
    data: AnnData | MuData, modality: str | None = None, obs_keys: Sequence[str] = ()
) -> AnnData:
    """Return the AnnData to work on.

    Parameters
    ----------
    data
        An AnnData, returned as it is, or a MuData.
    modality
        Which modality of a MuData; by default the one it was set up with.
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
    modality = modality if modality is not None else data.uns.get(MODALITY_KEY)
    if modality not in data.mod:
        raise ValueError(
            f"modality={modality!r} is not in the MuData, which has {list(data.mod)}. Name one of "
            'these: `setup_anndata(mdata, modality="...")`.'
        )
    data.uns[MODALITY_KEY] = modality
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
    """``setup_anndata`` and the registration of other data."""

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
            Column of ``adata.obs`` with the batch. The decoder of the counts is conditioned on it,
            the encoder is not.
        labels_key
            Column of ``adata.obs`` with labels. They are not used in training.
        categorical_covariate_keys
            Columns of ``adata.obs`` with further categories, treated like the batch.
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
        >>> adata = scxtrimo.pp.pbmc68k_counts()
        >>> scxtrimo.model.XTrimoGene.setup_anndata(adata, labels_key="bulk_labels")
        """
        setup_method_args = cls._get_setup_method_args(
            **{name: value for name, value in locals().items() if name != "kwargs"}
        )
        keys = [key for key in (batch_key, labels_key, *(categorical_covariate_keys or ())) if key]
        adata = select_modality(adata, modality, keys)
        own_view(adata)
        manager = make_manager(setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def prepare_query_anndata(
        self,
        adata: AnnData | MuData,
        *,
        gene_id_key: str | None = None,
        gene_aliases: Mapping[str, str] | None = None,
        min_gene_overlap: float = DEFAULT_MIN_GENE_OVERLAP,
        **setup_args: Any,
    ) -> None:
        """Align other data to the model, where the defaults do not fit.

        Any method that takes ``adata`` does this by itself, with the set-up of the training data.

        Parameters
        ----------
        adata
            Other data, with other genes, another order of genes or other identifiers.
        gene_id_key
            Column of ``adata.var`` with the identifiers. By default ``adata.var_names`` or the
            column in which most of the model's genes are found.
        gene_aliases
            From identifiers as in the data to identifiers as in the model.
        min_gene_overlap
            Smallest acceptable fraction of the model's genes. Genes that are missing are not
            read; they are predicted all the same.
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
        args = trained_args | setup_args | {"gene_id_key": gene_id_key}
        adata = select_modality(adata, args["modality"])
        own_view(adata)
        self._register_query(adata, args, gene_aliases, min_gene_overlap)

    def _register_query(
        self,
        adata: AnnData,
        setup_args: dict[str, Any],
        gene_aliases: Mapping[str, str] | None = None,
        min_gene_overlap: float = DEFAULT_MIN_GENE_OVERLAP,
    ) -> None:
        setup_method_args = {
            key: self.registry[key]
            for key in (_constants._MODEL_NAME_KEY, _constants._SETUP_METHOD_NAME)
        } | {_constants._SETUP_ARGS_KEY: setup_args}
        manager = make_manager(setup_method_args, gene_aliases, min_gene_overlap)
        adata.uns[_constants._SCVI_UUID_KEY] = str(uuid4())  # a copy carries that of its original
        manager.register_fields(adata, source_registry=self.registry)
        self._register_manager_for_instance(manager)

    def _validate_anndata(
        self, adata: AnnData | MuData | None = None, copy_if_view: bool = True
    ) -> AnnData:
        """Return data that are registered with this model, registering them if need be."""
        if adata is None:
            adata = self.adata
        if adata is None:
            raise ValueError("The model was loaded without data; pass `adata=...`.")
        adata = select_modality(adata)
        own_view(adata)
        store = self._per_instance_manager_store.get(self.id, {})
        manager = store.get(adata.uns.get(_constants._SCVI_UUID_KEY))
        if manager is not None and manager.adata is adata:
            manager.validate()
        else:
            self._register_query(adata, self.registry[_constants._SETUP_ARGS_KEY])
        return adata


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
    if args["labels_key"] is not None:
        fields.append(CategoryField(REGISTRY_KEYS.LABELS_KEY, args["labels_key"]))
    return RaggedDataManager(fields=fields, setup_method_args=setup_method_args)
