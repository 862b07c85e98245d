"""Labels from probabilities, and how good they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import precision_recall_fscore_support

from .._validation import check
from ..data.columns import as_text, canonical
from ..nn.ranges import Probability

RARE = 40
UNKNOWN = "unknown"
UNCALLED = ""  # not the name of any label


def call_labels(
    probabilities: pd.DataFrame,
    min_confidence: float = 0.0,
    unknown: str | None = UNKNOWN,
    hierarchy: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Choose the most probable label of every cell, or none if its probability is too low.

    Parameters
    ----------
    probabilities
        Probabilities of the labels, shape ``(n_cells, n_labels)``, as
        ``XTrimoGeneAnnotator.predict(soft=True)`` returns them.
    min_confidence
        Probability below which a label is not given; see :func:`coverage_accuracy`.
    unknown
        Name for these cells, which must not be that of a label; ``None`` for a missing value.
    hierarchy
        Maps labels to more general ones, for instance ``{"CD4 T": "T", "CD8 T": "T"}``, in any
        number of levels. A cell whose label is not probable enough gets the least general one
        that is, the probability of which is the sum over all labels below it.

    Returns
    -------
    Data frame with the columns ``label`` and ``confidence``, the probability of the label; for
    unknown cells that of the most probable one.

    Raises
    ------
    ValueError
        If ``min_confidence`` is not a probability or is 0 despite a hierarchy, the hierarchy has a
        cycle or none of the labels, or a label is called ``unknown``.

    Examples
    --------
    >>> import pandas as pd
    >>> p = pd.DataFrame({"B": [0.9, 0.2], "CD4 T": [0.1, 0.45], "CD8 T": [0.0, 0.35]})
    >>> call_labels(p, 0.7, hierarchy={"CD4 T": "T", "CD8 T": "T"})["label"].tolist()
    ['B', 'T']
    """
    check_call(probabilities.columns, min_confidence, hierarchy, unknown)
    values = probabilities.to_numpy()
    names = probabilities.columns.to_numpy()
    texts, more_general = [canonical(name) for name in names], _as_text(hierarchy)
    best = values.argmax(axis=1)
    label = names[best].astype(object)
    confidence = values[np.arange(len(values)), best]
    is_open = confidence < min_confidence
    paths = [_ancestors(name, more_general) for name in texts]
    parents = {parent for path in paths for parent in path}
    # The least general first: it has the most labels above it.
    for parent in sorted(parents, key=lambda name: -len(_ancestors(name, more_general))):
        # A label of the model may itself be more general than others.
        below = np.array(
            [parent in [name, *path] for name, path in zip(texts, paths, strict=True)]
        )
        of_parent = values[:, below].sum(axis=1)
        taken = is_open & below[best] & (of_parent >= min_confidence)
        label[taken], confidence[taken] = parent, of_parent[taken]
        is_open &= ~taken
    label[is_open] = unknown
    return pd.DataFrame({"label": label, "confidence": confidence}, index=probabilities.index)


def check_call(
    names: Iterable[object],
    min_confidence: float,
    hierarchy: Mapping[str, str] | None,
    unknown: str | None = UNKNOWN,
) -> None:
    """Raise if labels cannot be called in this way; see :func:`call_labels`."""
    labels = [canonical(name) for name in names]
    more_general = _as_text(hierarchy)
    check("min_confidence", min_confidence, Probability)
    if hierarchy and not min_confidence:
        raise ValueError("A hierarchy needs a min_confidence above 0: give for instance 0.8.")
    if min_confidence > 0 and unknown in {*labels, *more_general.values()}:
        raise ValueError(
            f"unknown={unknown!r} is the name of a label: cells below min_confidence="
            f"{min_confidence} could not be distinguished from cells with this label. Choose "
            'another word, for instance `unknown="unassigned"`.'
        )
    if more_general and not more_general.keys() & set(labels):
        raise ValueError(
            f"The hierarchy has none of the labels: it begins with {list(more_general)[:3]}, the "
            f"labels are {labels[:3]}."
        )
    for name in labels:
        _ancestors(name, more_general)


def _as_text(hierarchy: Mapping[str, str] | None) -> dict[str, str]:
    return {canonical(name): canonical(parent) for name, parent in (hierarchy or {}).items()}


def _ancestors(name: str, hierarchy: Mapping[str, str]) -> list[str]:
    """Return all more general labels, starting with the least general."""
    path: list[str] = []
    while name in hierarchy:
        name = hierarchy[name]
        if name in path:
            raise ValueError(
                f"The hierarchy has a cycle: {name!r} is more general than itself. Remove one of "
                "its entries."
            )
        path.append(name)
    return path


def labelled_cells(
    labels: ArrayLike, predicted: ArrayLike, confidence: ArrayLike | None = None
) -> pd.DataFrame:
    """Return the cells with a label, with labels as text and a column ``right``."""
    given = {"label": labels, "predicted": predicted}
    if confidence is not None:
        given["confidence"] = confidence
    columns = _aligned(given)
    texts = {name: as_text(columns[name]).to_numpy() for name in ("label", "predicted")}
    frame = pd.DataFrame(texts)
    if not frame["label"].notna().any():
        raise ValueError("None of the cells has a label to compare with.")
    frame["right"] = frame["label"] == frame["predicted"]
    if confidence is not None:
        frame["confidence"] = np.asarray(columns["confidence"], dtype=float)
    return frame[frame["label"].notna()]


