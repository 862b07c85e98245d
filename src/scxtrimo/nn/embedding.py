"""From (gene, count) pairs to tokens: auto-discretised values plus gene embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def normalize_counts(counts_t: Tensor, library_size_t: Tensor, scale: float = 1e4) -> Tensor:
    """Scale counts to ``scale`` per cell and take ``log1p``.

    Parameters
    ----------
    counts_t
        Raw counts, one per token.
    library_size_t
        Total counts of the cell that owns each token.
    scale
        Total that every cell is scaled to.

    Returns
    -------
    ``log1p(counts / library_size * scale)``, same shape as ``counts_t``.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import normalize_counts
    >>> normalize_counts(torch.tensor([0.0, 2.0]), torch.tensor([1e4, 2e4]))
    tensor([0.0000, 0.6931])
    """
    return torch.log1p(counts_t * (scale / library_size_t))


class AutoDiscretization(nn.Module):
    r"""Embed a continuous expression value as a soft mixture of learned bins.

    .. math::
        h = \mathrm{LeakyReLU}_{0.1}(W_1 v + b_1), \quad
        p = \mathrm{softmax}(\alpha h + W_2 h + b_2), \quad
        e = p^\top T

    Parameters
    ----------
    n_hidden
        Width of the embedding.
    n_bins
        Number of bins, the rows of :math:`T`.
    alpha
        Weight of the residual path.

    Notes
    -----
    Gong et al. 2023, section 3.2 ("auto-discretization").

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import AutoDiscretization
    >>> embed = AutoDiscretization(n_hidden=8, n_bins=10)
    >>> values = torch.tensor([0.5, 2.0, 0.5])
    >>> embed(values).shape, embed.bin_weights(values).shape
    (torch.Size([3, 8]), torch.Size([3, 10]))
    >>> torch.allclose(embed(values), embed.embed_each(values))
    True
    """

    def __init__(self, n_hidden: int, n_bins: int = 100, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.to_bins = nn.Linear(1, n_bins)
        self.mix_bins = nn.Linear(n_bins, n_bins)
        self.bins = nn.Embedding(n_bins, n_hidden)

    def bin_weights(self, values_t: Tensor) -> Tensor:
        """Return the weight of every bin for every value.

        Parameters
        ----------
        values_t
            Log-normalised values, float32, shape ``(n_tokens,)``.

        Returns
        -------
        Tensor of shape ``(n_tokens, n_bins)``; the weights of a value add up to 1.
        """
        h_tb = F.leaky_relu(self.to_bins(values_t[:, None]), 0.1)
        return torch.softmax(self.alpha * h_tb + self.mix_bins(h_tb), dim=-1)

    def forward(self, values_t: Tensor) -> Tensor:
        """Embed values.

        Parameters
        ----------
        values_t
            Log-normalised values, float32, shape ``(n_tokens,)``.

        Returns
        -------
        Tensor of shape ``(n_tokens, n_hidden)``.
        """
        if values_t.requires_grad:  # to explain a prediction; distinct values have no gradient
            return self.embed_each(values_t)
        # Most counts are small, so a batch has about one distinct value in a hundred tokens.
        distinct_v, place_t = torch.unique(values_t, return_inverse=True)
        return self.embed_each(distinct_v).index_select(0, place_t)

    def embed_each(self, values_t: Tensor) -> Tensor:
        """Embed values one by one, which for few of them is faster; the result is the same.

        Parameters
        ----------
        values_t
            Log-normalised values, float32, shape ``(n_tokens,)``.

        Returns
        -------
        Tensor of shape ``(n_tokens, n_hidden)``.
        """
        # In bfloat16 values would lose their digits, and the gradients of many tokens their sum.
        with torch.autocast(values_t.device.type, enabled=False):
            return self.bin_weights(values_t) @ self.bins.weight


class TokenEmbedding(nn.Module):
    """Token of an expressed gene: value embedding plus gene embedding.

    Parameters
    ----------
    n_positions
        Number of genes in the vocabulary, plus those of the depth tokens if there are any.
    n_hidden
        Width of a token.
    n_bins, bin_alpha
        See :class:`AutoDiscretization`.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.nn import TokenEmbedding
    >>> embed = TokenEmbedding(n_positions=100, n_hidden=8)
    >>> embed(torch.tensor([0.5, 2.0]), torch.tensor([3, 99])).shape
    torch.Size([2, 8])
    """

    def __init__(
        self, n_positions: int, n_hidden: int, n_bins: int = 100, bin_alpha: float = 1.0
    ) -> None:
        super().__init__()
        self.value = AutoDiscretization(n_hidden, n_bins, bin_alpha)
        self.gene = nn.Embedding(n_positions, n_hidden)
        nn.init.normal_(self.gene.weight, std=n_hidden**-0.5)

    def forward(self, values_t: Tensor, gene_ids_t: Tensor) -> Tensor:
        """Embed expressed genes.

        Parameters
        ----------
        values_t
            Log-normalised values, float32, shape ``(n_tokens,)``.
        gene_ids_t
            Their positions, int64, shape ``(n_tokens,)``.

        Returns
        -------
        Tokens, shape ``(n_tokens, n_hidden)``.
        """
        return self.value(values_t) + self.gene(gene_ids_t)
