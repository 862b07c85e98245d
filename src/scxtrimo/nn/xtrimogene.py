"""The network on one page: tokens, encoder, cell vector, decoders."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .decoders import BottleneckDecoder, CrossAttentionDecoder, PerformerDecoder
from .embedding import TokenEmbedding, normalize_counts
from .encoded import EncodedCells, HiddenGenes
from .layers import Activation, Encoder
from .pooling import CellPooling, pool_tokens
from .ragged import prepend_tokens, to_tokens

ImputationDecoder = Literal["cross_attention", "performer"]


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
    bottleneck
        Whether there are a cell token, a learned pooling and a bottleneck decoder. Without them
        the latent representation is the published one, see :func:`~scxtrimo.nn.pool_tokens`.
    imputation_decoder
        ``"cross_attention"`` or, as published, ``"performer"``; ``None`` for no such decoder.
    n_decoder_hidden, n_decoder_layers, n_decoder_heads, decoder_head_width
        Width, depth, heads and width of a head (Performer only) of the imputation decoder.
    read_depth_aware
        Whether there are tokens T and S of the target and the source depth.
    n_categories
        Number of categories of each categorical covariate, such as the batch.
    n_covariate
        Width of the covariate embedding.
    activation, norm_first, dropout
        See :class:`~scxtrimo.nn.EncoderLayer`.
    seed
        Seed of the random features of the Performer.

    Notes
    -----
    Gong et al. 2023, figure 1; Hao et al. 2024 for T and S. The cell token and the bottleneck and
    cross-attention decoders are ours.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import XTrimoGeneNet
    >>> net = XTrimoGeneNet(n_genes=10)
    >>> counts, gene_ids = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 4, 9])
    >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
    >>> cells = net.encode(counts, gene_ids, cu_seqlens, library_size_c=torch.tensor([1.0, 5.0]))
    >>> cells.latent_cz.shape, net.gene_embeddings.shape
    (torch.Size([2, 32]), torch.Size([10, 64]))
    >>> queried, cu_queries = torch.tensor([1, 2, 3, 1]), torch.tensor([0, 3, 4])
    >>> net.imputation(cells, net.gene_embeddings, queried, cu_queries).shape
    torch.Size([4])
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
        bottleneck: bool = True,
        imputation_decoder: ImputationDecoder | None = "cross_attention",
        n_decoder_hidden: int = 64,
        n_decoder_layers: int = 1,
        n_decoder_heads: int = 4,
        decoder_head_width: int | None = None,
        read_depth_aware: bool = False,
        n_categories: tuple[int, ...] = (),
        n_covariate: int = 8,
        activation: Activation = "gelu",
        norm_first: bool = True,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.n_depth_tokens = 2 if read_depth_aware else 0
        self.n_special = self.n_depth_tokens + bottleneck
        self.embedding = TokenEmbedding(n_genes + self.n_depth_tokens, n_hidden, n_bins, bin_alpha)
        if bottleneck:
            self.cell_token = nn.Parameter(0.02 * torch.randn(n_hidden))
        self.encoder = Encoder(n_layers, n_hidden, n_heads, activation, norm_first, dropout)
        self.bottleneck: BottleneckDecoder | None = None
        if bottleneck:
            n_covariate = n_covariate if n_categories else 0
            self.pooling = CellPooling(n_hidden, n_pool, n_latent)
            self.covariates = nn.ModuleList(nn.Embedding(n, n_covariate) for n in n_categories)
            self.bottleneck = BottleneckDecoder(n_genes, n_hidden, n_latent, n_covariate)
        size = (n_decoder_hidden, n_hidden, n_decoder_layers, n_decoder_heads)
        self.imputation: PerformerDecoder | CrossAttentionDecoder | None = None
        if imputation_decoder == "performer":
            head_width = decoder_head_width or n_decoder_hidden // n_decoder_heads
            self.imputation = PerformerDecoder(*size, head_width, seed)
        elif imputation_decoder is not None:
            self.imputation = CrossAttentionDecoder(*size)

    @property
    def gene_embeddings(self) -> Tensor:
        """Gene embeddings of the vocabulary, shape ``(n_genes, n_hidden)``."""
        return self.embedding.gene.weight[: self.n_genes]

    def encode(
        self,
        counts_t: Tensor,
        gene_ids_t: Tensor,
        cu_seqlens: Tensor,
        library_size_c: Tensor,
        categories_cv: Tensor | None = None,
        depths_cd: Tensor | None = None,
        scale: float = 1e4,
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
        depths_cd
            Target and source depth of each cell, log10 of total counts, shape ``(n_cells, 2)``;
            needed by a network that is aware of the read depth.
        scale
            Total that the counts of a cell are scaled to before the logarithm.

        Returns
        -------
        The encoded cells. Only their ``covariates_ck`` depends on ``categories_cv``.

        Examples
        --------
        >>> import torch
        >>> from scxtrimo.nn import XTrimoGeneNet
        >>> net = XTrimoGeneNet(n_genes=10, read_depth_aware=True)
        >>> counts, gene_ids = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 4, 9])
        >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
        >>> cells = net.encode(
        ...     counts,
        ...     gene_ids,
        ...     cu_seqlens,
        ...     library_size_c=torch.tensor([1.0, 5.0]),
        ...     depths_cd=torch.tensor([[4.0, 3.0], [4.0, 3.0]]),
        ... )
        >>> cells.gene_ids_t  # cell, T and S come first
        tensor([-1, 10, 11,  0, -1, 10, 11,  4,  9])
        """
        x_td, cu_seqlens, ids_t = self.embed(
            counts_t, gene_ids_t, cu_seqlens, library_size_c, depths_cd, scale
        )
        zero_d = self.embedding.value.embed_each(library_size_c.new_zeros(1))[0]
        x_td = self.encoder(x_td, cu_seqlens)
        nothing_c0 = x_td.new_zeros(library_size_c.shape[0], 0)
        cells = EncodedCells(x_td, cu_seqlens, ids_t, nothing_c0, nothing_c0, zero_d)
        if self.bottleneck is None:
            return cells._replace(latent_cz=pool_tokens(cells, "all", self.n_special))
        return cells._replace(
            latent_cz=self.pooling(x_td, cu_seqlens),
            covariates_ck=self._embed_covariates(categories_cv, nothing_c0),
        )

    def embed(
        self,
        counts_t: Tensor,
        gene_ids_t: Tensor,
        cu_seqlens: Tensor,
        library_size_c: Tensor,
        depths_cd: Tensor | None = None,
        scale: float = 1e4,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the encoder reads: the tokens of the visible genes, special ones first.

        Parameters
        ----------
        counts_t, gene_ids_t, cu_seqlens, library_size_c, depths_cd, scale
            See :meth:`encode`.

        Returns
        -------
        Tokens of shape ``(n_tokens, n_hidden)``, the boundaries of the cells in them, and the
        position of every token in the gene embeddings, -1 for the cell token.

        Examples
        --------
        >>> import torch
        >>> from scxtrimo.nn import XTrimoGeneNet
        >>> net = XTrimoGeneNet(n_genes=10)
        >>> counts, gene_ids = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 4, 9])
        >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
        >>> tokens, cu_seqlens, positions = net.embed(
        ...     counts, gene_ids, cu_seqlens, library_size_c=torch.tensor([1.0, 5.0])
        ... )
        >>> positions
        tensor([-1,  0, -1,  4,  9])
        """
        n_cells = library_size_c.shape[0]
        library_size_t = to_tokens(library_size_c, cu_seqlens, counts_t.shape[0])
        values_t, ids_t = normalize_counts(counts_t, library_size_t, scale), gene_ids_t
        if self.n_depth_tokens:
            assert depths_cd is not None
            depth_ids_n = torch.arange(self.n_genes, self.n_genes + 2, device=ids_t.device)
            ids_t, _ = prepend_tokens(ids_t, depth_ids_n.expand(n_cells, -1), cu_seqlens)
            values_t, cu_seqlens = prepend_tokens(values_t, depths_cd, cu_seqlens)
        x_td = self.embedding(values_t, ids_t)
        if self.bottleneck is not None:
            no_id_c1 = ids_t.new_full((n_cells, 1), -1)
            ids_t, _ = prepend_tokens(ids_t, no_id_c1, cu_seqlens)
            cell_c1d = self.cell_token.expand(n_cells, 1, -1)
            x_td, cu_seqlens = prepend_tokens(x_td, cell_c1d, cu_seqlens)
        return x_td, cu_seqlens, ids_t

    def hide(
        self, cells: EncodedCells, values_t: Tensor, gene_ids_t: Tensor, cu_seqlens: Tensor
    ) -> EncodedCells:
        """Tell a Performer which genes the encoder did not see because they are masked.

        Parameters
        ----------
        cells
            The encoded cells.
        values_t
            What to put in place of the values: NaN for the mask, or a log-normalised value.
        gene_ids_t, cu_seqlens
            Positions of the masked genes and boundaries of the cells.

        Returns
        -------
        The cells with ``hidden``.

        Examples
        --------
        >>> import torch
        >>> from scxtrimo.nn import XTrimoGeneNet
        >>> net = XTrimoGeneNet(n_genes=10, imputation_decoder="performer")
        >>> counts, gene_ids = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 4, 9])
        >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
        >>> library_size = torch.tensor([1.0, 5.0])
        >>> cells = net.encode(counts, gene_ids, cu_seqlens, library_size)
        >>> mask, masked_genes = torch.full((2,), torch.nan), torch.tensor([7, 8])
        >>> cells = net.hide(cells, mask, masked_genes, torch.tensor([0, 1, 2]))
        >>> cells.hidden.gene_ids_t
        tensor([7, 8])
        """
        assert isinstance(self.imputation, PerformerDecoder)
        known_td = self.embedding.value(values_t.nan_to_num(0.0))
        tokens_td = torch.where(values_t.isnan()[:, None], self.imputation.mask, known_td)
        return cells._replace(hidden=HiddenGenes(tokens_td, gene_ids_t, cu_seqlens))

    def _embed_covariates(self, categories_cv: Tensor | None, nothing_c0: Tensor) -> Tensor:
        """Sum the embeddings of all covariates; nothing if the network has none."""
        assert self.bottleneck is not None
        n_covariate = self.bottleneck.covariate_loadings.shape[1]
        covariates_ck = nothing_c0.new_zeros(nothing_c0.shape[0], n_covariate)
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
