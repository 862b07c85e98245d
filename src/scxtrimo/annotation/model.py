"""Cell-type annotation for AnnData."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from pydantic import PositiveInt
from scvi import REGISTRY_KEYS

from .._validation import check
from ..data.columns import canonical, from_text, get_column
from ..data.fields import CategoryField, LabelsField
from ..data.vocabulary import own_identifiers, preview
from ..latent import Explained
from ..model.base import XTrimoGeneBase
from ..model.derive import derive_model
from ..model.registration import hash_texts
from ..model.training import as_epochs, default_batch_size, default_lr
from ..model.xtrimogene import XTrimoGene
from ..train.plan import FinetuningConfig, OptimizerConfig, XTrimoGenePlan
from ..train.trainer import KeepBest, as_list, objective_of
from . import training
from .explanation import as_scanpy_result, rank_genes
from .module import LabelPanel, XTrimoGeneAnnotatorConfig, XTrimoGeneAnnotatorModule
from .tools import UNKNOWN, call_labels, check_call
from .training import MACRO_F1, AnnotationConfig, AnnotatorPlan, ClassWeight, Recipe, label_codes

BATCH = "scxtrimo_batch"  # reference or query, where both are trained on


class XTrimoGeneAnnotator(XTrimoGeneBase):
    """Cell-type annotation with xTrimoGene.

    A network is trained on all cells, labelled or not, or taken from a trained
    :class:`XTrimoGene`. Two linear models, of the representation of a cell and of the expression
    of its genes, then predict the label; their probabilities are averaged, with a weight that is
    chosen by cross-validation, and calibrated.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    size, config, registry, pretrained, seed
        See :class:`XTrimoGene`.
    **hyperparameters
        Fields of :class:`~scxtrimo.annotation.XTrimoGeneAnnotatorConfig` that differ from those of
        ``size``.

    Examples
    --------
    >>> adata = scxtrimo.datasets.pbmc68k()
    >>> scxtrimo.model.XTrimoGeneAnnotator.setup_anndata(adata, labels_key="bulk_labels")
    >>> annotator = scxtrimo.model.XTrimoGeneAnnotator(adata, size="tiny")
    >>> annotator.train(pretrain_epochs=1, enable_progress_bar=False)
    >>> annotator.labels[0]
    'CD4+/CD25 T Reg'
    >>> adata.obs["predicted"] = annotator.predict()
    >>> held_out = annotator.held_out.idxmax(axis=1)
    >>> report = scxtrimo.tl.annotation_report(annotator.held_out_labels, held_out)
    """

    _module_cls = XTrimoGeneAnnotatorModule
    _config_cls = XTrimoGeneAnnotatorConfig
    module: XTrimoGeneAnnotatorModule
    _fine_tuning: dict[str, Any] | None = None  # the objective while the labels are trained on
    _held_out: tuple[pd.DataFrame, pd.Series] | None = None  # probabilities and labels

    @classmethod
    def _own_fields(cls, args: Mapping[str, Any], roles: Mapping[str, Any]) -> list[Any]:
        return [LabelsField(args["labels_key"], args["unlabeled_category"])]

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
        """Register the counts, genes, labels and covariates of data, and check them.

        Parameters
        ----------
        labels_key, unlabeled_category
            Column of ``adata.obs`` with the labels, at least two of them, and its value in cells
            without one, besides missing values.
        adata, layer, batch_key, categorical_covariate_keys, gene_id_key, modality, **kwargs
            See :meth:`XTrimoGene.setup_anndata`.
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
            The model. It is copied and does not change.
        unlabeled_category, labels_key
            See :meth:`setup_anndata`; by default the labels of the model's set-up.
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

        Examples
        --------
        >>> annotator = scxtrimo.model.XTrimoGeneAnnotator.from_xtrimogene_model(
        ...     model, labels_key="bulk_labels"
        ... )
        """
        labels_key = labels_key or model.registry_["setup_args"]["labels_key"]
        if labels_key is None:
            raise ValueError(
                "labels_key=None: the model was set up without labels. Name the column of "
                'adata.obs that has them: `labels_key="cell_type"`.'
            )
        data = model.adata if adata is None else adata
        if data is None:
            raise ValueError("The model was loaded without data; pass `adata=...`.")
        own = XTrimoGeneAnnotatorConfig.__annotations__.keys()
        if foreign := sorted(hyperparameters.keys() - own):
            raise TypeError(
                f"{foreign} cannot be changed in a trained model; choose from {sorted(own)}."
            )
        own_args = {"labels_key": labels_key, "unlabeled_category": unlabeled_category}
        fields = cls._own_fields(own_args, own_args)
        config = XTrimoGeneAnnotatorConfig(**(asdict(model.config_) | hyperparameters))
        return derive_model(cls, model, data, own_args, fields, config, seed=seed)

    def train(  # type: ignore[override]
        self,
        max_epochs: int | None = None,
        recipe: Recipe | None = None,
        *,
        freeze: str | None = None,
        layer_decay: float = 1.0,
        lora_rank: int = 0,
        class_weight: ClassWeight = None,
        label_smoothing: float = 0.0,
        reconstruction_weight: float = 1.0,
        finetuning: FinetuningConfig | None = None,
        early_stopping: bool = False,
        pretrain_epochs: int | None = None,
        train_size: float | None = None,
        ckpt_path: str | os.PathLike | None = None,
        optimizer: OptimizerConfig | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the network on all cells if it was not trained yet, then learn the labels.

        The labels are those that the data have now. Fine-tuning changes the cell vectors but not
        the latent space: for embeddings, prefer the model before fine-tuning.

        Parameters
        ----------
        max_epochs
            Epochs of a fine-tuning; by default those of about 200 steps.
        recipe
            ``"linear"``: the two linear models are fitted and calibrated. ``"finetune"``: then the
            network and a perceptron are trained on the labels. ``"published"``: the last layer of
            the encoder, the pooling and a perceptron with random weights are trained with a
            weighted cross-entropy alone :cite:p:`Gong2023`. By default ``"finetune"`` if an
            argument is given that only applies to it, else ``"linear"``.
        freeze, layer_decay, lora_rank, finetuning
            What is fine-tuned, as single values or all at once, see
            :class:`~scxtrimo.train.FinetuningConfig`.
        class_weight, label_smoothing, reconstruction_weight
            See :class:`~scxtrimo.annotation.AnnotationConfig`. The class weight applies to the
            linear models as well.
        early_stopping
            Stop a fine-tuning when the macro-averaged F1 score of the validation cells has not
            risen for ``early_stopping_patience`` epochs, and go back to the best epoch.
        pretrain_epochs
            Epochs of :meth:`XTrimoGene.train`, if the network was not trained yet.
        train_size
            Fraction of the cells of every label with at least five to learn from; the others
            calibrate the probabilities. By default 0.9 in a fine-tuning, while linear models learn
            from all labelled cells and are calibrated by cross-validation.
        ckpt_path, optimizer, datasplitter_kwargs, plan_kwargs, **kwargs
            See :meth:`XTrimoGene.train`; ``optimizer`` and ``plan_kwargs`` are for fine-tuning.

        Examples
        --------
        >>> annotator.train()
        >>> annotator.train(max_epochs=1, freeze="encoder", enable_progress_bar=False)
        """
        check("early_stopping", early_stopping, bool)
        max_epochs = as_epochs(max_epochs)
        pretrain_epochs = as_epochs(pretrain_epochs, "pretrain_epochs")
        check("batch_size", kwargs.get("batch_size"), PositiveInt | None)
        if "validation_size" in kwargs:
            raise TypeError(
                "validation_size= is not an argument here: the cells that are not learned from "
                "calibrate the probabilities. Lower `train_size` for more of them."
            )
        if self.adata_manager is None:
            raise ValueError(
                "The annotator has no data to train on; load it with `load(..., adata=...)`."
            )
        self._validate_anndata()
        if finetuning is None:
            finetuning = FinetuningConfig(freeze, layer_decay, lora_rank)
        elif (freeze, layer_decay, lora_rank) != (None, 1.0, 0):
            raise TypeError("Give either `finetuning` or `freeze`, `layer_decay`, `lora_rank`.")
        recipe, annotation, finetuning = training.choose_recipe(
            recipe,
            AnnotationConfig(class_weight, label_smoothing, reconstruction_weight),
            finetuning,
            max_epochs=max_epochs,
            early_stopping=early_stopping,
            optimizer=optimizer,
            plan_kwargs=plan_kwargs,
        )
        finetuning.check(self.config_.n_layers)
        with ExitStack() as stack:
            stack.enter_context(self._progress_as_asked(kwargs))
            if self.is_trained_:
                stack.enter_context(training.labels_unchanged_if_interrupted(self))
            if ckpt_path is None:
                training.learn_present_labels(self)
            codes = label_codes(self)
            splitting = dict(datasplitter_kwargs or {})
            indexing = splitting.pop("external_indexing", None)
            cross_validated = recipe == "linear" and train_size is None and indexing is None
            split = training.split_labelled(
                codes, train_size, self.seed_, indexing, early_stopping
            )
            kwargs["datasplitter_kwargs"] = splitting | {"external_indexing": split}
            # Trained weights are moved more slowly than random ones.
            lr = default_lr(self.config_.n_hidden) * (1.0 if recipe == "published" else 0.1)
            if plan_kwargs:
                plan_kwargs = {"lr": lr} | plan_kwargs
            elif optimizer is None:
                optimizer = OptimizerConfig(lr=lr)
            if recipe != "linear":  # wrong arguments raise here, before any work
                self._make_plan(optimizer, kwargs.get("masking"), finetuning, plan_kwargs or {})
            resumed = None if ckpt_path is None else objective_of(ckpt_path)
            if resumed == AnnotatorPlan.__name__ and recipe == "linear":
                raise ValueError(
                    f"ckpt_path={str(ckpt_path)!r} is of a fine-tuning: repeat its arguments, "
                    "such as `max_epochs`."
                )
            if resumed == XTrimoGenePlan.__name__ or not (self.is_trained_ or resumed):
                super().train(max_epochs=pretrain_epochs, ckpt_path=ckpt_path, **kwargs)
                # From here on, an interruption leaves the trained network as it is.
                stack.enter_context(training.labels_unchanged_if_interrupted(self))
                resumed = ckpt_path = None
            if resumed is None:
                rows = np.arange(len(codes)) if cross_validated else split[0]
                training.fit_linear_models(
                    self, rows, codes, recipe, annotation.class_weight, cross_validated
                )
            if recipe != "linear":
                if max_epochs is None:
                    batch_size = kwargs.get("batch_size") or default_batch_size(len(codes))
                    n_steps = max(1, len(split[0]) // batch_size)
                    max_epochs = int(np.clip(round(200 / n_steps), 3, 100))
                if early_stopping:
                    kwargs["callbacks"] = [*as_list(kwargs.get("callbacks")), KeepBest(MACRO_F1)]
                    kwargs |= {"early_stopping_monitor": MACRO_F1, "early_stopping_mode": "max"}
                labels, weight = codes[codes >= 0], annotation.class_weight
                self._fine_tuning = {
                    "annotation": annotation,
                    "measured": self._measured_genes(self.adata),
                    "label_weights": training.label_weights(labels, len(self.labels), weight),
                }
                stack.callback(setattr, self, "_fine_tuning", None)
                super().train(
                    max_epochs,
                    early_stopping=early_stopping,
                    ckpt_path=ckpt_path,
                    optimizer=optimizer,
                    plan_kwargs=plan_kwargs,
                    finetuning=finetuning,
                    **kwargs,
                )
            if not cross_validated:
                training.calibrate(self, split[1], codes)

    def _trained_on(self) -> dict[str, str]:
        hashes = super()._trained_on()
        if self._fine_tuning:
            hashes["labels"] = hash_texts((*self.labels, *label_codes(self).tolist()))
        return hashes

    def _plan_class(self) -> type[XTrimoGenePlan]:
        return AnnotatorPlan if self._fine_tuning else XTrimoGenePlan

    def _plan_arguments(self) -> dict[str, Any]:
        return self._fine_tuning or {}

    def _finish_training(self, rows: np.ndarray, held_out: np.ndarray) -> Explained | None:
        if self._fine_tuning:  # which trains the classifier on the latent space as it is
            return None
        return super()._finish_training(rows, held_out)

    def _label_panel(self, adata: AnnData) -> LabelPanel:
        """Return what the genes measured in registered data mean for the classifiers."""
        self._check_latent_space()
        return self.module.label_panel(self._measured_genes(adata))

    @property
    def labels(self) -> np.ndarray:
        """The labels that the model knows, of the same type as in the training data."""
        state = self._labels_state()
        return from_text(state[CategoryField.MAPPING_KEY], state[LabelsField.KIND_KEY])

    def _labels_state(self) -> dict[str, Any]:
        return self.registry_["field_registries"][REGISTRY_KEYS.LABELS_KEY]["state_registry"]

    @torch.inference_mode()
    def predict(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        soft: bool = False,
        batch_size: int | None = None,
        min_confidence: float = 0.0,
        unknown: str | None = UNKNOWN,
        hierarchy: Mapping[str, str] | None = None,
    ) -> np.ndarray | pd.DataFrame:
        """Return the labels of cells.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`XTrimoGene.get_latent_representation`.
        soft
            Return the probabilities of all labels instead.
        min_confidence, unknown, hierarchy
            When to give no label or a more general one, see :func:`scxtrimo.tl.call_labels`.

        Returns
        -------
        Array of labels, or with ``soft`` a data frame of calibrated probabilities, shape
        ``(n_cells, n_labels)``.

        Examples
        --------
        >>> annotator.predict(adata)[:2]
        array(['CD14+ Monocyte', 'Dendritic'], dtype=object)
        """
        if not self.module.classifier.is_fitted:
            raise ValueError(
                "The annotator was not trained on the labels yet. Call `annotator.train()` first."
            )
        check_call(self.labels, min_confidence, hierarchy, unknown)
        registered, rows = self._rows(adata, indices)
        panel = self._label_panel(registered)
        probabilities = np.empty((len(rows), len(self.labels)), dtype=np.float32)
        for place, batch in self._batches(registered, rows, batch_size, "Annotating"):
            log_p_cl = self.module.label_log_probabilities(batch, self._encode(batch), panel)
            probabilities[place] = log_p_cl.exp().cpu().numpy()
        frame = pd.DataFrame(probabilities, registered.obs_names[rows], pd.Index(self.labels))
        if soft:
            return frame
        return call_labels(frame, min_confidence, unknown, hierarchy)["label"].to_numpy()

    def annotate(
        self,
        adata: AnnData | None = None,
        key_added: str = "xtrimo_label",
        min_confidence: float = 0.0,
        unknown: str | None = UNKNOWN,
        hierarchy: Mapping[str, str] | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Write the labels of cells into the data.

        Parameters
        ----------
        key_added
            Column of ``adata.obs`` for the labels; their probabilities go to
            ``key_added + "_confidence"``.
        adata, min_confidence, unknown, hierarchy, batch_size
            See :meth:`predict`.

        Examples
        --------
        >>> annotator.annotate(adata, min_confidence=0.8)
        """
        check_call(self.labels, min_confidence, hierarchy, unknown)
        check_key_added(key_added, self.registry_["setup_args"]["labels_key"])
        data = self._validate_anndata(adata)
        probabilities = self.predict(data, soft=True, batch_size=batch_size)
        assert isinstance(probabilities, pd.DataFrame)
        called = call_labels(probabilities, min_confidence, unknown, hierarchy)
        labels = called["label"]
        if len(labels.dropna().map(type).unique()) > 1:  # h5ad cannot hold numbers and text
            labels = labels.map(canonical, na_action="ignore")
        data.obs[key_added] = pd.Categorical(labels.infer_objects())
        data.obs[f"{key_added}_confidence"] = called["confidence"].to_numpy()

    def rank_label_genes(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        max_cells: int = 100,
        n_steps: int = 20,
        key_added: str = "xtrimo_label_genes",
        batch_size: int = 16,
    ) -> pd.DataFrame:
        """Rank genes by what their expression adds to the log-probability of a label.

        By integrated gradients :cite:p:`Sundararajan2017`, from the average expression in the
        training cells to that of a cell; genes that it does not express score 0. Needs the extra
        ``explain``.

        Parameters
        ----------
        adata, batch_size
            See :meth:`predict`.
        groupby
            Column of ``adata.obs`` with the labels to explain; cells whose label the model does
            not know are left out. By default the predicted labels.
        max_cells
            Cells per label, drawn at random.
        n_steps
            Points along the path; what they miss is the ``max_error`` of the ``params``.
        key_added
            Where in ``adata.uns`` to put the result, as :func:`scanpy.tl.rank_genes_groups` does.

        Returns
        -------
        Data frame with the columns ``group``, ``names``, ``scores`` (mean over the cells, in
        nats), ``logfoldchanges`` (base 2, against the other explained cells) and ``pct_nz_group``
        (part of the cells that express the gene), without p-values.

        Examples
        --------
        >>> genes = annotator.rank_label_genes(max_cells=1, n_steps=4)
        >>> genes.columns.tolist()
        ['group', 'names', 'scores', 'logfoldchanges', 'pct_nz_group']
        """
        data = self._validate_anndata(adata)
        genes, max_error = rank_genes(self, data, groupby, max_cells, n_steps, batch_size)
        params = {"groupby": groupby or "predicted", "n_steps": n_steps, "max_error": max_error}
        data.uns[key_added] = as_scanpy_result(genes, params)
        return genes

    @property
    def held_out(self) -> pd.DataFrame:
        """Probabilities of the labels in cells that were not learned from.

        These are all labelled cells after cross-validation, else the validation cells; shape
        ``(n_cells, n_labels)``. They are not saved with the model.
        """
        return self._held_out_cells()[0]

    @property
    def held_out_labels(self) -> pd.Series:
        """The labels of the cells in ``held_out``, in the same order."""
        return self._held_out_cells()[1]

    def _held_out_cells(self) -> tuple[pd.DataFrame, pd.Series]:
        if self._held_out is None:
            raise ValueError(
                "No cells were held out, or the annotator was not trained since it was loaded. "
                "Call `annotator.train()`."
            )
        return self._held_out


def check_key_added(key_added: str, labels_key: str) -> None:
    """Raise if predicted labels would replace those that are learned from."""
    if key_added == labels_key:
        raise ValueError(
            f"key_added={key_added!r} is the column with the labels that are learned from. "
            "Choose another name."
        )


def annotate_together(
    reference: AnnData,
    query: AnnData,
    labels_key: str,
    unlabeled_category: str | None = None,
    *,
    reference_layer: str | None = None,
    query_layer: str | None = None,
    gene_id_key: str | None = None,
    key_added: str = "xtrimo_label",
    min_confidence: float = 0.0,
    unknown: str | None = UNKNOWN,
    hierarchy: Mapping[str, str] | None = None,
    batch_size: int | None = None,
    size: str = "auto",
    seed: int | None = None,
    **train_kwargs: Any,
) -> XTrimoGeneAnnotator:
    """Annotate cells with a new model that is trained on them and on a labelled reference.

    Reference and query are two batches, which are integrated: for a query that differs from the
    reference as a whole. The model reads the genes that both have.

    Parameters
    ----------
    reference, query
        Labelled cells and cells to annotate, with raw counts; the labels are written to
        ``query.obs``.
    labels_key, unlabeled_category
        Column of ``reference.obs`` with the labels, and its value in cells without one.
    reference_layer, query_layer
        Layers with the raw counts; by default ``X``.
    gene_id_key
        Column of ``var`` with gene identifiers; ``var_names`` where there is no such column.
    key_added, min_confidence, unknown, hierarchy, batch_size
        See :meth:`~scxtrimo.model.XTrimoGeneAnnotator.annotate`.
    size, seed
        See :class:`~scxtrimo.model.XTrimoGeneAnnotator`.
    **train_kwargs
        Passed to :meth:`~scxtrimo.model.XTrimoGeneAnnotator.train`.

    Returns
    -------
    The annotator; its ``adata`` has the cells of the reference, then those of the query.

    Examples
    --------
    >>> reference, query = adata[:500].copy(), adata[500:].copy()
    >>> fast = {"size": "tiny", "pretrain_epochs": 1, "enable_progress_bar": False}
    >>> both = scxtrimo.annotation.annotate_together(reference, query, "bulk_labels", **fast)
    >>> query.obs[["xtrimo_label", "xtrimo_label_confidence"]].shape
    (200, 2)
    """
    check_key_added(key_added, labels_key)
    parts = {}
    given = ("reference", reference, reference_layer), ("query", query, query_layer)
    for name, data, layer in given:
        genes = own_identifiers(data.var, gene_id_key if gene_id_key in data.var else None)
        part = AnnData(data.X if layer is None else data.layers[layer])
        part.obs_names, part.var_names = data.obs_names, genes.tolist()
        parts[name] = part[:, genes != ""]
    both = anndata.concat(parts, label=BATCH, index_unique="-", join="inner")
    if both.n_vars == 0:
        raise ValueError(
            "reference and query have no gene in common: the reference has "
            f"{preview(parts['reference'].var_names, 3)}, the query "
            f"{preview(parts['query'].var_names, 3)}. Choose another `gene_id_key`."
        )
    labels = get_column(reference.obs, "reference.obs", labels_key)
    both.obs[labels_key] = [*labels, *[None] * query.n_obs]
    XTrimoGeneAnnotator.setup_anndata(both, labels_key, unlabeled_category, batch_key=BATCH)
    annotator = XTrimoGeneAnnotator(both, size, seed=seed)
    check_call(annotator.labels, min_confidence, hierarchy, unknown)  # before training
    annotator.train(**train_kwargs)
    annotator.annotate(both, key_added, min_confidence, unknown, hierarchy, batch_size)
    of_query = both.obs.iloc[-query.n_obs :]
    query.obs[key_added] = pd.Categorical(of_query[key_added].to_numpy())
    query.obs[f"{key_added}_confidence"] = of_query[f"{key_added}_confidence"].to_numpy()
    return annotator
