"""How well hidden genes are predicted."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from torch import Tensor

from .._logging import logger
from ..module import target_values
from ..train import MaskingConfig, mask_batch
from ._batches import BatchesMixin


class InferenceMixin(BatchesMixin):
    """``get_reconstruction_error``."""

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
        if adata is None and indices is None:
            if self.validation_indices is not None and len(self.validation_indices):
                indices = self.validation_indices
            else:
                logger.info(
                    "There are no validation cells: the error is that of all cells, including "
                    "those the model was trained on."
                )
        masking = MaskingConfig(mask_rate, mask_rate, max_targets=None)
        target = "f1" if self.config_.read_depth_aware else None
        errors: dict[str, list[Tensor]] = {}
        expressed: list[Tensor] = []
        for _, batch in self._batches(adata, indices, batch_size, "Reconstructing", target):
            batch = mask_batch(batch, masking, self.module.n_genes, self.seed_, epoch=-1)
            cells = self._encode(batch)
            asked, cu_asked = batch["target_gene_ids"], batch["target_cu_seqlens"]
            truth = target_values(batch)
            predictions = {
                name: decoder(cells, self.module.positions, asked, cu_asked)
                for name, decoder in self.module.decoders.items()
            }
            if self.module.mean_expression.any():  # published weights come without
                predictions["gene mean"] = self.module.mean_expression[asked]
            predictions["zero"] = torch.zeros_like(truth)
            for name, predicted in predictions.items():
                errors.setdefault(name, []).append((predicted.float() - truth).square().cpu())
            expressed.append((batch["target_counts"] > 0).cpu())
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
