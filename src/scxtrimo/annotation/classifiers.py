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

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.annotation.classifiers import CellClassifier
    >>> classifier = CellClassifier(n_features=32, n_labels=3, n_inner=16, dropout=0.1)
    >>> classifier(torch.randn(5, 32)).softmax(dim=1)[0]
    tensor([0.3333, 0.3333, 0.3333], grad_fn=...)
    >>> classifier.start_at_random(seed=0)
    >>> classifier.normalize(torch.ones(1, 32)).mean()  # features are not scaled yet
    tensor(1.)
    >>> classifier.reset()
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
        """Scale features as those of the training cells were.

        Parameters
        ----------
        features_cf
            Features, shape ``(n_cells, n_features)``.

        Returns
        -------
        Features of mean zero and common scale, of the same shape.
        """
        return (features_cf - self.mean) / self.scale

    def forward(self, features_cf: Tensor) -> Tensor:
        """Score the labels.

        Parameters
        ----------
        features_cf
            Features, shape ``(n_cells, n_features)``.

        Returns
        -------
        Logits, shape ``(n_cells, n_labels)``.
        """
        normalized_cf = self.normalize(features_cf)
        return self.linear(normalized_cf) + self.mlp(normalized_cf)


def average_log_probabilities(
    by_cell_cl: Tensor, by_genes_cl: Tensor, gene_weight: Tensor
) -> Tensor:
    """Average the probabilities that two models give.

    Parameters
    ----------
    by_cell_cl, by_genes_cl
        Log-probabilities by :class:`CellClassifier` and :class:`GeneClassifier`.
    gene_weight
        Share of the latter, a scalar from 0 to 1.

    Returns
    -------
    Logarithm of the averages, shape ``(n_cells, n_labels)``.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.annotation.classifiers import average_log_probabilities
    >>> by_cell, by_genes = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]]).log()
    >>> average_log_probabilities(by_cell, by_genes, torch.tensor(0.5)).exp()
    tensor([[0.6000, 0.4000]])
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

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.annotation.classifiers import GeneClassifier
    >>> classifier = GeneClassifier(n_genes=100, n_labels=2)
    >>> values, gene_ids = torch.tensor([0.5, 2.0, 1.0]), torch.tensor([3, 99, 3])
    >>> cu_seqlens = torch.tensor([0, 2, 3])  # genes 3 and 99 in one cell, gene 3 in another
    >>> classifier(values, gene_ids, cu_seqlens).exp()
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    >>> classifier.missing(torch.ones(100), measured=torch.arange(100) < 50)
    tensor([0., 0.])
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
        """Score the labels.

        Parameters
        ----------
        values_t, gene_ids_t, cu_seqlens
            Log-normalised expression of all genes of the cells, their positions in the
            vocabulary and the boundaries of the cells.
        offset_l
            What genes that were not measured add, see :meth:`missing`.

        Returns
        -------
        Log-probabilities, shape ``(n_cells, n_labels)``.
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

        Returns
        -------
        Tensor of shape ``(n_labels,)``.
        """
        return (mean_expression * ~measured) @ self.weight
