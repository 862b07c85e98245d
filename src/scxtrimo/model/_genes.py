"""Gene embeddings, static and in the context of cells."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from torch import Tensor

from ..nn.decoders import PerformerDecoder
from ..nn.ragged import cells_of
from ._results import make_result
from .batches import BatchesMixin, Depth

GENES_PER_BATCH = 2**17


class GeneEmbeddingsMixin(BatchesMixin):
    """Gene embeddings."""

    def get_gene_embeddings(self, gene_list: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the gene embeddings of the vocabulary, the same for all cells.

        Parameters
        ----------
        gene_list
            Genes; by default all.

        Returns
        -------
        Data frame of shape ``(n_genes, n_hidden)``, genes as index.

        Examples
        --------
        >>> model.get_gene_embeddings(["CD3D", "CD3E", "MS4A1"]).T.corr().shape
        (3, 3)
        """
        genes = self._genes(gene_list)
        weights = self.module.net.gene_embeddings.detach().float().cpu().numpy()[genes]
        return pd.DataFrame(weights, index=np.asarray(self.vocabulary.gene_ids)[genes])

    @torch.inference_mode()
    def get_contextual_gene_embeddings(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        average: bool = True,
        batch_size: int | None = None,
        source: Literal["encoder", "decoder"] | None = None,
        target_depth: str | float | None = None,
        depth: Depth = "cell",
        out: str | os.PathLike | None = None,
    ) -> pd.DataFrame | np.ndarray:
        """Return gene embeddings in the context of cells.

        Only the cells and genes asked for are ever held.

        Parameters
        ----------
        adata, indices, target_depth, depth
            See :meth:`get_latent_representation`.
        gene_list
            Genes; by default all.
        average
            Average over the cells, instead of one embedding per cell.
        batch_size
            Cells per forward pass.
        source
            ``"encoder"``: the encoder's output at the genes a cell expresses. ``"decoder"``: the
            output of a Performer decoder at all genes, which is the published gene embedding and
            the default where there is such a decoder.
        out
            Path of a zarr store to stream the embeddings of single cells to, as
            ``obsm["gene_embeddings"]`` of an AnnData; its ``uns["genes"]`` names the genes.

        Returns
        -------
        If averaged, a data frame of shape ``(n_genes, n_hidden)``; else a float32 array of shape
        ``(n_cells, n_genes, n_hidden)``. From the encoder, NaN where a gene is not expressed or
        not among the genes it reads (``model.input_genes``).

        Raises
        ------
        ValueError
            If a gene is unknown, the array would take more than 8 GiB, or there is no such source.

        Examples
        --------
        >>> model.get_contextual_gene_embeddings(gene_list=["CD3D"]).shape
        (1, 32)
        """
        has_performer = isinstance(self.module.net.imputation, PerformerDecoder)
        source = source or ("decoder" if has_performer else "encoder")
        if source not in ("encoder", "decoder") or (source == "decoder" and not has_performer):
            raise ValueError(
                f"source={source!r} must be 'encoder', or 'decoder' in a model with "
                "imputation_decoder='performer'."
            )
        if average and out is not None:
            raise ValueError("out= is for embeddings of single cells: `average=False`.")
        asked = self._genes(gene_list)
        names = np.asarray(self.vocabulary.gene_ids)[asked]
        genes, place_of_asked = np.unique(asked, return_inverse=True)
        registered, rows = self._rows(adata, indices)
        config = self.config_
        n_hidden = config.n_decoder_hidden if source == "decoder" else config.n_hidden
        if batch_size is None:
            batch_size = int(np.clip(GENES_PER_BATCH // len(genes), 1, self._batch_size(None)))
        batches = self._batches(adata, indices, batch_size, "Embedding genes", target_depth, depth)
        embed = self._decoded_genes if source == "decoder" else self._encoded_genes
        parts = ((place, embed(batch, genes)) for place, batch in batches)
        if average:
            mean = _mean(parts, len(genes), n_hidden)
            return pd.DataFrame(mean[place_of_asked], index=names)
        shape = (len(rows), len(asked), n_hidden)
        obs_names = registered.obs_names[rows]
        result = make_result(
            shape,
            out,
            "obsm/gene_embeddings",
            obs_names,
            rows_per_chunk=batch_size,
            uns={"genes": names},
        )
        for place, (cell, gene, embeddings) in parts:
            n_cells = place.stop - place.start
            chunk = np.full((n_cells, len(genes), n_hidden), np.nan, dtype=np.float32)
            chunk[cell.cpu().numpy(), gene.cpu().numpy()] = embeddings.float().cpu().numpy()
            result[place] = chunk[:, place_of_asked]
        return result.finish()

    def _encoded_genes(
        self, batch: dict[str, Tensor], genes: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return cell, position in ``genes`` and embedding of every gene that is expressed."""
        cells = self._encode(batch)
        gene = self._places_among(genes)[cells.gene_ids_t]
        wanted = gene >= 0
        cell = cells_of(cells.cu_seqlens, len(gene))
        return cell[wanted], gene[wanted], cells.tokens_td[wanted]

    def _decoded_genes(
        self, batch: dict[str, Tensor], genes: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return cell, position in ``genes`` and embedding of every gene."""
        cells = self._encode(batch)
        n_cells, n_genes = len(batch["cell_ids"]), len(genes)
        wanted = torch.as_tensor(genes, device=self.device)
        ends = n_genes * torch.arange(n_cells + 1, device=self.device, dtype=torch.int32)
        decoder = self.module.net.imputation
        embedded = decoder.embed(cells, self.module.positions, wanted.repeat(n_cells), ends)
        gene = torch.arange(n_genes, device=self.device).repeat(n_cells)
        return cells_of(ends, len(gene)), gene, torch.cat(list(embedded))


def _mean(
    parts: Iterator[tuple[slice, tuple[Tensor, Tensor, Tensor]]], n_genes: int, n_hidden: int
) -> np.ndarray:
    """Average embeddings over cells; NaN for a gene that no cell has."""
    sums = torch.zeros(n_genes, n_hidden, dtype=torch.float64)
    counts = torch.zeros(n_genes, dtype=torch.int64)
    for _, (_, gene, embeddings) in parts:
        gene = gene.cpu()
        sums.index_add_(0, gene, embeddings.cpu().double())
        counts.index_add_(0, gene, torch.ones_like(gene))
    mean = torch.where(counts[:, None] > 0, sums / counts[:, None], torch.nan)
    return mean.float().numpy()
