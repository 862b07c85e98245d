"""Which genes account for a label, by integrated gradients."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from ..data.columns import get_column
from ..nn.layers import normalize_counts
from ..nn.ragged import RaggedBatch, cells_of, to_tokens
from .module import LabelPanel
from .training import draw_per_label

if TYPE_CHECKING:
    from .model import XTrimoGeneAnnotator


def rank_genes(
    model: XTrimoGeneAnnotator,
    data: AnnData,
    groupby: str | None,
    max_cells: int,
    n_steps: int,
    batch_size: int,
) -> tuple[pd.DataFrame, float]:
    """Return the genes of every label by score, and the largest error of the integration."""
    if find_spec("captum") is None:
        raise ImportError(
            "Ranking genes needs the package captum: `pip install 'scxtrimo[explain]'`."
        )
    rows, codes = cells_to_explain(model, data, groupby, max_cells)
    panel = model._label_panel(data)
    n_genes, n_labels = len(model.vocabulary), len(model.labels)
    sums = torch.zeros(3, n_labels * n_genes, dtype=torch.float64)
    max_error = 0.0
    for place, batch in model._batches(data, rows, batch_size, "Explaining"):
        target_c = torch.from_numpy(codes[place]).to(model.device)
        scores_t, error = attribute(model, panel, batch, target_c, n_steps)
        max_error = max(max_error, error)
        cells_t = cells_of(batch["cu_seqlens"], len(scores_t))
        flat_t = (target_c[cells_t] * n_genes + batch["gene_ids"]).cpu()
        share_t = batch["counts"] / batch["library_size"][cells_t]
        for part, values_t in zip(
            sums, (scores_t, share_t, torch.ones_like(share_t)), strict=True
        ):
            part.index_add_(0, flat_t, values_t.cpu().double())
    n_cells = np.bincount(codes, minlength=n_labels)
    scores_lg, expression_lg, expressed_lg = sums.view(3, n_labels, n_genes).numpy()
    frames = []
    for label in np.flatnonzero(n_cells):
        others = np.arange(n_labels) != label
        mean = 1e4 * expression_lg[label] / n_cells[label]
        mean_others = 1e4 * expression_lg[others].sum(0) / max(n_cells[others].sum(), 1)
        fold_change = (mean + 1e-9) / (mean_others + 1e-9)  # as in scanpy
        frame = pd.DataFrame(
            {
                "group": str(model.labels[label]),
                "names": np.asarray(model.vocabulary.gene_names),
                "scores": (scores_lg[label] / n_cells[label]).astype(np.float32),
                "logfoldchanges": np.log2(fold_change).astype(np.float32),
                "pct_nz_group": expressed_lg[label] / n_cells[label],
            }
        )
        frames.append(frame.sort_values("scores", ascending=False, kind="stable"))
    return pd.concat(frames, ignore_index=True), max_error


def cells_to_explain(
    model: XTrimoGeneAnnotator, data: AnnData, groupby: str | None, max_cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of at most ``max_cells`` cells per label, and the codes of their labels."""
    labels = model.predict(data) if groupby is None else get_column(data.obs, "adata.obs", groupby)
    codes = pd.Index(model.labels).get_indexer(pd.Index(labels))
    rows = np.flatnonzero(codes >= 0)
    if not len(rows):
        raise ValueError(
            f"None of the labels in adata.obs[{groupby!r}] is one of the model's: "
            f"{model.labels.tolist()}."
        )
    rows = rows[draw_per_label(codes[rows], model.seed_, lambda n: max_cells)]
    return rows, codes[rows]


def attribute(
    model: XTrimoGeneAnnotator,
    panel: LabelPanel,
    batch: RaggedBatch,
    target_c: Tensor,
    n_steps: int,
) -> tuple[Tensor, float]:
    """Return what every token adds to the log-probability of its cell's label, and the error."""
    from captum.attr import IntegratedGradients

    library_size_t = to_tokens(batch["library_size"], batch["cu_seqlens"], len(batch["counts"]))

    def total(values_t: Tensor) -> Tensor:
        """Sum over the cells, which do not depend on each other."""
        changed = batch | {"counts": values_t.expm1() * library_size_t / 1e4}
        log_p_cl = model.module.label_log_probabilities(changed, model._encode(changed), panel)
        return log_p_cl.gather(1, target_c[:, None]).sum()

    method = IntegratedGradients(lambda values_st: torch.stack([*map(total, values_st)]))
    scores_st, delta = method.attribute(
        normalize_counts(batch["counts"], library_size_t)[None],
        baselines=model.module.mean_expression[batch["gene_ids"]][None],
        n_steps=n_steps,
        internal_batch_size=1,
        return_convergence_delta=True,
    )
    error = float(delta.abs().sum()) / max(float(scores_st.abs().sum()), 1e-8)
    return scores_st[0].detach(), error


def as_scanpy_result(genes: pd.DataFrame, params: dict[str, Any]) -> dict[str, Any]:
    """Return a ranking in the form of ``scanpy.tl.rank_genes_groups``, without p-values."""
    genes = genes.assign(pvals=np.nan, pvals_adj=np.nan)
    method = {"method": "integrated_gradients", "reference": "average expression"}
    result: dict[str, Any] = {"params": params | method | {"use_raw": False}}
    for column in ("names", "scores", "logfoldchanges", "pvals", "pvals_adj"):
        by_group = genes.groupby("group", sort=False)[column]
        table = pd.DataFrame({name: values.to_numpy() for name, values in by_group})
        result[column] = table.to_records(index=False)
    return result
