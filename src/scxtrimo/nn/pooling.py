"""From the encoded tokens of a cell to one vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .ragged import drop_first_tokens, max_per_cell, mean_per_cell

if TYPE_CHECKING:
    from .decoder import EncodedCells

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
