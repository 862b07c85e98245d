"""Labels of cells, and the genes behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from torch import Tensor

from ..data.columns import canonical, from_text
from ..data.fields import CategoryField, LabelsField
from ..model._latent import LatentMixin
from .module import LabelPanel, XTrimoGeneAnnotatorModule
from .tools import UNKNOWN, call_labels, check_call


class AnnotationMixin(LatentMixin):
    """``predict`` and ``annotate``."""

    module: XTrimoGeneAnnotatorModule

    @property
    def labels(self) -> np.ndarray:
        """The labels that the model knows, as the training data have them.

        Examples
        --------
        >>> len(annotator.labels), annotator.labels[0]
        (10, 'CD4+/CD25 T Reg')
        """
        registries = self.registry_["field_registries"]
        state = registries[REGISTRY_KEYS.LABELS_KEY]["state_registry"]
        return from_text(state[CategoryField.MAPPING_KEY], state[LabelsField.KIND_KEY])

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
        adata
            Data, with any genes in any order: they are aligned by identifier. By default those of
            the model, labelled cells included.
        indices
            Rows (or a boolean mask) of the cells; by default all.
        soft
            Return the probabilities of all labels instead.
        batch_size
            Cells per forward pass.
        min_confidence, unknown, hierarchy
            When not to give a label, or a more general one; see
            :func:`scxtrimo.tl.call_labels`.

        Returns
        -------
        Array of labels, shape ``(n_cells,)``; or with ``soft`` a data frame of probabilities,
        shape ``(n_cells, n_labels)``, calibrated on the validation cells.

        Raises
        ------
        ValueError
            If the annotator was not trained, or the data do not fit.

        Examples
        --------
        >>> annotator.predict(adata)[:2]
        array(['CD14+ Monocyte', 'Dendritic'], dtype=object)
        >>> annotator.predict(adata, soft=True).shape
        (700, 10)
        """
        self._check_fitted()
        check_call(self.labels, min_confidence, hierarchy, unknown)
        registered, rows = self._rows(adata, indices)
        panel = self._label_panel(registered)
        probabilities = np.empty((len(rows), len(self.labels)), dtype=np.float32)
        for place, batch in self._batches(registered, rows, batch_size, "Annotating"):
            cells = self._encode(batch)
            log_p_cl = self.module.label_log_probabilities(batch, cells, panel)
            probabilities[place] = log_p_cl.exp().cpu().numpy()
        frame = pd.DataFrame(
            probabilities, index=registered.obs_names[rows], columns=pd.Index(self.labels)
        )
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
        adata
            Data; by default those of the model.
        key_added
            Column of ``adata.obs`` for the labels, as categories. ``key_added + "_confidence"``
            gets their probabilities.
        min_confidence, unknown, hierarchy, batch_size
            See :meth:`predict`.

        Examples
        --------
        >>> annotator.annotate(adata, min_confidence=0.8)
        >>> adata.obs[["xtrimo_label", "xtrimo_label_confidence"]].shape
        (700, 2)
        """
        check_call(self.labels, min_confidence, hierarchy, unknown)
        learned_from = self.registry_["setup_args"]["labels_key"]
        if key_added == learned_from:
            raise ValueError(
                f"key_added={key_added!r} is the column with the labels that were learned from. "
                "Choose another name."
            )
        data = self._validate_anndata(adata)
        probabilities = self.predict(data, soft=True, batch_size=batch_size)
        assert isinstance(probabilities, pd.DataFrame)
        called = call_labels(probabilities, min_confidence, unknown, hierarchy)
        labels = called["label"]
        if len(labels.dropna().map(type).unique()) > 1:  # no file can hold numbers beside text
            labels = labels.map(canonical, na_action="ignore")
        data.obs[key_added] = pd.Categorical(labels.infer_objects())
        data.obs[f"{key_added}_confidence"] = called["confidence"].to_numpy()

    def _label_panel(self, adata: AnnData) -> LabelPanel:
        """Return what the genes of the data mean for their annotation."""
        self._check_latent_space()
        return self.module.label_panel(self._measured_genes(adata))

    def _check_fitted(self) -> None:
        if not self.module.classifier.is_fitted:
            raise ValueError(
                "The annotator was not trained on the labels yet. Call `annotator.train()` first."
            )

    @torch.no_grad()
    def _features(self, rows: np.ndarray) -> np.ndarray:
        """Return what the classifier sees of the model's own cells."""
        panel = self._label_panel(self.adata)
        parts: list[Tensor] = []
        for _, batch in self._batches(None, rows, None, "Reading features"):
            cells = self._encode(batch)
            parts.append(self.module.features(batch, cells, panel).cpu())
        return torch.cat(parts).numpy()

    def _codes(self) -> np.ndarray:
        """Return the labels of the model's own cells as numbers, -1 for none."""
        assert self.adata_manager is not None
        state: dict[str, Any] = self.adata_manager.get_state_registry(REGISTRY_KEYS.LABELS_KEY)
        return np.asarray(state[CategoryField.CODES_KEY])
