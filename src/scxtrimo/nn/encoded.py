"""What an encoder hands to the decoders."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class HiddenGenes(NamedTuple):
    """Genes the encoder did not see, and what a decoder over all genes is told about them.

    Parameters
    ----------
    tokens_td
        Value embeddings, mostly those of the mask, shape ``(n_hidden_genes, n_hidden)``.
    gene_ids_t
        Positions in the vocabulary.
    cu_seqlens
        Cell boundaries.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import HiddenGenes
    >>> hidden = HiddenGenes(torch.zeros(2, 8), torch.tensor([3, 99]), torch.tensor([0, 1, 2]))
    >>> hidden.gene_ids_t
    tensor([ 3, 99])
    """

    tokens_td: Tensor
    gene_ids_t: Tensor
    cu_seqlens: Tensor


class EncodedCells(NamedTuple):
    """What the encoder knows about a batch of cells.

    Parameters
    ----------
    tokens_td
        Encoded tokens, special ones first, shape ``(n_tokens, n_hidden)``.
    cu_seqlens
        Cell boundaries in ``tokens_td``.
    gene_ids_t
        Position of every token in the gene embeddings; -1 for the cell token.
    latent_cz
        Cell vectors, or the published representation, shape ``(n_cells, n_latent)``.
    covariates_ck
        Embedding of batch and other covariates, shape ``(n_cells, n_covariate)``; the latent
        representation does not contain it.
    zero_d
        Value embedding of 0, shape ``(n_hidden,)``.
    hidden
        Genes that are masked, if there are any.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import XTrimoGeneNet
    >>> net = XTrimoGeneNet(n_genes=10)
    >>> counts, gene_ids = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 4, 9])
    >>> cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32)
    >>> cells = net.encode(counts, gene_ids, cu_seqlens, library_size_c=torch.tensor([1.0, 5.0]))
    >>> cells.latent_cz.shape
    torch.Size([2, 32])
    >>> cells.gene_ids_t  # every cell has a token of its own
    tensor([-1,  0, -1,  4,  9])
    """

    tokens_td: Tensor
    cu_seqlens: Tensor
    gene_ids_t: Tensor
    latent_cz: Tensor
    covariates_ck: Tensor
    zero_d: Tensor
    hidden: HiddenGenes | None = None
