"""Plots that compare methods."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..data.vocabulary import preview
from ._axes import documents_axes, finish, new_axes


@documents_axes
def benchmark(
    table: pd.DataFrame,
    metric: str,
    group: str = "method",
    ax: Axes | None = None,
    show: bool | None = None,
    highlight: str | None = "xTrimoGene",
    lower_is_better: bool = False,
) -> Axes:
    """Draw the scores of methods, the best on top.

    Bars are means over repeats with their standard deviation; dots are single repeats.

    Parameters
    ----------
    table
        One row per repeat, with metrics in numeric columns; or the ``rows`` that a script in
        ``benchmarks/`` writes with ``--json``, of one task and dataset.
    metric, group
        Columns of the metric (in records, its name) and of the method.
    highlight
        Method to highlight by colour.
    lower_is_better
        Whether low values are better.

    Examples
    --------
    >>> import pandas as pd
    >>> repeats = pd.DataFrame({"method": ["PCA", "xTrimoGene"] * 2, "ARI": [0.6, 0.7, 0.5, 0.8]})
    >>> ax = scxtrimo.pl.benchmark(repeats, "ARI", show=False)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['xTrimoGene', 'PCA']
    """
    if group not in table:
        raise ValueError(f"group={group!r} is not a column of table, which has {list(table)}.")
    of_records = metric not in table and set(table) >= {"task", "data", "metric", "value"}
    one = _of_records(table, metric) if of_records else _of_repeats(table, metric, group)
    grouped = one.groupby(group, sort=False, observed=True)["value"]
    summary = pd.DataFrame({"mean": grouped.mean(), "std": grouped.std()})
    is_summary = of_records and one[group].is_unique
    if is_summary and "spread" in one:
        summary["std"] = one.set_index(group)["spread"]
    summary = summary.sort_values("mean", ascending=lower_is_better, kind="stable")
    ax, show = new_axes(ax, show, (4.6, 0.9 + 0.32 * len(summary)))
    colors = ["C1" if name == highlight else "0.7" for name in summary.index]
    y = np.arange(len(summary))
    ax.barh(y, summary["mean"], color=colors, height=0.7)
    known = np.flatnonzero(summary["std"].notna())
    mean, std = summary.iloc[known].to_numpy().T
    ax.errorbar(mean, known, xerr=std, fmt="none", ecolor="0.2", capsize=2, elinewidth=1)
    if not is_summary:
        at = summary.index.get_indexer(one[group])
        n_before = one.groupby(group, observed=True).cumcount().to_numpy()
        n_repeats = grouped.size().loc[one[group]].to_numpy()
        shift = 0.4 * ((n_before + 0.5) / n_repeats - 0.5)  # separates equal values
        ax.scatter(one["value"], at + shift, s=12, color="0.2", linewidths=0, zorder=3, alpha=0.7)
    ax.set_yticks(y, summary.index.astype(str))
    ax.invert_yaxis()
    ax.set_xlabel(metric + (" (lower is better)" if lower_is_better else ""))
    if of_records:
        ax.set_title(str(one["data"].iloc[0]), fontsize=10)
    ax.grid(alpha=0.3, axis="x")
    ax.set_axisbelow(True)
    return finish(ax, show)


def _of_repeats(table: pd.DataFrame, metric: str, group: str) -> pd.DataFrame:
    """Return method and value of every repeat."""
    if metric not in table or not pd.api.types.is_numeric_dtype(table[metric]):
        numeric = [name for name in table.select_dtypes("number") if name != group]
        raise ValueError(f"metric={metric!r} is not a numeric column of table; it has {numeric}.")
    one = pd.DataFrame({group: table[group], "value": table[metric].astype(float)}).dropna()
    if one.empty:
        raise ValueError(f"table has no value of metric={metric!r}.")
    return one


def _of_records(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the records of one metric."""
    one = table[table["metric"] == metric]
    if one.empty:
        names = preview(table["metric"].unique(), 8)
        raise ValueError(f"metric={metric!r} is not in table, which has {names}.")
    for name in ("task", "data"):
        found = one[name].dropna().unique()
        if len(found) > 1:
            raise ValueError(
                f"table has several values of {name!r}: {preview(found, 8)}. Choose one: "
                f"`table[table[{name!r}] == {found[0]!r}]`."
            )
    return one
