"""From the bulk expression of a cell line to a vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn.embedding import TokenEmbedding
from ..nn.layers import Encoder
from ..nn.ragged import max_per_cell, mean_per_cell


class LineTower(nn.Module):
    """xTrimoGene's encoder in bulk mode: every measured gene of a cell line is a token.

    A token is the sum of the value (auto-discretised), the gene, and the gene times the value. The
    mean of the last, which is a principal component where gene embeddings are those of a PCA, goes
    around the encoder as well.

    Parameters
    ----------
    n_genes
        Genes the model reads.
    n_hidden, n_layers, n_heads, n_bins
        See :class:`Encoder` and :class:`~scxtrimo.nn.AutoDiscretization`.
    n_out
        Width of the result.
    n_lines
        Number of known lines, of which each has a memory; 0 for none.
    memory_dropout
        How often the memory of a line is left out in training.
    dropout
        Dropout of the encoder.

    Notes
    -----
    Single cells have tokens of their expressed genes only (Gong et al. 2023). In bulk a zero is a
    measurement, so that it has a token; genes that a panel lacks have none.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.drugs.lines import LineTower
    >>> tower = LineTower(n_genes=10, n_hidden=8, n_layers=1, n_heads=2, n_bins=10, n_out=16)
    >>> lines = {
    ...     "values_t": torch.randn(20),
    ...     "gene_ids_t": torch.arange(10).repeat(2),
    ...     "cu_seqlens": torch.tensor([0, 10, 20], dtype=torch.int32),
    ...     "known_l": torch.tensor([-1, -1]),
    ... }
    >>> tower(lines).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        n_genes: int,
        n_hidden: int,
        n_layers: int,
        n_heads: int,
        n_bins: int,
        n_out: int,
        n_lines: int = 0,
        memory_dropout: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.memory_dropout = memory_dropout
        self.tokens = TokenEmbedding(n_genes, n_hidden, n_bins)
        self.encoder = Encoder(n_layers, n_hidden, n_heads, dropout=dropout)
        self.pooled = nn.Linear(2 * n_hidden, n_out)
        self.linear = nn.Linear(n_hidden, n_out)
        self.norm = nn.LayerNorm(n_out)
        self.memory = nn.Embedding(n_lines, n_out) if n_lines else None

    def forward(self, lines: dict[str, Tensor]) -> Tensor:
        """Return the vectors of lines.

        Parameters
        ----------
        lines
            ``values_t``, standardised expression; ``gene_ids_t``, int64; ``cu_seqlens``, the
            boundaries of the lines, int32; ``known_l``, places in the memory, -1 for new lines.

        Returns
        -------
        Tensor of shape ``(n_lines, n_out)``.
        """
        values_t, genes_t, cu_seqlens = lines["values_t"], lines["gene_ids_t"], lines["cu_seqlens"]
        linear_td = values_t[:, None] * self.tokens.gene(genes_t)
        x_td = self.encoder(self.tokens(values_t, genes_t) + linear_td, cu_seqlens)
        summary_ld = torch.cat(
            [mean_per_cell(x_td, cu_seqlens), max_per_cell(x_td, cu_seqlens)], dim=1
        )
        # A mean over the genes that are there estimates the one over all.
        component_ld = mean_per_cell(linear_td, cu_seqlens)
        component_ld = component_ld * self.tokens.gene.num_embeddings**0.5
        x_lh = 0.3 * self.pooled(summary_ld) + self.linear(component_ld)
        if self.memory is not None:
            known_l = lines["known_l"]
            is_known_l = known_l >= 0
            if self.training:
                is_known_l = is_known_l & (
                    torch.rand(len(known_l), device=known_l.device) >= self.memory_dropout
                )
            x_lh = x_lh + self.memory(known_l.clamp(min=0)) * is_known_l[:, None]
        return self.norm(x_lh)
