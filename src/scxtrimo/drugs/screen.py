"""Tables of drug screens: who met whom, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from .._logging import logger
from ..data.columns import canonical
from ..data.vocabulary import preview
from .molecules import canonical_smiles

Task = Literal["classification", "regression"]


def check_table(table: pd.DataFrame, keys: Sequence[str], what: str = "screen") -> None:
    """Check that a table has rows and the columns that are needed, without holes.

    Parameters
    ----------
    table
        One measurement or question per row.
    keys
        Columns that are needed.
    what
        What the table is called in messages.

    Raises
    ------
    TypeError
        If it is not a table.
    ValueError
        If it is empty, or columns or entries are missing.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"`{what}` must be a pandas.DataFrame, not {type(table).__name__}.")
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()].unique()
        raise ValueError(f"`{what}` has columns twice: {preview(twice)}. Rename them.")
    if missing := [key for key in keys if key not in table]:
        raise ValueError(
            f"`{what}` lacks the columns {missing}; it has {list(table)}. Name them with the "
            "arguments that end in `_key`."
        )
    if not len(table):
        raise ValueError(f"`{what}` has no rows.")
    for key in keys:
        if n := int(table[key].isna().sum()):
            raise ValueError(
                f"{n} rows of `{what}` have no {key!r}, the first is row "
                f"{table.index[table[key].isna()][0]!r}. Drop them: `dropna(subset=[{key!r}])`."
            )


def drugs_of(
    table: pd.DataFrame, keys: Sequence[str], drugs: Mapping[str, str] | None
) -> np.ndarray:
    """Return the canonical SMILES of the drugs of every row, object, ``(n_rows, n_keys)``.

    Parameters
    ----------
    table
        A checked table.
    keys
        Columns with SMILES, or names of drugs.
    drugs
        SMILES of drugs by name, if there are names in the columns.

    Raises
    ------
    ValueError
        If a name is not among ``drugs``, or RDKit cannot read a SMILES; all are named.
    """
    entries_nd = table[list(keys)].to_numpy(dtype=object)
    distinct = list(dict.fromkeys(entries_nd.ravel()))
    if drugs is None:
        smiles = {entry: entry for entry in distinct}
    else:
        if unknown := [entry for entry in distinct if canonical(entry) not in drugs]:
            raise ValueError(
                f"{len(unknown)} drugs of the columns {list(keys)} are not in `drugs`: "
                f"{preview(unknown, 20)}. Add their SMILES, or leave out their rows."
            )
        smiles = {entry: drugs[canonical(entry)] for entry in distinct}
    names = None if drugs is None else {text: canonical(entry) for entry, text in smiles.items()}
    readable = canonical_smiles(smiles.values(), f"SMILES of the columns {list(keys)}", names)
    lookup = {entry: readable[text] for entry, text in smiles.items()}
    return np.array([[lookup[e] for e in row] for row in entries_nd], dtype=object)


def target_of(table: pd.DataFrame, key: str) -> np.ndarray:
    """Return the numbers of a column, float64, ``(n_rows,)``.

    Raises
    ------
    ValueError
        If they are no finite numbers or all the same.
    """
    try:
        target_n = table[key].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The column {key!r} must hold numbers (0 and 1 for classes): {error}."
        ) from error
    if not np.isfinite(target_n).all():
        raise ValueError(f"The column {key!r} holds infinite values.")
    if len(np.unique(target_n)) < 2:
        raise ValueError(
            f"The column {key!r} holds nothing but {target_n[0]:g}: there is nothing to learn."
        )
    return target_n


def task_of(target_n: np.ndarray, task: str, key: str) -> Task:
    """Return what a column asks for.

    Parameters
    ----------
    target_n
        Its numbers.
    task
        ``"classification"``, ``"regression"`` or ``"auto"``, which is classification where all
        numbers are 0 or 1.
    key
        The column, for messages.
    """
    if task not in ("auto", "classification", "regression"):
        raise ValueError(f"task={task!r} must be 'auto', 'classification' or 'regression'.")
    is_binary = bool(np.isin(target_n, (0, 1)).all())
    if task == "classification" and not is_binary:
        raise ValueError(
            f'task="classification" needs 0 and 1 in the column {key!r}, which ranges from '
            f"{target_n.min():g} to {target_n.max():g}."
        )
    if task == "auto" and not is_binary and len(values := np.unique(target_n)) == 2:
        raise ValueError(
            f"The column {key!r} holds the two numbers {values[0]:g} and {values[1]:g}. Make them "
            '0 and 1 for classes, or say task="regression".'
        )
    if task == "auto":
        return "classification" if is_binary else "regression"
    return task  # type: ignore[return-value]


def split_rows(
    drugs_nd: np.ndarray,
    lines_n: np.ndarray,
    by: str,
    fraction: float,
    seed: int,
    parents_d: np.ndarray,
) -> np.ndarray:
    """Return which rows to validate on, bool, ``(n_rows,)``.

    Parameters
    ----------
    drugs_nd, lines_n
        Drugs and line of every row, as numbers.
    by
        What validation rows have that no training row has: ``"rows"``, the whole measurement
        (repeats of it stay together); ``"drugs"``, at least one drug; ``"pairs"``, all drugs
        together; ``"lines"``, the line.
    fraction
        Part of the distinct measurements, drugs, pairs or lines, above 0 and below 1.
    seed
        Which ones.
    parents_d
        Number of the parent structure of every drug; those with one parent stay together.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation_size={fraction} must be above 0 and below 1.")
    drugs_nd = np.sort(drugs_nd, axis=1)
    parents_nd = np.sort(parents_d[drugs_nd], axis=1)
    keys = {
        "rows": np.column_stack([drugs_nd, lines_n]),
        "pairs": parents_nd,
        "lines": lines_n[:, None],
        "drugs": parents_nd,
    }
    if by not in keys:
        raise ValueError(f"validate_on={by!r} must be one of {sorted(keys)}.")
    groups_n = np.unique(keys[by], axis=0, return_inverse=True)[1].ravel()
    distinct = np.unique(parents_nd if by == "drugs" else groups_n)
    if len(distinct) < 3:
        raise ValueError(
            f"{len(distinct)} distinct {by} in the screen are too few to validate on some of them."
        )
    n_drawn = min(max(1, round(fraction * len(distinct))), len(distinct) - 1)
    drawn = np.random.default_rng(seed).permutation(distinct)[:n_drawn]
    if by == "drugs":
        return np.asarray(np.isin(parents_nd, drawn).any(1))
    return np.isin(groups_n, drawn)


def warn_of_conflicts(
    drugs_nd: np.ndarray, lines_n: np.ndarray, target_n: np.ndarray, task: str
) -> None:
    """Say how many measurements are repeated with another label.

    Parameters
    ----------
    drugs_nd, lines_n, target_n
        Drugs, line and label of every row.
    task
        Scores may differ between repeats, labels should not.
    """
    if task != "classification":
        return
    keys = np.column_stack([np.sort(drugs_nd, axis=1), lines_n])
    group_n = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
    times, sums = np.bincount(group_n), np.bincount(group_n, target_n)
    if n_conflicts := int(((sums > 0) & (sums < times)).sum()):
        logger.warning(
            f"{n_conflicts} measurements are in the screen several times with different labels. "
            "Decide on one, or leave them out."
        )
