"""Decoders: from encoded cells to the expression of any gene.

All decoders share one interface, :class:`Decoder`: given encoded cells and, per cell, the genes
that are asked for, return the predicted log-normalised expression of exactly these. Nothing is
evaluated where nothing is asked.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import CrossAttention
from .encoded import EncodedCells
from .layers import RECOMPUTED_FROM, FeedForward
from .performer import Performer
from .ragged import CellBoundaries, cells_of, lengths_of, select_tokens


class Decoder(nn.Module):
    """Interface of all decoders.

    Attributes
    ----------
    max_queries
        How many queries may be asked at a time to bound the memory, if it pays to ask for some
        at a time.

    Examples
    --------
    >>> from scxtrimo.nn import BottleneckDecoder, CrossAttentionDecoder, Decoder
    >>> all(issubclass(cls, Decoder) for cls in (BottleneckDecoder, CrossAttentionDecoder))
    True
    """

    max_queries: int | None = None

    def forward(
        self, cells: EncodedCells, genes_gd: Tensor, gene_ids_t: Tensor, cu_queries: Tensor
    ) -> Tensor:
        """Predict the log-normalised expression of the queried genes.

        Parameters
        ----------
        cells
            The encoded cells.
        genes_gd
            Embeddings of the whole vocabulary, and of the depth tokens if there are any, shape
            ``(n_positions, n_hidden)``.
        gene_ids_t
            Queried genes of all cells, shape ``(n_queries,)``.
        cu_queries
            Boundaries of each cell's queries, shape ``(n_cells + 1,)``.

        Returns
        -------
        Predictions on the scale ``log1p(counts per 10,000)``, shape ``(n_queries,)``.
        """
        raise NotImplementedError


class BottleneckDecoder(Decoder):
    r"""Score a cell vector against gene queries; the scores are log-rates of counts.

    .. math::
        \log \rho_{cg} = \log\mathrm{softmax}_g(q_g^\top [z_c, k_c] + b_g)

    with :math:`q_g` linear in the gene embedding. As the cell vector is all the decoder sees, it
    has to describe the whole cell: this decoder is what makes the cell vector.

    Parameters
    ----------
    n_genes
        Number of genes in the vocabulary.
    n_hidden
        Width of the gene embeddings.
    n_latent
        Dimensions of the cell vector.
    n_covariate
        Width of the covariate embedding; its gene loadings are free parameters.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import XTrimoGeneNet
    >>> net = XTrimoGeneNet(n_genes=10)
    >>> counts, gene_ids = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 4, 9])
    >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
    >>> cells = net.encode(counts, gene_ids, cu_seqlens, library_size_c=torch.tensor([1.0, 5.0]))
    >>> net.bottleneck.log_rates(cells, net.gene_embeddings).shape
    torch.Size([2, 10])
    >>> queried, cu_queries = torch.tensor([1, 2, 3, 1]), torch.tensor([0, 3, 4])
    >>> net.bottleneck(cells, net.gene_embeddings, queried, cu_queries).shape
    torch.Size([4])
    """

    def __init__(self, n_genes: int, n_hidden: int, n_latent: int, n_covariate: int = 0) -> None:
        super().__init__()
        self.to_query = nn.Linear(n_hidden, n_latent, bias=False)
        self.covariate_loadings = nn.Parameter(torch.zeros(n_genes, n_covariate))
        self.log_baseline = nn.Parameter(torch.zeros(n_genes))

    def log_rates(self, cells: EncodedCells, genes_gd: Tensor) -> Tensor:
        """Return the logarithm of the fraction of a cell's counts that each gene has.

        Parameters
        ----------
        cells, genes_gd
            See :meth:`Decoder.forward`.

        Returns
        -------
        Tensor of shape ``(n_cells, n_genes)``.
        """
        # Scores in bfloat16 would be off by several per cent of a rate.
        with torch.autocast(genes_gd.device.type, enabled=False):
            genes_gd = genes_gd[: len(self.log_baseline)]  # no depth tokens
            query_gz = torch.cat([self.to_query(genes_gd), self.covariate_loadings], dim=1)
            cell_cz = torch.cat([cells.latent_cz, cells.covariates_ck], dim=1).to(query_gz.dtype)
            scores_cg = torch.addmm(self.log_baseline, cell_cz, query_gz.t())
            return F.log_softmax(scores_cg, dim=-1)

    def forward(
        self, cells: EncodedCells, genes_gd: Tensor, gene_ids_t: Tensor, cu_queries: Tensor
    ) -> Tensor:
        """Predict the queried genes.

        Parameters
        ----------
        cells, genes_gd, gene_ids_t, cu_queries
            See :meth:`Decoder.forward`.

        Returns
        -------
        Predictions on the scale ``log1p(counts per 10,000)``, shape ``(n_queries,)``.
        """
        cells_t = cells_of(cu_queries, gene_ids_t.shape[0])
        return torch.log1p(1e4 * self.log_rates(cells, genes_gd)[cells_t, gene_ids_t].exp())


class CrossAttentionDecoder(Decoder):
    """Queries of masked genes attend to the encoded tokens of their cell.

    Parameters
    ----------
    n_hidden
        Width of the decoder.
    n_context
        Width of the encoded tokens and of the gene embeddings.
    n_layers, n_heads
        Depth and number of heads.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import XTrimoGeneNet
    >>> net = XTrimoGeneNet(n_genes=10, imputation_decoder="cross_attention")
    >>> counts, gene_ids = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 4, 9])
    >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
    >>> cells = net.encode(counts, gene_ids, cu_seqlens, library_size_c=torch.tensor([1.0, 5.0]))
    >>> queried, cu_queries = torch.tensor([1, 2, 3, 1]), torch.tensor([0, 3, 4])
    >>> net.imputation(cells, net.gene_embeddings, queried, cu_queries).shape
    torch.Size([4])
    """

    max_queries = 2**15

    def __init__(self, n_hidden: int, n_context: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.to_query = nn.Linear(n_context, n_hidden)
        self.layers = nn.ModuleList(
            CrossAttentionLayer(n_hidden, n_context, n_heads) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(n_hidden)
        self.to_value = nn.Linear(n_hidden, 1)

    def forward(
        self, cells: EncodedCells, genes_gd: Tensor, gene_ids_t: Tensor, cu_queries: Tensor
    ) -> Tensor:
        """Predict the queried genes.

        Parameters
        ----------
        cells, genes_gd, gene_ids_t, cu_queries
            See :meth:`Decoder.forward`.

        Returns
        -------
        Predictions on the scale ``log1p(counts per 10,000)``, shape ``(n_queries,)``.
        """
        if len(gene_ids_t) > len(genes_gd):  # every gene is asked for in several cells
            x_td = F.embedding(gene_ids_t, self.to_query(genes_gd))
        else:
            x_td = self.to_query(F.embedding(gene_ids_t, genes_gd))
        queries, context = CellBoundaries.of(cu_queries), CellBoundaries.of(cells.cu_seqlens)
        for layer in self.layers:
            x_td = layer(x_td, cells.tokens_td, queries, context)
        return self.to_value(self.norm(x_td)).squeeze(-1)


class CrossAttentionLayer(nn.Module):
    """Cross-attention and feed-forward, pre-norm.

    Parameters
    ----------
    n_hidden, n_context, n_heads
        See :class:`CrossAttentionDecoder`.
    """

    def __init__(self, n_hidden: int, n_context: int, n_heads: int) -> None:
        super().__init__()
        self.attention = CrossAttention(n_hidden, n_context, n_heads)
        self.feed_forward = FeedForward(n_hidden, recompute=n_hidden >= RECOMPUTED_FROM)
        self.attention_norm = nn.LayerNorm(n_hidden)
        self.feed_forward_norm = nn.LayerNorm(n_hidden)

    def forward(
        self, x_td: Tensor, context_sd: Tensor, queries: CellBoundaries, context: CellBoundaries
    ) -> Tensor:
        """Return the queries after one layer, shape ``(n_queries, n_hidden)``."""
        x_td = x_td + self.attention(self.attention_norm(x_td), context_sd, queries, context)
        return x_td + self.feed_forward(self.feed_forward_norm(x_td))


class PerformerDecoder(Decoder):
    """All genes of a cell attend to each other, as published.

    Encoded genes stand where they are in the vocabulary, all others as zeros or masks; the gene
    embedding is added again. Linear in the number of genes, and by far the most expensive decoder.

    Parameters
    ----------
    n_hidden
        Width of the decoder.
    n_context
        Width of the encoded tokens and of the gene embeddings.
    n_layers, n_heads, head_width, seed
        See :class:`~scxtrimo.nn.Performer`.

    Notes
    -----
    Gong et al. 2023, section 3.4.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import XTrimoGeneNet
    >>> net = XTrimoGeneNet(n_genes=10, imputation_decoder="performer")
    >>> counts, gene_ids = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 4, 9])
    >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
    >>> cells = net.encode(counts, gene_ids, cu_seqlens, library_size_c=torch.tensor([1.0, 5.0]))
    >>> queried, cu_queries = torch.tensor([1, 2, 3, 1]), torch.tensor([0, 3, 4])
    >>> net.imputation(cells, net.gene_embeddings, queried, cu_queries).shape
    torch.Size([4])
    >>> embedded = net.imputation.embed(cells, net.gene_embeddings, queried, cu_queries)
    >>> [x_qd.shape for x_qd in embedded]
    [torch.Size([3, 64]), torch.Size([1, 64])]
    """

    def __init__(
        self,
        n_hidden: int,
        n_context: int,
        n_layers: int,
        n_heads: int,
        head_width: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.randn(n_context))  # in place of a value that is hidden
        self.to_hidden = nn.Linear(n_context, n_hidden)
        self.performer = Performer(n_layers, n_hidden, n_heads, head_width, seed)
        self.norm = nn.LayerNorm(n_hidden)
        self.to_value = nn.Linear(n_hidden, 1)

    def embed(
        self, cells: EncodedCells, genes_gd: Tensor, gene_ids_t: Tensor, cu_queries: Tensor
    ) -> Iterator[Tensor]:
        """Yield gene embeddings in the context of one cell after the other.

        Parameters
        ----------
        cells, genes_gd, gene_ids_t, cu_queries
            See :meth:`Decoder.forward`.

        Yields
        ------
        Tensor of shape ``(n_queries of the cell, n_hidden)``.
        """
        # Most genes of most cells are zeros, which are all the same before the first layer.
        zeros_gd = self.to_hidden(genes_gd + cells.zero_d)
        known = [(cells.tokens_td, cells.gene_ids_t, cells.cu_seqlens)]
        if cells.hidden is not None:
            known.append(cells.hidden)
        inputs = [self._split(genes_gd, *part) for part in known]
        queries = gene_ids_t.split(lengths_of(cu_queries).tolist())
        for rows_q, *parts in zip(queries, *inputs, strict=True):
            if not len(rows_q):
                yield zeros_gd[:0]
                continue
            x_gd = zeros_gd
            for x_td, ids_t in parts:
                x_gd = x_gd.index_copy(0, ids_t, x_td.to(x_gd.dtype))
            yield self.norm(self.performer(x_gd, rows_q))

    def _split(
        self, genes_gd: Tensor, tokens_td: Tensor, ids_t: Tensor, cu_seqlens: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Bring tokens to the width of the decoder, one entry per cell."""
        is_gene = ids_t >= 0  # the cell token has no place among the genes
        cu_genes = select_tokens(is_gene, cu_seqlens)
        ids_t = ids_t[is_gene]
        x_td = self.to_hidden(tokens_td[is_gene] + F.embedding(ids_t, genes_gd))
        n = lengths_of(cu_genes).tolist()
        return list(zip(x_td.split(n), ids_t.split(n), strict=True))

    def forward(
        self, cells: EncodedCells, genes_gd: Tensor, gene_ids_t: Tensor, cu_queries: Tensor
    ) -> Tensor:
        """Predict the queried genes.

        Parameters
        ----------
        cells, genes_gd, gene_ids_t, cu_queries
            See :meth:`Decoder.forward`.

        Returns
        -------
        Predictions on the scale ``log1p(counts per 10,000)``, shape ``(n_queries,)``.
        """
        embedded = self.embed(cells, genes_gd, gene_ids_t, cu_queries)
        return torch.cat([self.to_value(x_qd).squeeze(-1) for x_qd in embedded])
