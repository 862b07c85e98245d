"""What is known about the genes that can be perturbed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .._logging import logger
from ..data.vocabulary import preview
from .relation_features import relation_features

MAX_FEATURES = 64
RELATIONS = "relations"


def feature_table(
    target_features: pd.DataFrame | Mapping[str, pd.DataFrame] | None,
    relations: pd.DataFrame | None,
    targets: Sequence[str],
) -> pd.DataFrame:
    """Return all features side by side, with their kind as upper level of the columns.

    Parameters
    ----------
    target_features, relations
        See :meth:`scxtrimo.model.XTrimoGenePerturbation.train`.
    targets
        Genes that were perturbed.

    Raises
    ------
    ValueError
        If features are not finite, have genes twice or are of none of the targets.
    """
    if target_features is None:
        tables = {}
    elif isinstance(target_features, pd.DataFrame):
        tables = {"target_features": target_features}
    else:
        tables = dict(target_features)
    checked = {name: _standardized(table, name, targets) for name, table in tables.items()}
    if relations is not None:
        if RELATIONS in checked:
            raise ValueError(f"Call the features in target_features something but {RELATIONS!r}.")
        checked[RELATIONS] = relation_features(relations, targets)
    if not checked:
        return pd.DataFrame()
    for name, table in checked.items():
        n_known = sum(target in table.index for target in targets)
        logger.info(f"{name}: known for {n_known} of {len(targets)} perturbed genes.")
    return pd.concat(checked, axis=1).fillna(0.0).astype(np.float32)


def _standardized(table: pd.DataFrame, name: str, targets: Sequence[str]) -> pd.DataFrame:
    """Return scaled features with a mean square of 1 per gene, 64 principal components at most."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"{name} must be a DataFrame with genes as index, not {type(table)}.")
    table = table.set_axis(table.index.astype(str), axis=0)
    if not table.index.is_unique:
        twice = preview(table.index[table.index.duplicated()].unique())
        raise ValueError(f"{name} has genes twice: {twice}. Keep one row of each.")
    values = table.to_numpy(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has NaN or infinite values; leave these genes out.")
    if not set(targets) & set(table.index):
        raise ValueError(
            f"None of the {len(targets)} perturbed genes, such as {targets[0]!r}, is in {name}, "
            f"which has genes such as {preview(table.index, 3)}. Use the same names."
        )
    values = values - values.mean(axis=0)
    spread = values.std(axis=0)
    values = values[:, spread > 0] / spread[spread > 0]
    if values.shape[1] > MAX_FEATURES:
        left, sizes, _ = np.linalg.svd(values, full_matrices=False)
        values = (left * sizes)[:, :MAX_FEATURES]
    values /= np.sqrt(max(np.square(values).sum(axis=1).mean(), 1e-12))
    return pd.DataFrame(values, index=table.index)
