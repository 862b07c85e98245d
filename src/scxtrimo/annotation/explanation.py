"""Which genes drove a label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from ..nn.embedding import normalize_counts
from ..nn.ragged import cells_of, to_tokens
from .module import LabelPanel, XTrimoGeneAnnotatorModule
from .prediction import AnnotationMixin

CELLS_PER_LABEL = 100
N_STEPS = 20


class ExplanationMixin(AnnotationMixin):
    """``rank_label_genes``."""

    module: XTrimoGeneAnnotatorModule

    def rank_label_genes(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        max_cells: int = CELLS_PER_LABEL,
        n_steps: int = N_STEPS,
        key_added: str = "xtrimo_label_genes",
        batch_size: int = 16,
    ) -> pd.DataFrame:
        r"""Rank genes by what their expression adds to the log-probability of a label.

        Integrated gradients :cite:p:`Sundararajan2017` of the log-probability of the cell's own
        label, through the network and both classifiers, along the straight path from average
        expression (that of the training cells) of the genes that the cell expresses to its own.
        What the genes of a cell are given adds up to what its expression adds beyond the average.
        A gene that a cell does not express is given nothing. Needs the extra ``explain``.

        Parameters
        ----------
        adata
            Data; by default those of the model.
        groupby
            Column of ``adata.obs`` with the labels to explain, of those the model knows; by
            default the predicted ones.
        max_cells
            Cells per label, drawn at random.
        n_steps
            Points along the path. The result says how exact it is: ``max_error`` in
            ``adata.uns[key_added]["params"]`` is the largest part of a cell's total that is
            unaccounted for.
        key_added
            Where in ``adata.uns`` to put the result, in the form of
            :func:`scanpy.tl.rank_genes_groups`, so that :func:`scanpy.get.rank_genes_groups_df`
            and :func:`scanpy.pl.rank_genes_groups` read it.
        batch_size
            Cells at a time.

        Returns
        -------
        Data frame with the columns ``group``, ``names``, ``scores`` (mean over the cells of the
        label, in nats), ``logfoldchanges`` (base 2, of the mean normalised expression in these
        cells over that in the other explained cells) and ``pct_nz_group`` (part of these cells
        that express the gene), sorted by group and score. There are no p-values: in the result
        for scanpy they are NaN.

        Raises
        ------
        ImportError
            If captum is not installed.
        ValueError
            If no cell has a label that the model knows.

        Examples
        --------
        >>> genes = annotator.rank_label_genes(max_cells=1, n_steps=4)
        >>> genes.columns.tolist()
        ['group', 'names', 'scores', 'logfoldchanges', 'pct_nz_group']
        """
        attribution = _integrated_gradients()
        data = self._validate_anndata(adata)
        rows, codes = self._to_explain(data, groupby, max_cells)
        panel = self._label_panel(data)
        n_genes, n_labels = len(self.vocabulary), len(self.labels)
        scores, expressed, expression = torch.zeros(3, n_labels * n_genes, dtype=torch.float64)
        max_error = 0.0
        for place, batch in self._batches(data, rows, batch_size, "Explaining"):
            target_c = torch.from_numpy(codes[place]).to(self.device)
            scores_t, error = self._explain(batch, target_c, panel, attribution, n_steps)
            max_error = max(max_error, error)
            cells_t = cells_of(batch["cu_seqlens"], len(scores_t))
            flat_t = (target_c[cells_t] * n_genes + batch["gene_ids"]).cpu()
            share_t = batch["counts"] / batch["library_size"][cells_t]
            scores.index_add_(0, flat_t, scores_t.cpu().double())
            expression.index_add_(0, flat_t, share_t.cpu().double())
            expressed.index_add_(0, flat_t, torch.ones(len(flat_t), dtype=torch.float64))
        n_cells = np.bincount(codes, minlength=n_labels)
        present = np.flatnonzero(n_cells)
        names = np.asarray(self.vocabulary.gene_names)
        sums = [part.view(n_labels, n_genes).numpy() for part in (scores, expressed, expression)]
        frames = []
        for label in present:
            frame = pd.DataFrame(
                {
                    "group": str(self.labels[label]),
                    "names": names,
                    "scores": (sums[0][label] / n_cells[label]).astype(np.float32),
                    "logfoldchanges": _log_fold_change(sums[2], n_cells, label),
                    "pct_nz_group": sums[1][label] / n_cells[label],
                }
            )
            frames.append(frame.sort_values("scores", ascending=False, kind="stable"))
        params = {
            "groupby": groupby or "predicted",
            "method": "integrated_gradients",
            "reference": "average expression",
            "use_raw": False,
            "n_steps": n_steps,
            "max_error": max_error,
        }
        groups = [str(self.labels[label]) for label in present]
        columns = {
            column: [frame[column].to_numpy() for frame in frames]
            for column in ("names", "scores", "logfoldchanges")
        }
        nothing = [np.full(n_genes, np.nan)] * len(frames)
        columns |= {"pvals": nothing, "pvals_adj": nothing}
        data.uns[key_added] = {"params": params} | {
            column: _records(groups, of_groups) for column, of_groups in columns.items()
        }
        return pd.concat(frames, ignore_index=True)

    def _to_explain(
        self, data: AnnData, groupby: str | None, max_cells: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the cells to explain and the labels to explain them with."""
        if groupby is None:
            labels = self.predict(data)
        elif groupby in data.obs:
            labels = data.obs[groupby].to_numpy()
        else:
            raise ValueError(f"{groupby!r} is not a column of adata.obs: {list(data.obs)}.")
        codes = pd.Index(self.labels).get_indexer(pd.Index(labels))
        if not (codes >= 0).any():
            raise ValueError(
                f"None of the labels in adata.obs[{groupby!r}] is one of the model's: "
                f"{self.labels.tolist()}."
            )
        rng = np.random.default_rng(self.seed_)
        drawn = [
            rng.permutation(np.flatnonzero(codes == code))[:max_cells]
            for code in np.unique(codes[codes >= 0])
        ]
        rows = np.sort(np.concatenate(drawn))
        return rows, codes[rows]

    def _explain(
        self,
        batch: dict[str, Any],
        target_c: Tensor,
        panel: LabelPanel,
        attribution: Any,
        n_steps: int,
    ) -> tuple[Tensor, float]:
        """Return what every token adds to the log-probability of its cell's label."""
        cu_seqlens = batch["cu_seqlens"]
        n_tokens = len(batch["counts"])
        library_size_t = to_tokens(batch["library_size"], cu_seqlens, n_tokens)
        values_t = normalize_counts(batch["counts"], library_size_t)

        def log_probability(values_st: Tensor) -> Tensor:
            """Sum over the cells, for every point of the path; cells do not mix."""
            return torch.stack([total(values_t) for values_t in values_st])

        def total(values_t: Tensor) -> Tensor:
            counts_t = values_t.expm1() * library_size_t / 1e4
            changed = batch | {"counts": counts_t}
            cells = self._encode(changed)
            log_p_cl = self.module.label_log_probabilities(changed, cells, panel)
            return log_p_cl.gather(1, target_c[:, None]).sum()

        average_t = self.module.mean_expression[batch["gene_ids"]]
        scores_st, delta = attribution(log_probability).attribute(
            values_t[None],
            baselines=average_t[None],
            n_steps=n_steps,
            internal_batch_size=1,
            return_convergence_delta=True,
        )
        size = float(scores_st.abs().sum())
        return scores_st[0].detach(), float(delta.abs().sum()) / max(size, 1e-8)


def _log_fold_change(expression: np.ndarray, n_cells: np.ndarray, label: np.integer) -> np.ndarray:
    """Return the log2 of the mean expression of a label over that of all others.

    As in scanpy, 1e-9 is added to both means, here of counts per 10,000.
    """
    others = np.arange(len(n_cells)) != label
    mean = 1e4 * expression[label] / n_cells[label]
    mean_others = 1e4 * expression[others].sum(0) / max(n_cells[others].sum(), 1)
    return np.log2((mean + 1e-9) / (mean_others + 1e-9)).astype(np.float32)


def _records(groups: list[str], columns: list[np.ndarray]) -> np.ndarray:
    """Return a record array with one field per group, as scanpy keeps its rankings."""
    kind = object if columns[0].dtype.kind in "OUT" else columns[0].dtype
    return np.rec.fromarrays(columns, dtype=[(group, kind) for group in groups])


def _integrated_gradients() -> Any:
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise ImportError(
            "Ranking genes needs the package captum: `pip install 'scxtrimo[explain]'`."
        ) from error
    return IntegratedGradients
