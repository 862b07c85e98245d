"""Predicted expression: denoised, imputed, at another read depth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Real
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from pydantic import PositiveFloat
from scvi import REGISTRY_KEYS
from torch import Tensor

from .._validation import check
from ..data.fields import CountsField
from ..nn.encoded import EncodedCells
from ._results import make_result
from .batches import BatchesMixin, Depth, Precision, check_precision

DecoderName = Literal["bottleneck", "cross_attention", "performer"]


class ExpressionMixin(BatchesMixin):
    """Predicted expression."""

    @torch.inference_mode()
    def get_normalized_expression(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["observed"] = 1.0,
        transform_batch: str | int | None = None,
        decoder: DecoderName | None = None,
        batch_size: int | None = None,
        return_numpy: bool = False,
        log1p: bool = False,
        target_depth: str | float | None = None,
        depth: Depth = "cell",
        out: str | os.PathLike | None = None,
        precision: Precision | None = None,
    ) -> pd.DataFrame | np.ndarray:
        """Return predicted (denoised) expression.

        Parameters
        ----------
        adata, indices, batch_size, target_depth, depth, precision
            See :meth:`get_latent_representation`.
        gene_list
            Genes of the vocabulary, also ones the data lack; by default all.
        library_size
            Total that each cell is scaled to; ``"observed"`` for its own total counts.
        transform_batch
            Predict as if all cells came from this batch; by default from their own.
        decoder
            ``"bottleneck"`` (the default where there is one) predicts from the latent
            representation, ``"cross_attention"`` or ``"performer"`` from the encoded genes of the
            cell (imputation).
        return_numpy
            Return an array instead of a data frame.
        log1p
            Return ``log1p`` of counts per 10,000 (bulk: per median total of the data), the scale
            the imputation decoders work on, as predicted: values may be negative.
            ``library_size`` must then be left out.
        out
            Path of a zarr store to stream the result to, as ``X`` of an AnnData.

        Returns
        -------
        Expression of shape ``(n_cells, n_genes)``, float32, as fraction of the cell's counts
        times ``library_size``, or as ``log1p`` says.

        Raises
        ------
        ValueError
            If a gene, the batch, the decoder or the depth is unknown.

        Examples
        --------
        >>> model.get_normalized_expression(gene_list=["CD3D", "MS4A1"]).shape
        (700, 2)
        """
        if not (isinstance(library_size, str) and library_size == "observed"):
            if not isinstance(library_size, Real):
                raise ValueError(
                    f"library_size={library_size!r} must be one positive number or 'observed'."
                )
            library_size = check("library_size", library_size, PositiveFloat)
        if log1p and library_size != 1.0:
            raise ValueError("log1p=True is on a scale of its own: leave `library_size` out.")
        check_precision(precision)
        decoder_name = self._decoder(decoder)
        genes = self._genes(gene_list)
        genes_t = torch.as_tensor(genes, device=self.device)
        names = np.asarray(self.vocabulary.gene_ids)[genes]
        if transform_batch is not None and decoder_name != "bottleneck":
            raise ValueError(
                f"transform_batch={transform_batch!r} needs the bottleneck decoder: no other is "
                "conditioned on the batch."
            )
        batch_code = self._batch_code(transform_batch)
        registered, rows = self._rows(adata, indices)
        obs_names = registered.obs_names[rows]
        rows_per_chunk = self._batch_size(batch_size)
        batches = self._batches(adata, indices, batch_size, "Predicting", target_depth, depth)
        result = make_result((len(rows), len(genes)), out, "X", obs_names, names, rows_per_chunk)
        for place, batch in batches:
            if batch_code is not None:
                batch["categories"][:, 0] = batch_code
            predicted = self._predict(self._encode(batch, precision), genes_t, decoder_name)
            if not log1p:
                total = (
                    batch["library_size"][:, None] if library_size == "observed" else library_size
                )
                scale = batch.get("scale", 1e4)
                predicted = torch.expm1(predicted.clamp(min=0)) / scale * total
            result[place] = predicted.cpu().numpy()
        predicted = result.finish()
        if return_numpy or out is not None:
            return predicted
        return pd.DataFrame(predicted, index=obs_names, columns=names)

    def _predict(self, cells: EncodedCells, genes: Tensor, name: str) -> Tensor:
        """Predicted log-normalised expression, float32, shape ``(n_cells, n_genes)``."""
        decoder = self.module.decoders[name]
        n_cells = cells.latent_cz.shape[0]
        if name == "bottleneck":
            rates = self.module.net.bottleneck.log_rates(cells, self.module.positions)
            return torch.log1p(1e4 * rates[:, genes].exp())
        n_at_a_time = decoder.max_queries // n_cells if decoder.max_queries else len(genes)
        ends = torch.arange(n_cells + 1, device=genes.device, dtype=torch.int32)
        parts = [
            decoder(cells, self.module.positions, part.repeat(n_cells), ends * len(part))
            for part in genes.split(max(1, n_at_a_time))
        ]
        return torch.cat([part.float().view(n_cells, -1) for part in parts], dim=1)

    def denoise(
        self,
        adata: AnnData | MuData | None = None,
        target_depth: str | float | None = None,
        layer_added: str = "denoised",
        decoder: DecoderName | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Write predicted expression to a layer, at another read depth if the model knows depths.

        Parameters
        ----------
        adata, batch_size
            See :meth:`get_latent_representation`.
        target_depth
            Read depth to predict, for instance ``"f10"`` for ten times the counts of the cell, or
            ``"t4.5"``; see :meth:`get_latent_representation`.
        layer_added
            Layer to write: ``log1p`` of counts per 10,000, float32, not negative. Genes the model
            does not know are NaN.
        decoder
            See :meth:`get_normalized_expression`. By default the imputation decoder in a model
            that is aware of the read depth, else the bottleneck decoder.

        Raises
        ------
        ValueError
            If the layer holds the counts, or would take more than 8 GiB: then stream the genes
            you need with :meth:`get_normalized_expression` and ``out=``.

        Notes
        -----
        Hao et al. 2024, read-depth enhancement.

        Examples
        --------
        >>> model.denoise(adata)
        >>> adata.layers["denoised"].shape == adata.shape
        True
        """
        registered, rows = self._rows(adata, None)
        manager = self.get_anndata_manager(registered, required=True)
        if manager.data_registry[REGISTRY_KEYS.X_KEY].get("attr_key") == layer_added:
            raise ValueError(f"layer_added={layer_added!r} holds the counts; choose another name.")
        genes = np.asarray(
            manager.get_state_registry(REGISTRY_KEYS.X_KEY)[CountsField.COLUMN_TO_GENE_KEY]
        )
        known = np.flatnonzero(genes >= 0)
        if decoder is None and self.config_.read_depth_aware:
            decoder = list(self.module.decoders)[-1]  # the imputation decoder, if there is one
        layer = make_result(registered.shape, None, "X", registered.obs_names).finish()
        layer[:, genes < 0] = np.nan
        predicted = self.get_normalized_expression(
            adata,
            gene_list=np.asarray(self.vocabulary.gene_ids)[genes[known]].tolist(),
            decoder=decoder,
            batch_size=batch_size,
            return_numpy=True,
            log1p=True,
            target_depth=target_depth,
        )
        layer[:, known] = np.maximum(predicted, 0, out=predicted)
        registered.layers[layer_added] = layer
