"""Tables of drug screens: who met whom, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from .._logging import logger
from ..data.columns import as_text, canonical
from ..data.vocabulary import (
    GeneVocabulary,
    align_genes,
    ambiguous_error,
    own_identifiers,
    preview,
    warn_of_source,
)
from .molecules import canonical_smiles

Expression = Literal["auto", "tpm", "counts", "values"]
SETUP_KEY = "scxtrimo_lines"
MAX_LOGGED = 100.0
MAX_DEVIATION = 5.0
MAX_SHIFT = 1.0
MAX_CLIPPED = 0.2


@dataclass(frozen=True)
class LineSetup:
    """Where the expression of cell lines is, and of what kind.

    Parameters
    ----------
    layer
        Layer with the expression; ``None`` for ``X``.
    expression
        ``"tpm"``, ``"counts"`` or ``"values"``; see :func:`setup_lines`.
    gene_id_key
        Column of ``var`` with the identifiers of the genes; ``None`` for ``var_names``; see
        :func:`~scxtrimo.data.align_genes` for other lines.
    """

    layer: str | None
    expression: str
    gene_id_key: str | None


def setup_lines(
    lines: AnnData,
    layer: str | None = None,
    expression: Expression = "auto",
    gene_id_key: str | None = None,
) -> LineSetup:
    """Check the expression of cell lines and note in ``lines.uns`` where it is.

    Parameters
    ----------
    lines
        Cell lines x genes, named by ``obs_names``.
    layer
        Layer with the expression; by default ``X``.
    expression
        ``"tpm"`` (a log2 is taken), ``"counts"`` (scaled to a million per line, then a log2),
        ``"values"`` (any real numbers, taken as they are) or ``"auto"``: negative values or none
        above 100 are ``"values"``, whole numbers ``"counts"``, anything else ``"tpm"``.
    gene_id_key
        Column of ``lines.var`` with the identifiers of the genes, or ``"var_names"``.

    Raises
    ------
    ValueError
        If values are missing, infinite or, where they cannot be, negative; or names of lines or
        genes are there twice.
    """
    if expression not in get_args(Expression):
        raise ValueError(f"expression={expression!r} must be one of {get_args(Expression)}.")
    if not isinstance(lines, AnnData):
        raise TypeError(
            f"`lines` must be an AnnData of cell lines x genes, not {type(lines).__name__}."
        )
    kind = _check_and_guess(lines, _matrix(lines, layer), expression, gene_id_key)
    setup = LineSetup(layer, kind, gene_id_key)
    lines.uns[SETUP_KEY] = {key: value for key, value in asdict(setup).items() if value}
    return setup


def setup_of(lines: AnnData) -> LineSetup | None:
    """Return how lines were set up, if they were."""
    stored = lines.uns.get(SETUP_KEY)
    if stored is None:
        return None
    return LineSetup(stored.get("layer"), stored["expression"], stored.get("gene_id_key"))


def _matrix(lines: AnnData, layer: str | None) -> np.ndarray:
    if layer is not None and layer not in lines.layers:
        raise ValueError(
            f"layer={layer!r} is not in lines.layers, which has {list(lines.layers)}."
        )
    values: Any = lines.X if layer is None else lines.layers[layer]
    if values is None or not lines.n_obs or not lines.n_vars:
        raise ValueError(f"`lines` has no expression: {lines.n_obs} lines x {lines.n_vars} genes.")
    values = values.toarray() if sparse.issparse(values) else np.asarray(values)
    return values.astype(np.float64)


def _check_and_guess(
    lines: AnnData, values_lg: np.ndarray, expression: str, gene_id_key: str | None
) -> str:
    """Check everything and return the kind of expression."""
    _check(lines, values_lg, gene_id_key)
    kind = expression
    if kind == "auto":
        kind = _guess(values_lg)
        logger.info(f'The expression of the cell lines is read as expression="{kind}".')
    if kind != "values" and values_lg.min() < 0:
        raise ValueError(
            f'expression="{kind}" cannot be negative, but the smallest value is '
            f'{values_lg.min():.3g}. For log-ratios or z-scores say expression="values".'
        )
    if kind == "counts" and (empty := lines.obs_names[values_lg.sum(1) == 0]).size:
        raise ValueError(f"These cell lines have no counts at all: {preview(empty)}.")
    return kind


def _check(lines: AnnData, values_lg: np.ndarray, gene_id_key: str | None) -> None:
    if not lines.obs_names.is_unique:
        twice = lines.obs_names[lines.obs_names.duplicated()].unique()
        raise ValueError(f"lines.obs_names: cell lines are there twice: {preview(twice)}.")
    own_identifiers(lines.var, gene_id_key, "lines.var")
    wrong_lg = ~np.isfinite(values_lg)
    if wrong_lg.any():
        line, gene = np.argwhere(wrong_lg)[0]
        raise ValueError(
            f"{int(wrong_lg.sum())} values of the expression are NaN or infinite, the first that "
            f"of gene {lines.var_names[gene]!r} in cell line {lines.obs_names[line]!r}. Drop "
            "these genes: genes that are not there are no problem."
        )


def _guess(values_lg: np.ndarray) -> str:
    if values_lg.min() < 0 or values_lg.max() <= MAX_LOGGED:
        return "values"
    return "counts" if np.array_equal(values_lg, np.round(values_lg)) else "tpm"


def read_lines(lines: AnnData, setup: LineSetup) -> np.ndarray:
    """Return checked expression on the scale of the model, ``(n_lines, n_columns)``."""
    values_lg = _matrix(lines, setup.layer)
    _check_and_guess(lines, values_lg, setup.expression, setup.gene_id_key)
    if setup.expression == "counts":
        values_lg = values_lg * (1e6 / values_lg.sum(1, keepdims=True))
    return values_lg if setup.expression == "values" else np.log2(values_lg + 1)


class LinePanel(NamedTuple):
    """The genes a model reads, and what is usual for them.

    Parameters
    ----------
    gene_ids
        Their identifiers.
    mean_g, scale_g
        Mean and scale over the cell lines trained on.
    """

    gene_ids: tuple[str, ...]
    mean_g: np.ndarray
    scale_g: np.ndarray

    @classmethod
    def choose(
        cls, lines: AnnData, setup: LineSetup, is_used_l: np.ndarray, n_genes: int
    ) -> LinePanel:
        """Choose the genes that vary most among some of the lines.

        Parameters
        ----------
        lines, setup
            The cell lines.
        is_used_l
            Which of them to look at.
        n_genes
            How many genes, at most.
        """
        values_lg = read_lines(lines, setup)[is_used_l]
        std_g = values_lg.std(0)
        names = own_identifiers(lines.var, setup.gene_id_key, "lines.var")
        is_named_g = names != ""
        genes = np.argsort(np.where(is_named_g, -std_g, np.inf), kind="stable")
        genes = np.sort(genes[: min(n_genes, int(is_named_g.sum()))])
        std_g = std_g[genes]
        # A part of the usual scale keeps genes that hardly vary from becoming noise.
        scale_g = std_g + 0.3 * std_g.mean() if std_g.mean() > 0 else np.ones(len(genes))
        return cls(tuple(names[genes]), values_lg[:, genes].mean(0), scale_g)

    def standardize(self, lines: AnnData, setup: LineSetup, min_overlap: float) -> np.ndarray:
        """Return what the model reads of lines, float32 ``(n_lines, n_genes)``, NaN if missing.

        Parameters
        ----------
        lines, setup
            Cell lines with any genes in any order.
        min_overlap
            Smallest acceptable part of the genes.

        Raises
        ------
        ValueError
            If too few of the genes are there.
        """
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
        _warn_if_unlike(out_lg)
        return np.clip(out_lg, -MAX_DEVIATION, MAX_DEVIATION).astype(np.float32)


def _warn_if_unlike(values_lg: np.ndarray) -> None:
    """Say so if standardised expression has another unit or was normalised in another way."""
    known = values_lg[np.isfinite(values_lg)]
    shift, clipped = float(known.mean()), float((np.abs(known) > MAX_DEVIATION).mean())
    if abs(shift) > MAX_SHIFT or clipped > MAX_CLIPPED:
        logger.warning(
            f"The expression of these lines is unlike that of the training: {shift:+.1f} standard "
            f"deviations on average, {clipped:.0%} of the values more than {MAX_DEVIATION:g} off. "
            "Is it in another unit or layer, or normalised over other genes? Counts and TPM of a "
            "part of the genes are too large: normalise before taking the part."
        )


def collate_lines(values_lg: Tensor, keep_lg: Tensor | None = None) -> dict[str, Tensor]:
    """Turn the genes that were measured into tokens.

    Parameters
    ----------
    values_lg
        Standardised expression, NaN where a gene was not measured.
    keep_lg
        Which genes to keep of these; by default all.

    Returns
    -------
    ``values_t``, ``gene_ids_t`` and ``cu_seqlens`` of a ragged batch.
    """
    is_there_lg = ~values_lg.isnan()
    if keep_lg is not None:
        is_there_lg = is_there_lg & keep_lg
    lengths_l = is_there_lg.sum(1)
    cu_seqlens = torch.zeros(len(values_lg) + 1, dtype=torch.int32)
    cu_seqlens[1:] = lengths_l.cumsum(0)
    genes_lg = torch.arange(values_lg.shape[1]).expand_as(values_lg)
    return {
        "values_t": values_lg[is_there_lg],
        "gene_ids_t": genes_lg[is_there_lg],
        "cu_seqlens": cu_seqlens,
    }


def places_of(names: Sequence[str], wanted: pd.Series) -> np.ndarray:
    """Return the place of every wanted cell line, naming all that are not there.

    Parameters
    ----------
    names
        The cell lines that are there.
    wanted
        Those of a table, with repetitions; numbers are taken as text.
    """
    place = {name: i for i, name in enumerate(names)}
    texts = as_text(wanted).tolist()
    unknown = [name for name in dict.fromkeys(texts) if name not in place]
    if unknown:
        raise ValueError(
            f"{len(unknown)} cell lines of the table are not in `lines` ({len(place)} lines, for "
            f"instance {preview(names, 3)}): {preview(unknown, 20)}. Add their expression, leave "
            "out their rows, or correct their spelling."
        )
    return np.array([place[name] for name in texts], dtype=np.int64)


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
