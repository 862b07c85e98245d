"""xTrimoGene as published: post-norm encoder, Performer decoder over all genes."""

from __future__ import annotations

from torch import Tensor, nn

from .embedding import TokenEmbedding
from .encoder import Encoder
from .performer import Performer


class PublishedNet(nn.Module):
    """The published network, cell by cell in the decoder.

    The two positions after the last gene are the tokens of the target and the source depth, T and
    S: log10 of the total counts that are asked for and that were measured.

    Parameters
    ----------
    n_genes
        Number of genes, without T and S.
    n_hidden, n_layers, n_heads
        Width, depth and heads of the encoder.
    n_bins, bin_alpha
        See :class:`~scxtrimo.nn.AutoDiscretization`.
    n_decoder_hidden, n_decoder_layers, n_decoder_heads, decoder_head_width
        Width, depth, heads and width of a head of the decoder.
    norm_first
        Pre-norm instead of post-norm encoder.

    Notes
    -----
    Gong et al. 2023, figure 1; Hao et al. 2024 for T and S.
    """

    def __init__(
        self,
        n_genes: int,
        *,
        n_hidden: int,
        n_layers: int,
        n_heads: int,
        n_bins: int,
        bin_alpha: float,
        n_decoder_hidden: int,
        n_decoder_layers: int,
        n_decoder_heads: int,
        decoder_head_width: int,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.embedding = TokenEmbedding(n_genes + 3, n_hidden, n_bins, bin_alpha)
        self.encoder = Encoder(n_layers, n_hidden, n_heads, "relu", norm_first)
        self.to_decoder = nn.Linear(n_hidden, n_decoder_hidden)
        self.decoder = Performer(
            n_decoder_layers, n_decoder_hidden, n_decoder_heads, decoder_head_width
        )
        self.norm = nn.LayerNorm(n_decoder_hidden)
        self.to_value = nn.Linear(n_decoder_hidden, 1)

    def encode(self, values_t: Tensor, gene_ids_t: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Encode the expressed genes and the depth tokens of all cells.

        Parameters
        ----------
        values_t
            Log-normalised expression; log10 of total counts at the positions of T and S.
        gene_ids_t
            Positions; ``n_genes`` is T and ``n_genes + 1`` is S.
        cu_seqlens
            Cell boundaries.

        Returns
        -------
        Encoded tokens, shape ``(n_tokens, n_hidden)``.
        """
        return self.encoder(self.embedding(values_t, gene_ids_t), cu_seqlens)

    def decode(self, tokens_sd: Tensor, gene_ids_s: Tensor) -> Tensor:
        """Embed all genes of one cell.

        Parameters
        ----------
        tokens_sd, gene_ids_s
            Encoded tokens of the cell and their positions.

        Returns
        -------
        Tensor of shape ``(n_genes + 2, n_decoder_hidden)``; its last two rows are T and S.
        """
        n_positions = self.n_genes + 2
        zero_d = self.embedding.value(tokens_sd.new_zeros(1))
        x_gd = zero_d.expand(n_positions, -1).index_copy(0, gene_ids_s, tokens_sd)
        x_gd = self.to_decoder(x_gd + self.embedding.gene.weight[:n_positions])
        return self.norm(self.decoder(x_gd))

    def predict(self, embeddings_gd: Tensor) -> Tensor:
        """Predict log-normalised expression from :meth:`decode`, shape ``(n_genes + 2,)``."""
        return self.to_value(embeddings_gd).squeeze(-1)
