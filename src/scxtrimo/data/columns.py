"""Columns of obs and var: look-up, and categories as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

from .._logging import logger

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")  # not 2E1, which may be a well of a plate
MISSING = frozenset({"", "nan", "NaN", "NA", "<NA>", "None"})
"""Text that missing values become when a table is written to a file and read again."""


def get_column(frame: pd.DataFrame, what: str, key: str | None) -> pd.Series:
    """Return the only column of this name; ``what`` names the table, for messages."""
    if key not in frame:
        raise ValueError(f"{key!r} is not a column of {what}, which has {list(frame.columns)}.")
    column = frame[key]
    if isinstance(column, pd.DataFrame):
        raise ValueError(
            f"{what} has {column.shape[1]} columns called {key!r}. Rename all but one."
        )
    return column


def canonical(value: object) -> str:
    """Return a category as text; whole numbers have no decimal point, whatever their type."""
    if isinstance(value, Real) and not isinstance(value, Integral | bool | np.bool_):
        number = float(value)
        return str(int(number)) if number.is_integer() else str(value)
    return str(value)


def as_text(values: Any) -> pd.Series:
    """Return the canonical text of every value, ``None`` where one is missing."""
    series = values if isinstance(values, pd.Series) else pd.Series(values)
    codes, distinct = pd.factorize(series)
    texts = np.array([*map(canonical, distinct), None], dtype=object)  # None for code -1
    return pd.Series(texts[codes], index=series.index, name=series.name, dtype=object)


def categories_of(column: pd.Series, key: str | None) -> np.ndarray:
    """Return the categories in use as text, in the order of the column's own categories."""
    present = column.dropna().unique()
    values = present.tolist() if isinstance(present, pd.Categorical) else list(present)
    allowed = (str, bool, np.bool_, Real)
    if bad := [value for value in values if not isinstance(value, allowed)]:
        raise ValueError(
            f"adata.obs[{key!r}] has categories of type {type(bad[0]).__name__}, such as "
            f"{bad[0]}, which cannot be saved with a model. Make them text: "
            f"`adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)`."
        )
    if missing := sorted(set(map(canonical, values)) & MISSING):
        logger.warning(
            f"adata.obs[{key!r}] has a category {missing[0]!r}. If that stands for a missing "
            "value, replace it by NaN or remove these cells."
        )
    if isinstance(column.dtype, pd.CategoricalDtype):
        ordered = list(column.cat.remove_unused_categories().cat.categories)
    else:
        is_text = any(isinstance(value, str) for value in values)
        ordered = sorted(values, key=canonical if is_text else None)
    return np.array(list(dict.fromkeys(map(canonical, ordered))), dtype=object)


def kind_of(values: Iterable[Any]) -> str:
    """Return the type of the values that became text: bool, int, float or str."""
    present = [value for value in values if not pd.isna(value)]
    if all(isinstance(value, bool | np.bool_) for value in present):
        return "bool"
    if any(isinstance(value, str | bool | np.bool_) for value in present):
        return "str"
    return "int" if all(float(value).is_integer() for value in present) else "float"


def from_text(categories: Sequence[str] | np.ndarray, kind: str) -> np.ndarray:
    """Return categories as values of their original type."""
    if kind == "bool":
        return np.array([text == "True" for text in categories])
    if kind in ("int", "float"):
        return np.array([float(text) for text in categories]).astype(kind)
    return np.array(categories, dtype=object)


def codes_of(column: pd.Series, categories: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the place of every value among categories, by text or else by meaning; -1 if none."""
    exact: dict[str, int] = {}
    meant: dict[str | float, int] = {}
    for i, name in enumerate(categories):
        exact[name], meaning = i, _meaning(name)
        meant[meaning] = -1 if meaning in meant else i  # -1 where two mean the same
    codes, distinct = pd.factorize(column)
    texts = map(canonical, distinct)
    found = [exact.get(text, meant.get(_meaning(text), -1)) for text in texts]
    return np.array([*found, -1], dtype=np.int64)[codes]


def _meaning(text: str) -> str | float:
    """Return the number that a text (``"01"``, ``"TRUE"``) stands for, or the text stripped."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    return float(text) if NUMBER.fullmatch(text) else text


def preview(items: Iterable[object], n: int = 5) -> str:
    """Name the first few of many items, for a message."""
    items = list(items)
    shown = ", ".join(map(repr, map(str, items[:n])))
    return shown if len(items) <= n else f"{shown}, ..."
