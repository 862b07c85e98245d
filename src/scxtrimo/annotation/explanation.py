"""Which genes account for a label, by integrated gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from ..nn.layers import normalize_counts
from ..nn.ragged import RaggedBatch, cells_of, to_tokens

if TYPE_CHECKING:
    from .model import XTrimoGeneAnnotator


def cells_to_explain(
    model: XTrimoGeneAnnotator, data: AnnData, groupby: str | None, max_cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of at most ``max_cells`` cells per label, and the codes of their labels."""
    if groupby is None:
        labels = model.predict(data)
    elif groupby in data.obs:
        labels = data.obs[groupby].to_numpy()
    else:
        raise ValueError(f"{groupby!r} is not a column of adata.obs: {list(data.obs)}.")
    codes = pd.Index(model.labels).get_indexer(pd.Index(labels))
    if not (codes >= 0).any():
        raise ValueError(
            f"None of the labels in adata.obs[{groupby!r}] is one of the model's: "
            f"{model.labels.tolist()}."
        )
    rng = np.random.default_rng(model.seed_)
    drawn = [
        rng.permutation(np.flatnonzero(codes == code))[:max_cells]
        for code in np.unique(codes[codes >= 0])
    ]
    rows = np.sort(np.concatenate(drawn))
    return rows, codes[rows]


def rank_genes(
    model: XTrimoGeneAnnotator,
    data: AnnData,
    rows: np.ndarray,
    codes: np.ndarray,
    n_steps: int,
    batch_size: int,
) -> tuple[pd.DataFrame, float]:
    """Return the genes of every label by score, and the largest error of the integration."""
    panel = model._label_panel(data)

    def log_probabilities(batch: RaggedBatch) -> Tensor:
        return model.module.label_log_probabilities(batch, model._encode(batch), panel)

    n_genes, n_labels = len(model.vocabulary), len(model.labels)
    scores, expressed, expression = torch.zeros(3, n_labels * n_genes, dtype=torch.float64)
    max_error = 0.0
    for place, batch in model._batches(data, rows, batch_size, "Explaining"):
        target_c = torch.from_numpy(codes[place]).to(model.device)
        average_t = model.module.mean_expression[batch["gene_ids"]]
        scores_t, error = attribute(log_probabilities, batch, target_c, average_t, n_steps)
        max_error = max(max_error, error)
        cells_t = cells_of(batch["cu_seqlens"], len(scores_t))
        flat_t = (target_c[cells_t] * n_genes + batch["gene_ids"]).cpu()
        share_t = batch["counts"] / batch["library_size"][cells_t]
        scores.index_add_(0, flat_t, scores_t.cpu().double())
        expression.index_add_(0, flat_t, share_t.cpu().double())
        expressed.index_add_(0, flat_t, torch.ones(len(flat_t), dtype=torch.float64))
    n_cells = np.bincount(codes, minlength=n_labels)
    scores_lg, expressed_lg, expression_lg = (
        part.view(n_labels, n_genes).numpy() for part in (scores, expressed, expression)
    )
    frames = []
    for label in np.flatnonzero(n_cells):
        frame = pd.DataFrame(
            {
                "group": str(model.labels[label]),
                "names": np.asarray(model.vocabulary.gene_names),
                "scores": (scores_lg[label] / n_cells[label]).astype(np.float32),
                "logfoldchanges": log_fold_change(expression_lg, n_cells, label),
                "pct_nz_group": expressed_lg[label] / n_cells[label],
            }
        )
        frames.append(frame.sort_values("scores", ascending=False, kind="stable"))
    return pd.concat(frames, ignore_index=True), max_error


def attribute(
    log_probabilities: Callable[[RaggedBatch], Tensor],
    batch: RaggedBatch,
    target_c: Tensor,
    average_t: Tensor,
    n_steps: int,
) -> tuple[Tensor, float]:
    """Return what every token adds to the log-probability of its cell's label, and the error.

    The path leads from average to measured log-normalised expression; the error is the part of
    the total that the tokens do not account for.
    """
    library_size_t = to_tokens(batch["library_size"], batch["cu_seqlens"], len(batch["counts"]))
    values_t = normalize_counts(batch["counts"], library_size_t)

    def total(values_t: Tensor) -> Tensor:
        """Sum over the cells, which do not depend on each other."""
        log_p_cl = log_probabilities(batch | {"counts": values_t.expm1() * library_size_t / 1e4})
        return log_p_cl.gather(1, target_c[:, None]).sum()

    def along_path(values_st: Tensor) -> Tensor:
        return torch.stack([total(values_t) for values_t in values_st])

    scores_st, delta = integrated_gradients()(along_path).attribute(
        values_t[None],
        baselines=average_t[None],
        n_steps=n_steps,
        internal_batch_size=1,
        return_convergence_delta=True,
    )
    size = float(scores_st.abs().sum())
    return scores_st[0].detach(), float(delta.abs().sum()) / max(size, 1e-8)


def log_fold_change(
    expression_lg: np.ndarray, n_cells: np.ndarray, label: np.integer
) -> np.ndarray:
    """Return log2 of the mean expression in a label over that in all others.

    As in scanpy, 1e-9 is added to both means, here of counts per 10,000.
    """
    others = np.arange(len(n_cells)) != label
    mean = 1e4 * expression_lg[label] / n_cells[label]
    mean_others = 1e4 * expression_lg[others].sum(0) / max(n_cells[others].sum(), 1)
    return np.log2((mean + 1e-9) / (mean_others + 1e-9)).astype(np.float32)


def as_scanpy_result(genes: pd.DataFrame, params: dict[str, Any]) -> dict[str, Any]:
    """Return a ranking in the form of ``scanpy.tl.rank_genes_groups``, without p-values."""
    genes = genes.assign(pvals=np.nan, pvals_adj=np.nan)
    groups = list(genes.groupby("group", sort=False))
    result: dict[str, Any] = {"params": params}
    for column in ("names", "scores", "logfoldchanges", "pvals", "pvals_adj"):
        kind = object if column == "names" else genes[column].dtype
        result[column] = np.rec.fromarrays(
            [of_group[column].to_numpy() for _, of_group in groups],
            dtype=[(name, kind) for name, _ in groups],
        )
    return result


def integrated_gradients() -> Any:
    """Return captum's class, which is an extra."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise ImportError(
            "Ranking genes needs the package captum: `pip install 'scxtrimo[explain]'`."
        ) from error
    return IntegratedGradients
