"""From a cell to its label: a read-out of cell features, and a linear model on genes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CellClassifier(nn.Module):
    """Linear model and two-layer perceptron on the features of a cell, added up.

    The perceptron starts at zero: what the linear model knows is where training starts
    (Kumar et al. 2022).

    Parameters
    ----------
    n_features
        Number of features of a cell.
    n_labels
        Number of labels.
    n_inner
        Width of the inner layer of the perceptron.
    dropout
        Dropout on the inner layer.

    Notes
    -----
    Gong et al. 2023 put a two-layer perceptron on the encoder; the linear model is ours.
    """

    mean: Tensor
    scale: Tensor
    is_fitted: Tensor

    def __init__(self, n_features: int, n_labels: int, n_inner: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        self.register_buffer("is_fitted", torch.zeros((), dtype=torch.bool))
        self.linear = nn.Linear(n_features, n_labels)
        self.mlp = nn.Sequential(
            nn.Linear(n_features, n_inner),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(n_inner, n_labels),
        )
        self.reset()

    def reset(self) -> None:
        """Start again from zero, that is from equal probabilities."""
        for part in (self.linear, self.mlp[-1]):
            assert isinstance(part, nn.Linear)
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)

    def start_at_random(self, seed: int) -> None:
        """Leave everything to the perceptron, with random weights.

        Parameters
        ----------
        seed
            Their seed.
        """
        self.reset()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in (self.mlp[0], self.mlp[-1]):
                assert isinstance(part, nn.Linear)
                part.reset_parameters()

    def normalize(self, features_cf: Tensor) -> Tensor:
        """Return features of mean zero and common scale."""
        return (features_cf - self.mean) / self.scale

    def forward(self, features_cf: Tensor) -> Tensor:
        """Return logits, shape ``(n_cells, n_labels)``."""
        normalized_cf = self.normalize(features_cf)
        return self.linear(normalized_cf) + self.mlp(normalized_cf)


def average_log_probabilities(
    by_cell_cl: Tensor, by_genes_cl: Tensor, gene_weight: Tensor
) -> Tensor:
    """Return the logarithm of averaged probabilities, shape ``(n_cells, n_labels)``.

    Parameters
    ----------
    by_cell_cl, by_genes_cl
        Log-probabilities by :class:`CellClassifier` and :class:`GeneClassifier`.
    gene_weight
        Share of the latter, a scalar from 0 to 1.
    """
    # The logarithm of a share of 0 is fine here: exp(-inf) = 0.
    shares = torch.stack([1 - gene_weight, gene_weight]).log()
    return torch.logaddexp(shares[0] + by_cell_cl, shares[1] + by_genes_cl)


class GeneClassifier(nn.Module):
    """Logistic regressions on log-normalised expression, each label against the others.

    Parameters
    ----------
    n_genes
        Number of genes in the vocabulary.
    n_labels
        Number of labels.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, n_genes: int, n_labels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_genes, n_labels))
        self.register_buffer("bias", torch.zeros(n_labels))

    def forward(
        self,
        values_t: Tensor,
        gene_ids_t: Tensor,
        cu_seqlens: Tensor,
        offset_l: Tensor | None = None,
    ) -> Tensor:
        """Return log-probabilities, shape ``(n_cells, n_labels)``.

        Parameters
        ----------
        values_t, gene_ids_t, cu_seqlens
            Log-normalised expression of all genes of the cells, their positions in the
            vocabulary and the boundaries of the cells.
        offset_l
            What genes that were not measured add, see :meth:`missing`.
        """
        # One weighted sum of rows per cell: nothing of size tokens x labels is built.
        score_cl = F.embedding_bag(
            gene_ids_t,
            self.weight,
            cu_seqlens[:-1].long(),
            mode="sum",
            per_sample_weights=values_t,
        )
        score_cl = score_cl + self.bias
        if offset_l is not None:
            score_cl = score_cl + offset_l
        return F.logsigmoid(score_cl).log_softmax(dim=1)

    def missing(self, mean_expression: Tensor, measured: Tensor) -> Tensor:
        """Return what genes that were not measured add to the scores if they are average.

        Parameters
        ----------
        mean_expression
            Mean log-normalised expression in the training cells, shape ``(n_genes,)``.
        measured
            Which genes the data have, bool, shape ``(n_genes,)``.
        """
        return (mean_expression * ~measured) @ self.weight
