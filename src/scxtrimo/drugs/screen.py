"""Input of the drug models: tables of measurements, and the bulk expression of cell lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from .._logging import logger
from .._validation import check
from ..data.columns import as_text, canonical, preview
from ..data.vocabulary import (
    GeneVocabulary,
    align_genes,
    ambiguous_error,
    own_identifiers,
    warn_of_source,
)
from ..model.registration import own_view
from ..nn.ranges import OpenInterval
from .molecules import canonical_smiles

Expression = Literal["auto", "tpm", "counts", "values"]
SETUP_KEY = "scxtrimo_lines"
MAX_DEVIATION = 5.0


def check_table(table: pd.DataFrame, keys: Sequence[str], what: str = "screen") -> None:
    """Check that a table has rows, and the columns ``keys`` without missing values."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"`{what}` must be a pandas.DataFrame, not {type(table).__name__}.")
    if not table.columns.is_unique:
        repeated = table.columns[table.columns.duplicated()].unique()
        raise ValueError(f"`{what}` has duplicate columns: {preview(repeated)}. Rename them.")
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


def smiles_by_name(
    drugs: Mapping[str, str] | pd.Series | None, known: dict[str, str] | None = None
) -> dict[str, str] | None:
    """Return SMILES by name of the drug, together with the known ones; each name has one."""
    if drugs is None:
        return known
    if not isinstance(drugs, Mapping | pd.Series):
        raise TypeError(
            f"`drugs` must be a mapping or Series of SMILES by name, not {type(drugs).__name__}."
        )
    result = dict(known or {})
    for key, smiles in drugs.items():
        name = canonical(key)
        if name in result and result[name] != smiles and not pd.isna(smiles):
            raise ValueError(
                f"The drug {name!r} has two SMILES in `drugs`, {result[name]!r} and {smiles!r}. "
                "Give each drug its own name."
            )
        result[name] = smiles
    return result


