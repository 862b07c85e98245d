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
        that is; its probability is the sum over all labels below it.

    Returns
    -------
    Data frame with the columns ``label`` and ``confidence``, its probability (for unknown cells
    that of the most probable label).

    Examples
    --------
    >>> import pandas as pd
    >>> p = pd.DataFrame({"B": [0.9, 0.2], "CD4 T": [0.1, 0.45], "CD8 T": [0.0, 0.35]})
    >>> call_labels(p, 0.7, hierarchy={"CD4 T": "T", "CD8 T": "T"})["label"].tolist()
    ['B', 'T']
    """
    more_general = check_call(probabilities.columns, min_confidence, hierarchy, unknown)
    values, names = probabilities.to_numpy(), probabilities.columns.to_numpy()
    best = values.argmax(axis=1)
    label, confidence = names[best].astype(object), values[np.arange(len(values)), best]
    is_open = confidence < min_confidence
    # A label of the model may itself be more general than others.
    lines = [[name, *_ancestors(name, more_general)] for name in map(canonical, names)]
    parents = {parent for line in lines for parent in line[1:]}
    # The least general first: it has the most labels above it.
    for parent in sorted(parents, key=lambda name: -len(_ancestors(name, more_general))):
        below = np.array([parent in line for line in lines])
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
    unknown: str | None,
) -> dict[str, str]:
    """Return the hierarchy as text; raise if labels cannot be called with these arguments."""
    labels = [canonical(name) for name in names]
    more_general = {canonical(name): canonical(up) for name, up in (hierarchy or {}).items()}
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
    return more_general


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
    """Return the cells with a label, matched by name if there are names, and who is ``right``."""
    given = {"label": labels, "predicted": predicted, "confidence": confidence}
    columns = {name: pd.Series(values) for name, values in given.items() if values is not None}
    named = [n for n, c in columns.items() if not isinstance(c.index, pd.RangeIndex)]
    for name in named[1:]:
        index, first = columns[name].index, columns[named[0]].index
        if index.equals(first):
            continue
        if not (first.is_unique and index.is_unique and set(first) == set(index)):
            raise ValueError(
                f"{name} has other cell names than {named[0]}: {len(index):,} and {len(first):,} "
                f"cells, of which {len(first.intersection(index)):,} are the same. Select the "
                "same cells, for instance `predicted.loc[labels.index]`."
            )
        columns[name] = columns[name].loc[first]
    if len(set(map(len, columns.values()))) > 1:
        sizes = ", ".join(f"{name} {len(column):,}" for name, column in columns.items())
        raise ValueError(f"All must have the same number of cells, but they have: {sizes}.")
    frame = pd.DataFrame({name: as_text(columns[name]).to_numpy() for name in list(columns)[:2]})
    if not frame["label"].notna().any():
        raise ValueError("None of the cells has a label to compare with.")
    frame["right"] = frame["label"] == frame["predicted"]
    if confidence is not None:
        frame["confidence"] = columns["confidence"].to_numpy(dtype=float)
    return frame[frame["label"].notna()]


def called_cells(labels: ArrayLike, predicted: ArrayLike, unknown: str | None) -> pd.DataFrame:
    """Return the cells with a label; missing and unknown predictions become ``UNCALLED``."""
    frame = labelled_cells(labels, predicted)
    is_unknown = frame["predicted"] == unknown
    if is_unknown.any() and unknown in set(frame["label"]):
        raise ValueError(
            f"unknown={unknown!r} is the name of a label, too. Set `unknown` to another name for "
            "cells without a prediction, or to None if every cell has one."
        )
    is_uncalled = is_unknown | frame["predicted"].isna()
    frame["predicted"] = frame["predicted"].mask(is_uncalled, UNCALLED)
    return frame


def annotation_report(
    labels: ArrayLike, predicted: ArrayLike, unknown: str | None = UNKNOWN, rare: int = RARE
) -> pd.DataFrame:
    """Return precision, recall and F1 score of every label.

    Parameters
    ----------
    labels, predicted
        True and predicted labels, matched by cell name if both are Series. Cells without a true
        one (NaN) are left out.
    unknown
        Name for cells without a prediction, besides missing values. They count as missed.
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
    >>> report["recall"].tolist()
    [0.5, 0.5]
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
    labels, predicted
        See :func:`annotation_report`.
    confidence
        Probabilities of the predicted labels.

    Returns
    -------
    Data frame with the columns ``min_confidence``, ``coverage`` and ``accuracy``, by increasing
    threshold.

    Examples
    --------
    >>> curve = coverage_accuracy(["B", "T", "T"], ["B", "T", "B"], [0.9, 0.8, 0.4])
    >>> curve["coverage"].round(2).tolist(), curve["accuracy"].round(2).tolist()
    ([1.0, 0.67, 0.33], [0.67, 1.0, 1.0])
    """
    frame = labelled_cells(labels, predicted, confidence)
    by_threshold = frame.groupby("confidence")["right"].agg(["sum", "size"])
    kept = by_threshold[::-1].cumsum()[::-1]  # at this confidence or above
    accuracy = kept["sum"] / kept["size"]
    curve = pd.DataFrame({"coverage": kept["size"] / len(frame), "accuracy": accuracy})
    return curve.rename_axis("min_confidence").reset_index()
