"""How well hidden genes are predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from torch import Tensor

from .._logging import logger
from .._validation import OpenInterval, check
from ..nn.masking import MaskingConfig, mask_batch
from ..nn.ragged import cells_of
from ..train.module import target_values
from .batches import BatchesMixin


class InferenceMixin(BatchesMixin):
    """``get_reconstruction_error`` and ``get_masked_predictions``."""

    @torch.inference_mode()
    def get_reconstruction_error(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        mask_rate: float = 0.3,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Hide genes from the encoder, predict them, and compare with what was there.

        Parameters
        ----------
        adata, batch_size
            See :meth:`get_latent_representation`.
        indices
            Cells; by default the validation cells of the model's own data.
        mask_rate
            Fraction of a cell's expressed genes that is hidden. As many unexpressed genes are
            asked for beside them.

        Returns
        -------
        Mean squared error of log-normalised expression (``log1p`` of counts per 10,000) of all
        decoders and of two trivial predictions, over expressed, unexpressed and all masked genes,
        with the number of genes compared.

        Examples
        --------
        >>> list(model.get_reconstruction_error().index)
        ['bottleneck', 'cross_attention', 'gene mean', 'zero']
        """
        errors: dict[str, list[Tensor]] = {}
        expressed: list[Tensor] = []
        for _, batch, predictions in self._mask_and_predict(
            adata, self._held_out_rows(adata, indices), mask_rate, batch_size
        ):
            truth = target_values(batch)
            predictions["zero"] = torch.zeros_like(truth)
            for name, predicted in predictions.items():
                errors.setdefault(name, []).append((predicted - truth).square().cpu())
            expressed.append((truth > 0).cpu())
        is_expressed = torch.cat(expressed)
        table = {}
        for name, chunks in errors.items():
            error = torch.cat(chunks)
            table[name] = {
                "mse": error.mean().item(),
                "mse_expressed": error[is_expressed].mean().item(),
                "mse_unexpressed": error[~is_expressed].mean().item(),
                "n_genes": len(error),
            }
        return pd.DataFrame.from_dict(table, orient="index")

    @torch.inference_mode()
    def get_masked_predictions(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        mask_rate: float = 0.3,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Hide genes from the encoder and return what is predicted in their place.

        Parameters
        ----------
        adata, indices, mask_rate, batch_size
            See :meth:`get_reconstruction_error`, which is made from the same predictions.

        Returns
        -------
        Data frame with a row for every masked gene of every cell: ``cell`` (its name), ``gene``,
        ``measured`` log-normalised expression (``log1p`` of counts per 10,000), and what each
        decoder predicts, in a column of its name; ``gene mean``, where it is known, is the mean
        over the training cells. Values are float32.

        Examples
        --------
        >>> list(model.get_masked_predictions(indices=[0, 1]))
        ['cell', 'gene', 'measured', 'bottleneck', 'cross_attention', 'gene mean']
        """
        rows = self._held_out_rows(adata, indices)
        registered, numbers = self._rows(adata, rows)
        obs_names = registered.obs_names[numbers]
        parts: dict[str, list[np.ndarray]] = {"cell": [], "gene": [], "measured": []}
        for place, batch, predictions in self._mask_and_predict(
            adata, rows, mask_rate, batch_size
        ):
            genes = batch["target_gene_ids"]
            cells = place.start + cells_of(batch["target_cu_seqlens"], len(genes))
            values = {"cell": cells, "gene": genes, "measured": target_values(batch)}
            for name, value in (values | predictions).items():
                parts.setdefault(name, []).append(value.cpu().numpy())
        columns = {name: np.concatenate(chunks) for name, chunks in parts.items()}
        columns["cell"] = np.asarray(obs_names)[columns["cell"]]
        columns["gene"] = np.asarray(self.vocabulary.gene_ids)[columns["gene"]]
        return pd.DataFrame(columns)

    def _held_out_rows(
        self, adata: AnnData | MuData | None, indices: Sequence[int] | None
    ) -> Sequence[int] | None:
        """Return the rows asked for, the validation cells of the model's own data by default."""
        if adata is not None or indices is not None:
            return indices
        if self.validation_indices is not None and len(self.validation_indices):
            return self.validation_indices
        if self.validation_indices_ is not None and len(self.validation_indices_):
            logger.warning(
                "The present data have none of the cells that were held out from training: all "
                "cells are taken, including those the model was trained on."
            )
        else:
            logger.info(
                "There are no validation cells: all cells are taken, including those the model "
                "was trained on."
            )
        return None

    def _mask_and_predict(
        self,
        adata: AnnData | MuData | None,
        indices: Sequence[int] | None,
        mask_rate: float,
        batch_size: int | None,
    ) -> Iterator[tuple[slice, dict[str, Tensor], dict[str, Tensor]]]:
        """Iterate over masked batches, their places, and predictions of what is masked."""
        mask_rate = check("mask_rate", mask_rate, OpenInterval)
        masking = MaskingConfig(mask_rate, mask_rate, max_targets=None)
        target = "f1" if self.config_.read_depth_aware else None
        batches = self._batches(adata, indices, batch_size, "Predicting hidden genes", target)
        for place, batch in batches:
            batch = mask_batch(batch, masking, self.module.n_genes, self.seed_, epoch=-1)
            cells = self._encode(batch)
            asked, cu_asked = batch["target_gene_ids"], batch["target_cu_seqlens"]
            predictions = {
                name: decoder(cells, self.module.positions, asked, cu_asked).float()
                for name, decoder in self.module.decoders.items()
            }
            if self.module.mean_expression.any():  # published weights come without
                predictions["gene mean"] = self.module.mean_expression[asked]
            yield place, batch, predictions