def _aligned(given: Mapping[str, ArrayLike]) -> dict[str, pd.Series]:
    """Return columns of the same cells, matched by name if there are names, else by position."""
    columns = {name: pd.Series(values) for name, values in given.items()}
    named = {n: c for n, c in columns.items() if not isinstance(c.index, pd.RangeIndex)}
    first = next(iter(named.values()), columns["label"]).index
    for name, column in named.items():
        if column.index.equals(first):
            continue
        if not (first.is_unique and column.index.is_unique and set(first) == set(column.index)):
            raise ValueError(
                f"{name} has other cell names than {next(iter(named))}: {len(column):,} and "
                f"{len(first):,} cells, of which {len(first.intersection(column.index)):,} are "
                "the same. Select the same cells, for instance `predicted.loc[labels.index]`."
            )
        columns[name] = column.loc[first]
    if len({len(column) for column in columns.values()}) > 1:
        sizes = ", ".join(f"{name} {len(column):,}" for name, column in columns.items())
        raise ValueError(f"All must have the same number of cells, but they have: {sizes}.")
    return columns


def called_cells(labels: ArrayLike, predicted: ArrayLike, unknown: str | None) -> pd.DataFrame:
    """Return the cells with a label; missing and unknown predictions become ``UNCALLED``."""
    frame = labelled_cells(labels, predicted)
    if unknown in set(frame["label"]) and (frame["predicted"] == unknown).any():
        raise ValueError(
            f"unknown={unknown!r} is the name of a label, too. Set `unknown` to another name for "
            "cells without a prediction, or to None if every cell has one."
        )
    is_uncalled = frame["predicted"].isna() | (frame["predicted"] == unknown)
    frame["predicted"] = frame["predicted"].mask(is_uncalled, UNCALLED)
    return frame


def annotation_report(
    labels: ArrayLike, predicted: ArrayLike, unknown: str | None = UNKNOWN, rare: int = RARE
) -> pd.DataFrame:
    """Return precision, recall and F1 score of every label.

    Parameters
    ----------
    labels
        True labels, shape ``(n_cells,)``. Cells without one (NaN) are left out.
    predicted
        Predicted labels, shape ``(n_cells,)``. If both are Series, they are matched by cell name.
    unknown
        Name for cells without a prediction, besides missing values; ``None`` if there is none.
        These cells count as missed, not as a label.
    rare
        Labels with fewer cells are marked as rare.

    Returns
    -------
    Data frame with a row per true or predicted label, the most frequent first, and the
    columns ``precision``, ``recall``, ``f1``, ``n_cells``, ``n_predicted``, ``n_unknown``,
    ``is_rare`` and ``most_confused_with``. Precision is NaN for labels that are never predicted,
    recall and F1 for those that no cell has.

    Examples
    --------
    >>> report = annotation_report(["B", "B", "T", "T"], ["B", "T", "T", "unknown"])
    >>> report[["recall", "n_unknown", "most_confused_with"]]
           recall  n_unknown most_confused_with
    label
    B         0.5          0                  T
    T         0.5          1                NaN
    """
    frame = called_cells(labels, predicted, unknown)
    is_unknown = frame["predicted"] == UNCALLED
    counts = frame["label"].value_counts()
    only_predicted = sorted(set(frame["predicted"]) - set(counts.index) - {UNCALLED})
    names = [*counts.index, *only_predicted]
    precision, recall, f1, n_cells = precision_recall_fscore_support(
        frame["label"], frame["predicted"], labels=names, average=None, zero_division=np.nan
    )
    wrong = frame[~frame["right"] & ~is_unknown]
    confused = wrong.groupby("label")["predicted"].agg(lambda p: p.value_counts().index[0])
    return pd.DataFrame(
        {
            "precision": precision,
            "recall": recall,
            "f1": np.where(n_cells > 0, np.nan_to_num(f1), np.nan),
            "n_cells": n_cells,
            "n_predicted": frame["predicted"].value_counts().reindex(names, fill_value=0),
            "n_unknown": frame["label"][is_unknown].value_counts().reindex(names, fill_value=0),
            "is_rare": n_cells < rare,
            "most_confused_with": confused.reindex(names),
        },
        index=pd.Index(names, name="label"),
    )


def coverage_accuracy(
    labels: ArrayLike, predicted: ArrayLike, confidence: ArrayLike
) -> pd.DataFrame:
    """Return the fraction of cells that get a label, and their accuracy, by threshold.

    Parameters
    ----------
    labels
        True labels, shape ``(n_cells,)``. Cells without one (NaN) are left out.
    predicted
        Predicted labels, shape ``(n_cells,)``.
    confidence
        Their probabilities, shape ``(n_cells,)``.

    Returns
    -------
    Data frame with the columns ``min_confidence``, ``coverage`` and ``accuracy``, by increasing
    threshold.

    Examples
    --------
    >>> coverage_accuracy(["B", "T", "T"], ["B", "T", "B"], [0.9, 0.8, 0.4])
       min_confidence  coverage  accuracy
    0             0.4  1.000000  0.666667
    1             0.8  0.666667  1.000000
    2             0.9  0.333333  1.000000
    """
    frame = labelled_cells(labels, predicted, confidence)
    by_threshold = frame.groupby("confidence")["right"].agg(["sum", "size"])
    kept = by_threshold[::-1].cumsum()[::-1]  # at this confidence or above
    return pd.DataFrame(
        {
            "min_confidence": kept.index,
            "coverage": (kept["size"] / len(frame)).to_numpy(),
            "accuracy": (kept["sum"] / kept["size"]).to_numpy(),
        }
    )