def drugs_of(
    table: pd.DataFrame, keys: list[str], drugs: Mapping[str, str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted distinct SMILES, and their places in a table ``(n_rows, n_keys)``."""
    entries_nd = table[keys].to_numpy(dtype=object)
    distinct = list(dict.fromkeys(entries_nd.ravel()))
    smiles, names = {entry: entry for entry in distinct}, None
    if drugs is not None:
        if unknown := [entry for entry in distinct if canonical(entry) not in drugs]:
            raise ValueError(
                f"{len(unknown)} drugs of the columns {keys} are not in `drugs`: "
                f"{preview(unknown, 20)}. Add their SMILES, or drop their rows."
            )
        smiles = {entry: drugs[canonical(entry)] for entry in distinct}
        names = {text: canonical(entry) for entry, text in smiles.items()}
    readable = canonical_smiles(smiles.values(), f"SMILES of the columns {keys}", names)
    smiles_n = np.array([readable[smiles[entry]] for entry in entries_nd.ravel()], dtype=object)
    places, found = pd.factorize(smiles_n, sort=True)
    return found, places.reshape(entries_nd.shape)


def target_of(table: pd.DataFrame, key: str, task: str) -> tuple[np.ndarray, str]:
    """Return the numbers of a column, float64 ``(n_rows,)``, and the task they are learned by."""
    try:
        target_n = table[key].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The column {key!r} must hold numbers (0 and 1 for classes): {error}."
        ) from error
    if not np.isfinite(target_n).all():
        raise ValueError(f"The column {key!r} holds infinite values. Drop these rows.")
    values = np.unique(target_n)
    if len(values) < 2:
        raise ValueError(
            f"All values of the column {key!r} are {values[0]:g}: there is nothing to learn."
        )
    check("task", task, Literal["auto", "classification", "regression"])
    is_binary = np.array_equal(values, (0, 1))
    if task == "classification" and not is_binary:
        raise ValueError(
            f'task="classification" needs 0 and 1 in the column {key!r}, which ranges from '
            f"{values[0]:g} to {values[-1]:g}."
        )
    if task == "auto" and not is_binary and len(values) == 2:
        raise ValueError(
            f"The column {key!r} has only the two values {values[0]:g} and {values[1]:g}. Recode "
            'them as 0 and 1 for classes, or pass task="regression".'
        )
    if task == "auto":
        task = "classification" if is_binary else "regression"
    return target_n, task


def warn_of_conflicts(drugs_nd: np.ndarray, lines_n: np.ndarray, label_n: np.ndarray) -> None:
    """Warn if repeats of a measurement have different labels."""
    measured = np.column_stack([np.sort(drugs_nd, axis=1), lines_n])
    n_labels = pd.Series(label_n).groupby([*measured.T]).nunique()
    if n_conflicts := int((n_labels > 1).sum()):
        logger.warning(
            f"{n_conflicts} measurements are repeated in the screen with different labels. "
            "Keep one label for each, or drop them."
        )


def split_rows(
    drugs_nd: np.ndarray,
    lines_n: np.ndarray,
    parents_d: np.ndarray,
    by: str,
    size: float,
    seed: int,
) -> np.ndarray:
    """Return which rows to validate on; repeats stay together, as do drugs with one parent."""
    size = check("validation_size", size, OpenInterval)
    check("validate_on", by, Literal["rows", "pairs", "drugs", "lines"])
    drugs_nd = np.sort(drugs_nd, axis=1)
    parents_nd = np.sort(parents_d[drugs_nd], axis=1)
    if by == "drugs":
        items_nk = parents_nd
    else:
        keys = {"rows": [drugs_nd, lines_n], "pairs": [parents_nd], "lines": [lines_n]}
        groups = np.unique(np.column_stack(keys[by]), axis=0, return_inverse=True)[1]
        items_nk = groups.reshape(-1, 1)
    distinct = np.unique(items_nk)
    if len(distinct) < 3:
        raise ValueError(
            f"The screen has {len(distinct)} distinct {by}, too few to validate on some of them. "
            "Choose another `validate_on`."
        )
    n_drawn = min(max(1, round(size * len(distinct))), len(distinct) - 1)
    drawn = np.random.default_rng(seed).permutation(distinct)[:n_drawn]
    return np.asarray(np.isin(items_nk, drawn).any(1))


def places_of(names: Sequence[str], wanted: pd.Series) -> np.ndarray:
    """Return the place of every wanted cell line among the names."""
    texts = as_text(wanted)
    places = pd.Index(names).get_indexer(texts)
    if (unknown := texts[places < 0].unique()).size:
        raise ValueError(
            f"{len(unknown)} cell lines of the table are not in `lines` ({len(names)} lines, for "
            f"instance {preview(names, 3)}): {preview(unknown, 20)}. Add their expression, drop "
            "their rows, or correct their spelling."
        )
    return places


class LineSetup(NamedTuple):
    """Where the expression of cell lines is (``None``: ``X``, ``var_names``) and of what kind."""

    layer: str | None = None
    expression: str = "auto"
    gene_id_key: str | None = None


def setup_lines(lines: AnnData, setup: LineSetup) -> None:
    """Check the expression of cell lines and note the set-up in ``lines.uns``."""
    check("expression", setup.expression, Expression)
    if not isinstance(lines, AnnData):
        raise TypeError(
            f"`lines` must be an AnnData of cell lines x genes, not {type(lines).__name__}."
        )
    own_view(lines)
    found = setup._replace(expression=_checked(lines, setup)[1])._asdict()
    lines.uns[SETUP_KEY] = {key: value for key, value in found.items() if value}


def setup_of(lines: AnnData) -> LineSetup | None:
    """Return the set-up of lines, if there is one."""
    stored = lines.uns.get(SETUP_KEY)
    return None if stored is None else LineSetup(**stored)


def read_lines(lines: AnnData, setup: LineSetup) -> np.ndarray:
    """Return checked expression on the scale of the model, ``(n_lines, n_columns)``."""
    values_lg, kind = _checked(lines, setup)
    if kind == "counts":
        values_lg = values_lg * (1e6 / values_lg.sum(1, keepdims=True))
    return values_lg if kind == "values" else np.log2(values_lg + 1)


def _checked(lines: AnnData, setup: LineSetup) -> tuple[np.ndarray, str]:
    """Return the expression as float64 and its kind, after checking both."""
    kind, layer = setup.expression, setup.layer
    if layer is not None and layer not in lines.layers:
        raise ValueError(
            f"layer={layer!r} is not in lines.layers, which has {list(lines.layers)}."
        )
    values: Any = lines.X if layer is None else lines.layers[layer]
    if values is None or not lines.n_obs or not lines.n_vars:
        raise ValueError(f"`lines` has no expression: {lines.n_obs} lines x {lines.n_vars} genes.")
    values_lg = values.toarray() if sparse.issparse(values) else np.asarray(values)
    values_lg = values_lg.astype(np.float64)
    if not lines.obs_names.is_unique:
        repeated = lines.obs_names[lines.obs_names.duplicated()].unique()
        raise ValueError(
            f"lines.obs_names has duplicate cell lines: {preview(repeated)}. Rename or drop them."
        )
    own_identifiers(lines.var, setup.gene_id_key, "lines.var")
    wrong = np.argwhere(~np.isfinite(values_lg))
    if len(wrong):
        line, gene = wrong[0]
        raise ValueError(
            f"{len(wrong)} expression values are NaN or infinite, the first for gene "
            f"{lines.var_names[gene]!r} in cell line {lines.obs_names[line]!r}. Drop these genes; "
            "a model can do without some."
        )
    if kind == "auto":
        if values_lg.min() < 0 or values_lg.max() <= 100:
            kind = "values"
        else:
            kind = "counts" if np.array_equal(values_lg, np.round(values_lg)) else "tpm"
        logger.info(f'The expression of the cell lines is read as expression="{kind}".')
    if kind != "values" and values_lg.min() < 0:
        raise ValueError(
            f'expression="{kind}" cannot be negative, but the smallest value is '
            f'{values_lg.min():.3g}. For log-ratios or z-scores pass expression="values".'
        )
    if kind == "counts" and (empty := lines.obs_names[values_lg.sum(1) == 0]).size:
        raise ValueError(f"These cell lines have no counts: {preview(empty)}. Drop them.")
    return values_lg, kind


class LinePanel(NamedTuple):
    """The genes a model reads, with their mean and scale over the cell lines trained on."""

    gene_ids: tuple[str, ...]
    mean_g: np.ndarray
    scale_g: np.ndarray

    @classmethod
    def choose(
        cls, lines: AnnData, setup: LineSetup, is_used_l: np.ndarray, n_genes: int
    ) -> LinePanel:
        """Choose the genes that vary most among the lines in use, ``n_genes`` at most."""
        values_lg = read_lines(lines, setup)[is_used_l]
        std_g = values_lg.std(0)
        names = own_identifiers(lines.var, setup.gene_id_key, "lines.var")
        genes = np.argsort(np.where(names != "", -std_g, np.inf), kind="stable")[:n_genes]
        genes = np.sort(genes[names[genes] != ""])
        std_g = std_g[genes]
        # Part of the mean scale, so that the noise of genes that hardly vary is not blown up.
        scale_g = std_g + 0.3 * std_g.mean() if std_g.mean() > 0 else np.ones(len(genes))
        return cls(tuple(names[genes]), values_lg[:, genes].mean(0), scale_g)

    def standardize(self, lines: AnnData, setup: LineSetup, min_overlap: float) -> np.ndarray:
        """Return the panel of any lines, float32 ``(n_lines, n_genes)``, NaN for missing genes."""
        values_lg = read_lines(lines, setup)
        vocabulary = GeneVocabulary(self.gene_ids, self.gene_ids)
        alignment = align_genes(vocabulary, lines.var, setup.gene_id_key)
        if alignment.repeated:
            raise ambiguous_error(alignment, "lines.var")
        if alignment.overlap < max(min_overlap, 1e-9):
            raise ValueError(
                f"Only {alignment.overlap:.1%} of the {len(vocabulary)} genes the model reads are "
                f"in `lines` (min_gene_overlap={min_overlap:g}): it has "
                f"{preview(lines.var_names, 3)}, the model reads {preview(self.gene_ids, 3)}. "
                "Name the column of lines.var with such identifiers: `gene_id_key=`."
            )
        warn_of_source(alignment, setup.gene_id_key, "lines.var")
        out_lg = np.full((lines.n_obs, len(vocabulary)), np.nan)
        is_used = alignment.column_to_gene >= 0
        out_lg[:, alignment.column_to_gene[is_used]] = values_lg[:, is_used]
        out_lg = (out_lg - self.mean_g) / self.scale_g
        there = out_lg[np.isfinite(out_lg)]
        shift, clipped = there.mean(), (np.abs(there) > MAX_DEVIATION).mean()
        if abs(shift) > 1 or clipped > 0.2:
            logger.warning(
                f"The expression of these lines differs from the training data: {shift:+.1f} "
                f"standard deviations on average, with {clipped:.0%} of the values more than "
                f"{MAX_DEVIATION:g} away. Check unit, layer and normalisation; counts and TPM "
                "must be normalised over all genes before genes are selected."
            )
        return np.clip(out_lg, -MAX_DEVIATION, MAX_DEVIATION).astype(np.float32)
