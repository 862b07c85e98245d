"""From the encoded tokens of a cell to one vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .ragged import drop_first_tokens, max_per_cell, mean_per_cell

if TYPE_CHECKING:
    from .encoded import EncodedCells

POOLS = ("all", "max", "mean", "s", "t")


class CellPooling(nn.Module):
    """Summarise a cell's tokens as its cell vector.

    Parameters
    ----------
    n_hidden
        Width of a token.
    n_pool
        Width of the inner layer.
    n_latent
        Dimensions of the cell vector.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import CellPooling
    >>> pooling = CellPooling(n_hidden=8, n_pool=16, n_latent=4)
    >>> pooling(torch.randn(5, 8), torch.tensor([0, 2, 5])).shape
    torch.Size([2, 4])
    """

    def __init__(self, n_hidden: int, n_pool: int, n_latent: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(3 * n_hidden, n_pool), nn.GELU(), nn.Linear(n_pool, n_latent)
        )

    def forward(self, tokens_td: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Summarise cell token, mean and maximum of all tokens.

        Parameters
        ----------
        tokens_td
            Encoded tokens, that of the cell first, shape ``(n_tokens, n_hidden)``.
        cu_seqlens
            Cell boundaries, shape ``(n_cells + 1,)``.

        Returns
        -------
        Cell vectors, shape ``(n_cells, n_latent)``.
        """
        summary = [
            tokens_td.index_select(0, cu_seqlens[:-1]),
            mean_per_cell(tokens_td, cu_seqlens),
            max_per_cell(tokens_td, cu_seqlens),
        ]
        return self.mlp(torch.cat(summary, dim=-1))


def pool_tokens(cells: EncodedCells, pool: str, n_special: int) -> Tensor:
    """Summarise a cell's tokens without parameters, as the published code does.

    Parameters
    ----------
    cells
        The encoded cells. The last two of their special tokens are T and S, if the network is
        aware of the read depth.
    pool
        ``"s"`` and ``"t"``: the token of the source or target depth. ``"max"``: maximum over all
        tokens. ``"mean"``: mean over the genes. ``"all"``: S, T, maximum and mean over the genes.
    n_special
        Number of tokens in front of the genes of every cell.

    Returns
    -------
    Tensor of shape ``(n_cells, n_hidden)``; ``(n_cells, 4 * n_hidden)`` for ``"all"``.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import XTrimoGeneNet, pool_tokens
    >>> net = XTrimoGeneNet(n_genes=10)
    >>> counts, gene_ids = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 4, 9])
    >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
    >>> cells = net.encode(counts, gene_ids, cu_seqlens, library_size_c=torch.tensor([1.0, 5.0]))
    >>> pool_tokens(cells, "mean", n_special=1).shape
    torch.Size([2, 64])
    """
    tokens_td, cu_seqlens = cells.tokens_td, cells.cu_seqlens
    first_c = cu_seqlens[:-1].long()
    if pool == "s":
        return tokens_td[first_c + n_special - 1]
    if pool == "t":
        return tokens_td[first_c + n_special - 2]
    if pool == "max":
        return max_per_cell(tokens_td, cu_seqlens)
    genes_td, cu_genes = drop_first_tokens(tokens_td, cu_seqlens, n_special)
    if pool == "mean":
        return mean_per_cell(genes_td, cu_genes)
    return torch.cat(
        [
            pool_tokens(cells, "s", n_special),
            pool_tokens(cells, "t", n_special),
            max_per_cell(genes_td, cu_genes),
            mean_per_cell(genes_td, cu_genes),
        ],
        dim=-1,
    )
