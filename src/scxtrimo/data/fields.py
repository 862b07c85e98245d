"""Fields of an AnnData that models register with scvi-tools."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import BaseAnnDataField

from .._logging import logger
from .columns import as_text, canonical, categories_of, codes_of, get_column, kind_of, preview
from .counts import check_counts, get_layer
from .vocabulary import (
    COVERAGE_KEY,
    DEFAULT_MIN_GENE_OVERLAP,
    VAR_NAMES,
    GeneVocabulary,
    find_genes,
    identifiers,
    own_identifiers,
    warn_of_numbers,
)


class Field(BaseAnnDataField):
    """What all fields of ours have in common."""

    registry_key = ""
    attr_name = "obs"
    attr_key: str | None = None
    is_empty = False

    def view_state_registry(self, state_registry: dict[str, Any]) -> None:
        """Show nothing beyond the summary statistics."""


class CountsField(Field):
    """Raw counts and their genes: registering makes the vocabulary, transferring aligns to it."""

    VOCABULARY_KEY = "vocabulary"
    COLUMN_TO_GENE_KEY = "column_to_gene"
    N_OBS_KEY = "n_obs"
    COVERAGE_KEY = "coverage"

    registry_key = REGISTRY_KEYS.X_KEY

    def __init__(
        self,
        layer: str | None,
        gene_id_key: str | None = None,
        gene_aliases: Mapping[str, str] | None = None,
        min_gene_overlap: float = DEFAULT_MIN_GENE_OVERLAP,
    ) -> None:
        super().__init__()
        self.attr_name = "X" if layer is None else "layers"
        self.attr_key = layer
        self.gene_id_key = gene_id_key
        self.gene_aliases = gene_aliases
        self.min_gene_overlap = min_gene_overlap

    def validate_field(self, adata: AnnData) -> None:
        """Make sure that the layer exists."""
        get_layer(adata, self.attr_key)

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Derive the vocabulary: all genes with at least one count."""
        self.validate_field(adata)
        ids = own_identifiers(adata.var, self.gene_id_key)
        names = identifiers(adata.var_names)
        names = np.where(names == "", ids, names)
        totals = check_counts(adata, self.attr_key)
        expressed = np.flatnonzero((totals > 0) & (ids != ""))
        if n_silent := int((totals == 0).sum()):
            logger.info(
                f"{n_silent:,} of {adata.n_vars:,} genes have no counts and are left out of the "
                "vocabulary."
            )
        column_to_gene = np.full(adata.n_vars, -1, dtype=np.int64)
        column_to_gene[expressed] = np.arange(len(expressed))
        vocabulary = GeneVocabulary(tuple(ids[expressed]), tuple(names[expressed]))
        return {
            self.N_OBS_KEY: adata.n_obs,
            self.VOCABULARY_KEY: vocabulary.to_dict(),
            self.COLUMN_TO_GENE_KEY: column_to_gene,
        }

    def transfer_field(
        self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Align other data to the vocabulary and write the coverage report."""
        self.validate_field(adata_target)
        vocabulary = GeneVocabulary.from_dict(state_registry[self.VOCABULARY_KEY])
        has_key = self.gene_id_key in adata_target.var or self.gene_id_key == VAR_NAMES
        alignment = find_genes(
            vocabulary,
            adata_target.var,
            self.gene_id_key if has_key else None,
            self.gene_aliases,
            self.min_gene_overlap,
        )
        check_counts(adata_target, self.attr_key, used=alignment.column_to_gene >= 0)
        if alignment.source == VAR_NAMES:
            warn_of_numbers(identifiers(adata_target.var_names), "adata.var_names")
        if alignment.shadowed:
            logger.warning(
                f"{len(alignment.shadowed):,} columns are not read because another column is the "
                f"same gene under another alias: {preview(alignment.shadowed)}."
            )
        adata_target.uns[COVERAGE_KEY] = coverage = alignment.to_uns()
        if alignment.n_case > max(9, alignment.matched):  # too many for a coincidence
            logger.warning(
                f"{alignment.n_case:,} genes were found only because upper and lower case were "
                "ignored. If they are symbols of another species, such as mouse, map them to "
                "their orthologues and pass `gene_aliases=`."
            )
        if alignment.missing or alignment.renamed:
            logger.info(f"{alignment}. Report in adata.uns[{COVERAGE_KEY!r}].")
        return {
            self.N_OBS_KEY: adata_target.n_obs,
            self.VOCABULARY_KEY: vocabulary.to_dict(),
            self.COLUMN_TO_GENE_KEY: alignment.column_to_gene,
            self.COVERAGE_KEY: coverage,
        }

    def sources(self, state: Mapping[str, Any]) -> list[tuple[str, str | None]]:
        """Return the columns of var that the genes were found by; ``None`` stands for all."""
        source = state.get(self.COVERAGE_KEY, {}).get("source")
        if source not in (None, VAR_NAMES, self.gene_id_key):
            return [("var", None)]  # the best of all columns was used
        return [] if self.gene_id_key in (None, VAR_NAMES) else [("var", self.gene_id_key)]

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Return the number of cells and of genes in the vocabulary."""
        return {
            "n_cells": state_registry[self.N_OBS_KEY],
            "n_vars": len(state_registry[self.VOCABULARY_KEY]["gene_ids"]),
        }


class CategoryField(Field):
    """A categorical column of ``adata.obs``, such as batch or label; ``None`` if it is unknown."""

    CODES_KEY = "codes"  # in the registry; in adata.obs, other models would overwrite them
    MAPPING_KEY = "categorical_mapping"
    ORIGINAL_KEY = "original_key"

    of_unknown = "expression is predicted for the average category"  # what follows, in messages

    def __init__(self, registry_key: str, obs_key: str | None) -> None:
        super().__init__()
        self.registry_key = registry_key
        self.attr_key = self.obs_key = obs_key

    def sources(self, state: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the column that the codes come from."""
        return [] if self.obs_key is None else [("obs", self.obs_key)]

    def _column(self, adata: AnnData) -> pd.Series:
        return get_column(adata.obs, "adata.obs", self.obs_key)

    def validate_field(self, adata: AnnData) -> None:
        """Make sure that the column exists and has no missing values."""
        if len(missing := np.flatnonzero(self._column(adata).isna())):
            raise ValueError(
                f"adata.obs[{self.obs_key!r}] has {len(missing):,} missing values (NaN), for "
                f"instance in {preview(adata.obs_names[missing[:6]])}. Give them a category, such "
                f"as `adata.obs[{self.obs_key!r}].astype(str).replace('nan', 'unknown')`, or "
                "remove these cells."
            )

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Learn the categories from the data."""
        self.validate_field(adata)
        return self._encode(adata, categories_of(self._column(adata), self.obs_key))

    def transfer_field(
        self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Encode other data; unseen categories or a missing column are unknown (-1)."""
        if self.obs_key in adata_target.obs:
            self.validate_field(adata_target)
        mapping = np.asarray(state_registry[self.MAPPING_KEY], dtype=object)
        state = self._encode(adata_target, mapping)
        unseen = state[self.CODES_KEY] < 0
        if self.obs_key is None or not unseen.any():
            return state
        consequence = self.of_unknown
        if self.registry_key == REGISTRY_KEYS.BATCH_KEY:
            consequence += "; only `map_query` integrates them"
        if self.obs_key not in adata_target.obs:
            logger.info(f"The data have no adata.obs[{self.obs_key!r}]; {consequence}.")
            return state
        names = as_text(self._column(adata_target)[unseen]).unique()
        logger.log(
            logging.WARNING if unseen.all() else logging.INFO,
            f"{'All' if unseen.all() else f'{len(names):,} of the'} categories of "
            f"adata.obs[{self.obs_key!r}] are unknown to the model: it has "
            f"{preview(mapping, 3)}, the data {preview(sorted(names), 3)}; {consequence}.",
        )
        return state

    def _encode(self, adata: AnnData, mapping: np.ndarray) -> dict[str, Any]:
        codes = np.full(adata.n_obs, -1, dtype=np.int64)
        if self.obs_key in adata.obs:
            codes = codes_of(self._column(adata), mapping)
        return {
            self.MAPPING_KEY: mapping,
            self.ORIGINAL_KEY: self.obs_key,
            self.CODES_KEY: codes,
        }

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Return the number of categories."""
        return {f"n_{self.registry_key}": len(state_registry[self.MAPPING_KEY])}


class CompleteLabelsField(CategoryField):
    """A column of ``adata.obs`` with a label for every cell; other data may lack labels."""

    def __init__(self, obs_key: str | None) -> None:
        super().__init__(REGISTRY_KEYS.LABELS_KEY, obs_key)

    def transfer_field(
        self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Encode other data; unknown and missing labels are -1."""
        return self._encode(adata_target, np.asarray(state_registry[self.MAPPING_KEY], object))


class LabelsField(CompleteLabelsField):
    """A column of ``adata.obs`` with labels, missing or ``unlabeled_category`` in other cells."""

    KIND_KEY = "kind"

    def __init__(self, obs_key: str | None, unlabeled_category: object = None) -> None:
        super().__init__(obs_key)
        missing = unlabeled_category is None
        if isinstance(unlabeled_category, AnnData):
            raise TypeError("unlabeled_category must be a label, not data (`adata=...`).")
        self.unlabeled_category = None if missing else canonical(unlabeled_category)

    def _labels(self, adata: AnnData) -> pd.Series:
        """Return the column with missing values where there is no label."""
        column = self._column(adata)
        return column.where((as_text(column) != self.unlabeled_category).to_numpy())

    def validate_field(self, adata: AnnData) -> None:
        """Make sure that the column exists and has at least two labels."""
        labels = as_text(self._labels(adata)).dropna().unique()
        if len(labels) < 2:
            found = f"the single label {labels[0]!r}" if len(labels) else "no labels"
            category = self.unlabeled_category
            beside = "" if category is None else f" beside unlabeled_category={category!r}"
            raise ValueError(
                f"adata.obs[{self.obs_key!r}] has {found}{beside}; at least two are needed."
            )

    def transfer_field(
        self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any
    ) -> dict[str, Any]:
        """Encode other data; labels that the model does not know count as unlabelled."""
        state = super().transfer_field(state_registry, adata_target, **kwargs)
        state[self.KIND_KEY] = state_registry.get(self.KIND_KEY, "str")
        if self.obs_key in adata_target.obs:
            labels = self._labels(adata_target)
            is_other = labels.notna().to_numpy() & (state[self.CODES_KEY] < 0)
            if n_other := int(is_other.sum()):
                logger.info(
                    f"{n_other:,} cells have labels in adata.obs[{self.obs_key!r}] that the model "
                    f"does not know, such as {labels[is_other].iloc[0]!r}; they count as "
                    "unlabelled."
                )
        return state

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Learn the labels from the data."""
        self.validate_field(adata)
        labels = self._labels(adata)
        if self.unlabeled_category is not None and not labels.isna().any():
            logger.info(
                f"unlabeled_category={self.unlabeled_category!r} is not in "
                f"adata.obs[{self.obs_key!r}]: all cells are labelled."
            )
        kind = {self.KIND_KEY: kind_of(labels.dropna().unique())}
        return self._encode(adata, categories_of(labels, self.obs_key)) | kind
