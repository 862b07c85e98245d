"""What the encoder attends to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData

from .._logging import logger
from ..data.vocabulary import preview
from ..nn.attention import attention_among
from ..nn.ragged import lengths_of
from .batches import BatchesMixin


class AttentionMixin(BatchesMixin):
    """``get_attention``."""

    @torch.inference_mode()
    def get_attention(
        self,
        gene_list: Sequence[str],
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        layer: int = -1,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Return how much the encoder attends from gene to gene.

        Attention says what this network mixes where, no more: it is no causal or regulatory
        relation between genes, and another training finds other weights that predict as well.

        Parameters
        ----------
        gene_list
            Genes, best ones that the encoder reads (``model.input_genes``).
        adata, indices, batch_size
            See :meth:`get_latent_representation`.
        layer
            Layer of the encoder, from 0; -1 is the last one.

        Returns
        -------
        Data frame of shape ``(n_genes, n_genes)``: attention from the gene of the row to the gene
        of the column, averaged over the heads and over the cells in which both are expressed and
        read; NaN where there is no such cell. In a cell the attention of a gene to all tokens,
        the special ones included, sums to 1, of which only the genes asked for are shown.

        Raises
        ------
        ValueError
            If a gene is unknown, or there is no such layer.

        Examples
        --------
        >>> model.get_attention(["CD3D", "CD3E", "NKG7"]).round(2).shape
        (3, 3)
        """
        n_layers = self.config_.n_layers
        if not -n_layers <= layer < n_layers:
            raise ValueError(
                f"layer={layer} is not in the encoder, which has the layers 0 to {n_layers - 1}; "
                "-1 is the last one."
            )
        asked = self._genes(gene_list)
        genes, place_of_asked = np.unique(asked, return_inverse=True)
        names = np.asarray(self.vocabulary.gene_ids)
        unread = genes[~self.module.is_read.cpu().numpy()[genes]]
        if len(unread):
            logger.info(
                f"The encoder does not read {len(unread)} of {len(genes)} genes: "
                f"{preview(names[unread])}. Their attention is NaN; see `model.input_genes`."
            )
        places = self._places_among(genes)
        sums = np.zeros((len(genes), len(genes)))
        n_cells = np.zeros((len(genes), len(genes)), dtype=np.int64)
        for _, batch in self._batches(adata, indices, batch_size, "Reading attention"):
            inputs = self.module._get_inference_input(batch)
            x_td, cu_seqlens, gene_ids_t = self.module.net.embed(
                *(inputs[name] for name in ("counts", "gene_ids", "cu_seqlens", "library_size")),
                inputs.get("depths"),
                inputs.get("scale", 1e4),
            )
            q_the, k_the = self.module.net.encoder.queries_and_keys(x_td, cu_seqlens, layer)
            lengths = lengths_of(cu_seqlens).tolist()
            of_cells = (part.split(lengths) for part in (q_the, k_the, places[gene_ids_t]))
            for q, k, gene in zip(*of_cells, strict=True):
                chosen = torch.nonzero(gene >= 0)[:, 0]
                at = np.ix_(*2 * (gene[chosen].cpu().numpy(),))
                sums[at] += attention_among(q, k, chosen).cpu().numpy()
                n_cells[at] += 1
        mean = np.divide(sums, n_cells, out=np.full_like(sums, np.nan), where=n_cells > 0)
        mean = mean[np.ix_(place_of_asked, place_of_asked)].astype(np.float32)
        return pd.DataFrame(mean, index=names[asked], columns=names[asked])
