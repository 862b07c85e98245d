"""Cell-type annotation for AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from anndata import AnnData
from mudata import MuData
from scvi.data import _constants

from ..data.fields import LabelsField
from ..model.base import XTrimoGeneBase
from ..model.derive import derive_model
from ..model.registration import UNLABELED
from ..model.xtrimogene import XTrimoGene
from .explanation import ExplanationMixin
from .module import XTrimoGeneAnnotatorConfig, XTrimoGeneAnnotatorModule
from .training import AnnotatorTrainingMixin


class XTrimoGeneAnnotator(AnnotatorTrainingMixin, ExplanationMixin, XTrimoGeneBase):
    """Cell-type annotation with xTrimoGene.

    A network is trained on all cells, labelled or not, as by :class:`XTrimoGene` (or taken from a
    trained one). Two linear models then tell the labels apart: one reads the cell's
    representation, which knows what unlabelled cells taught the network, the other the expression
    of the genes; their probabilities are averaged and calibrated. The network can be fine-tuned
    on the labels as well, see :meth:`train`.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    size, config, registry, seed
        See :class:`XTrimoGene`.
    **hyperparameters
        Fields of :class:`~scxtrimo.annotation.XTrimoGeneAnnotatorConfig` that differ from those of
        ``size``.

    Raises
    ------
    ValueError
        If the data were not set up, or a hyper-parameter has an impossible value.

    Examples
    --------
    >>> import scxtrimo
    >>> adata = scxtrimo.datasets.pbmc68k()
    >>> scxtrimo.model.XTrimoGeneAnnotator.setup_anndata(adata, labels_key="bulk_labels")
    >>> annotator = scxtrimo.model.XTrimoGeneAnnotator(adata, size="tiny")
    >>> annotator.train(pretrain_epochs=1, enable_progress_bar=False)
    >>> adata.obs["predicted"] = annotator.predict()
    """

    _module_cls = XTrimoGeneAnnotatorModule
    _config_cls = XTrimoGeneAnnotatorConfig
    module: XTrimoGeneAnnotatorModule

    def _module_arguments(self) -> dict[str, Any]:
        return {"n_labels": self.summary_stats.n_labels}

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData | MuData,
        labels_key: str,
        unlabeled_category: str | None = None,
        layer: str | None = None,
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        gene_id_key: str | None = None,
        modality: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Say where the counts, the genes, the labels and the covariates are, and check them.

        Parameters
        ----------
        adata
            Data with raw counts, see :meth:`XTrimoGene.setup_anndata`.
        labels_key
            Column of ``adata.obs`` with the labels.
        unlabeled_category
            What this column holds for cells without a label, besides missing values (NaN).
        layer, batch_key, categorical_covariate_keys, gene_id_key, modality, **kwargs
            See :meth:`XTrimoGene.setup_anndata`.

        Raises
        ------
        ValueError
            If there are less than two labels, or as :meth:`XTrimoGene.setup_anndata` does.

        Examples
        --------
        >>> import scxtrimo
        >>> adata = scxtrimo.datasets.pbmc68k()
        >>> scxtrimo.model.XTrimoGeneAnnotator.setup_anndata(adata, labels_key="bulk_labels")
        """
        setup_args = {name: value for name, value in locals().items() if name != "kwargs"}
        cls._register(adata, cls._get_setup_method_args(**setup_args), **kwargs)

    @classmethod
    def from_xtrimogene_model(
        cls,
        model: XTrimoGene,
        unlabeled_category: str | None = None,
        labels_key: str | None = None,
        adata: AnnData | MuData | None = None,
        *,
        seed: int | None = None,
        **hyperparameters: Any,
    ) -> XTrimoGeneAnnotator:
        """Make an annotator of a trained model, ours or from a published checkpoint.

        Parameters
        ----------
        model
            The model. It is copied, and stays as it is.
        unlabeled_category
            See :meth:`setup_anndata`.
        labels_key
            Column of ``adata.obs`` with the labels; by default the one that the model was set up
            with.
        adata
            Labelled data, with any genes in any order; by default those of the model.
        seed
            See :class:`XTrimoGene`; by default that of the model.
        **hyperparameters
            ``n_classifier_hidden``, ``classifier_dropout`` and ``gene_weight``, see
            :class:`~scxtrimo.annotation.XTrimoGeneAnnotatorConfig`.

        Returns
        -------
        The annotator, to be trained on the labels.

        Raises
        ------
        ValueError
            If the model was not trained, there are no data or no labels, or the data do not fit.

        Examples
        --------
        >>> annotator = scxtrimo.model.XTrimoGeneAnnotator.from_xtrimogene_model(
        ...     model, labels_key="bulk_labels"
        ... )
        >>> annotator.train()
        """
        if not model.is_trained_:
            raise ValueError("The model is not trained. Call `model.train()` first.")
        setup_args = model.registry_[_constants._SETUP_ARGS_KEY]
        labels_key = labels_key or setup_args["labels_key"]
        if labels_key is None:
            raise ValueError(
                'Name the column of adata.obs with the labels: `labels_key="cell_type"`.'
            )
        data = model.adata if adata is None else adata
        if data is None:
            raise ValueError("The model was loaded without data; pass `adata=...`.")
        own = XTrimoGeneAnnotatorConfig.__annotations__.keys()
        if foreign := sorted(hyperparameters.keys() - own):
            raise TypeError(f"{foreign} are hyper-parameters of the model, which is trained.")
        return derive_model(
            cls,
            model,
            data,
            {"labels_key": labels_key, UNLABELED: unlabeled_category},
            [LabelsField(labels_key, unlabeled_category)],
            XTrimoGeneAnnotatorConfig(**(asdict(model.config_) | hyperparameters)),
            seed=seed,
        )
