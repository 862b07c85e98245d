"""The network on one page: tokens, encoder, cell vector, decoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .decoder import BottleneckDecoder, CrossAttentionDecoder, EncodedCells
from .embedding import TokenEmbedding, normalize_counts
from .encoder import Activation, Encoder
from .ragged import cells_of, max_per_cell, mean_per_cell, prepend_token


class CellPooling(nn.Module):
    """Summarise a cell's tokens as its latent representation.

    Parameters
    ----------
    n_hidden
        Width of a token.
    n_pool
        Width of the inner layer.
    n_latent
        Dimensions of the latent representation.
    """

    def __init__(self, n_hidden: int, n_pool: int, n_latent: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(3 * n_hidden, n_pool), nn.GELU(), nn.Linear(n_pool, n_latent)
        )

    def forward(self, tokens_td: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Return ``(n_cells, n_latent)`` from the cell token, mean and maximum of all tokens."""
        summary = [
            tokens_td.index_select(0, cu_seqlens[:-1]),
            mean_per_cell(tokens_td, cu_seqlens),
            max_per_cell(tokens_td, cu_seqlens),
        ]
        return self.mlp(torch.cat(summary, dim=-1))


class XTrimoGeneNet(nn.Module):
    """Asymmetric masked autoencoder over the genes of a cell.

    The encoder sees the expressed, unmasked genes of a cell and nothing else; the decoders
    predict any gene of the vocabulary from what it found.

    Parameters
    ----------
    n_genes
        Number of genes in the vocabulary.
    n_hidden, n_layers, n_heads
        Width, depth and heads of the encoder.
    n_bins, bin_alpha
        Auto-discretisation, see :class:`~scxtrimo.nn.AutoDiscretization`.
    n_pool, n_latent
        Inner width and output of the cell pooling.
    n_decoder_hidden, n_decoder_layers, n_decoder_heads
        Width, depth and heads of the cross-attention decoder.
    n_categories
        Number of categories of each categorical covariate, such as the batch.
    n_covariate
        Width of the covariate embedding.
    activation, norm_first, dropout
        See :class:`~scxtrimo.nn.EncoderLayer`.

    Notes
    -----
    Gong et al. 2023, figure 1. A token for the whole cell is put in front of the genes; the
    bottleneck decoder is ours, the cross-attention decoder takes the place of the published
    Performer.
    """

    def __init__(
        self,
        n_genes: int,
        *,
        n_hidden: int = 64,
        n_layers: int = 2,
        n_heads: int = 4,
        n_bins: int = 100,
        bin_alpha: float = 1.0,
        n_pool: int = 128,
        n_latent: int = 32,
        n_decoder_hidden: int = 64,
        n_decoder_layers: int = 1,
        n_decoder_heads: int = 4,
        n_categories: tuple[int, ...] = (),
        n_covariate: int = 8,
        activation: Activation = "gelu",
        norm_first: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(n_genes, n_hidden, n_bins, bin_alpha)
        self.cell_token = nn.Parameter(0.02 * torch.randn(n_hidden))
        self.encoder = Encoder(n_layers, n_hidden, n_heads, activation, norm_first, dropout)
        self.pooling = CellPooling(n_hidden, n_pool, n_latent)
        n_covariate = n_covariate if n_categories else 0
        self.covariates = nn.ModuleList(nn.Embedding(n, n_covariate) for n in n_categories)
        self.bottleneck = BottleneckDecoder(n_genes, n_hidden, n_latent, n_covariate)
        self.cross_attention = CrossAttentionDecoder(
            n_decoder_hidden, n_hidden, n_decoder_layers, n_decoder_heads
        )

    @property
    def gene_embeddings(self) -> Tensor:
        """Gene embeddings of the vocabulary, shape ``(n_genes, n_hidden)``."""
        return self.embedding.gene.weight

    def encode(
        self,
        counts_t: Tensor,
        gene_ids_t: Tensor,
        cu_seqlens: Tensor,
        library_size_c: Tensor,
        categories_cv: Tensor | None = None,
    ) -> EncodedCells:
        """Encode the visible genes of a ragged batch of cells.

        Parameters
        ----------
        counts_t
            Raw counts of the visible genes of all cells, float, shape ``(n_tokens,)``.
        gene_ids_t
            Positions of these genes in the vocabulary, shape ``(n_tokens,)``.
        cu_seqlens
            Cell boundaries, shape ``(n_cells + 1,)``.
        library_size_c
            Total counts of each cell, masked genes included, shape ``(n_cells,)``.
        categories_cv
            Categories of the covariates, shape ``(n_cells, n_covariates)``; -1 stands for a
            category that was not trained on and is given the average of the trained ones.

        Returns
        -------
        The encoded cells. Only their ``covariates_ck`` depends on ``categories_cv``.
        """
        library_size_t = library_size_c[cells_of(cu_seqlens, counts_t.shape[0])]
        x_td = self.embedding(normalize_counts(counts_t, library_size_t), gene_ids_t)
        x_td, cu_tokens = prepend_token(x_td, self.cell_token, cu_seqlens)
        x_td = self.encoder(x_td, cu_tokens)
        latent_cz = self.pooling(x_td, cu_tokens)
        return EncodedCells(x_td, cu_tokens, latent_cz, self._embed(categories_cv, latent_cz))

    def _embed(self, categories_cv: Tensor | None, latent_cz: Tensor) -> Tensor:
        """Sum the embeddings of all covariates; nothing if the network has none."""
        n_covariate = self.bottleneck.covariate_loadings.shape[1]
        covariates_ck = latent_cz.new_zeros(latent_cz.shape[0], n_covariate)
        for i, table in enumerate(self.covariates):
            assert isinstance(table, nn.Embedding)
            average_k = table.weight.mean(0)
            if categories_cv is None:
                covariates_ck = covariates_ck + average_k
                continue
            category_c = categories_cv[:, i]
            known_ck = table(category_c.clamp(min=0))
            covariates_ck = covariates_ck + torch.where(
                category_c[:, None] < 0, average_k, known_ck
            )
        return covariates_ck
