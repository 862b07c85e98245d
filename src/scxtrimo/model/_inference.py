"""The latent representation of cells, and how well hidden genes are predicted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from torch import Tensor

from .._logging import logger
from ..module import target_values
from ..nn import pool_tokens
from ..nn.pooling import POOLS
from ..train import MaskingConfig, mask_batch
from ._batches import BatchesMixin, Depth, Precision
from ._results import make_result

Pool = Literal["all", "max", "mean", "s", "t"]


class InferenceMixin(BatchesMixin):
    """Latent representation and reconstruction error."""

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        pool: Pool | None = None,
        target_depth: str | float | None = None,
        depth: Depth = "cell",
        out: str | os.PathLike | None = None,
        precision: Precision | None = None,
    ) -> np.ndarray:
        """Return the latent representation of cells.

        Every cell is represented from all of its genes that the model reads, none masked. It does
        not depend on the other cells, and not on the batch covariate.

        Parameters
        ----------
        adata
            Data; by default those of the model. Other data are aligned by gene identifier.
        indices
            Rows (or a boolean mask) of the cells; by default all.
        batch_size
            Cells per forward pass.
        pool
            How the tokens of a cell become one vector, see :func:`~scxtrimo.nn.pool_tokens`. By
            default as the model was trained: learned, or ``"all"`` for published models. ``"s"``,
            ``"t"`` and ``"all"`` need a model that is aware of the read depth.
        target_depth
            Read depth to represent all cells at, in a model that is aware of it: ``"t4"`` for
            :math:`10^4` counts, ``"f2"`` for twice a cell's own total, ``"a1"`` for ten times it,
            or the total counts as a number. By default that of the training cells, or ``"t4"``
            for published checkpoints.
        depth
            ``"bulk"`` for profiles of many cells: counts are scaled to the median total of
            ``adata`` rather than 10,000, and both depth tokens say the same, as published.
        out
            Path of a zarr store to stream the result to, as ``obsm["X_xtrimo"]`` of an AnnData.
        precision
            ``"32-true"`` or ``"bf16-mixed"``, which is several times faster where the device has
            it, and good to about 1%. By default the latter on a GPU that has it, except for
            published checkpoints.

        Returns
        -------
        float32 array of shape ``(n_cells, n_latent)``, in the order of ``indices``.

        Raises
        ------
        ValueError
            If ``pool``, ``target_depth`` or ``depth`` do not fit the model.

        Examples
        --------
        >>> adata.obsm["X_xtrimo"] = model.get_latent_representation()
        """
        n_special = self.module.net.n_special
        if pool is not None and pool not in POOLS:
            raise ValueError(f"pool={pool!r} is unknown; choose one of {list(POOLS)}.")
        if precision not in (None, "32-true", "bf16-mixed"):
            raise ValueError(f"precision={precision!r} must be '32-true' or 'bf16-mixed'.")
        if pool in ("all", "s", "t") and not self.config_.read_depth_aware:
            raise ValueError(
                f"pool={pool!r} needs the depth tokens of a model that is aware of the read "
                "depth; this one has 'max', 'mean' and its own (leave `pool` out)."
            )
        registered, rows = self._rows(adata, indices)
        n_latent = self.config_.n_latent
        if pool is not None or not self.config_.has_bottleneck:
            n_latent = self.config_.n_hidden * (4 if pool in (None, "all") else 1)
        batches = self._batches(adata, indices, batch_size, "Embedding", target_depth, depth)
        latent = make_result(
            (len(rows), n_latent),
            out,
            "obsm/X_xtrimo",
            registered.obs_names[rows],
            rows_per_chunk=self._batch_size(batch_size),
        )
        for place, batch in batches:
            cells = self._encode(batch, precision or self._default_precision())
            pooled = cells.latent_cz if pool is None else pool_tokens(cells, pool, n_special)
            latent[place] = pooled.float().cpu().numpy()
        return latent.finish()

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
