"""What a mixed model of perturbations is asked, and what it answers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Design(NamedTuple):
    """What is perturbed in which population of cells, one row per group of cells.

    Parameters
    ----------
    targets_gt
        Which of the known targets are perturbed, 0 or 1, shape ``(n_groups, n_targets)``.
    n_targets_g
        How many genes are perturbed, known or not, shape ``(n_groups,)``.
    features_gf
        Sum of the features of the perturbed genes, shape ``(n_groups, n_features)``.
    similarity_gp
        Similarity of the population to those of the training, from 0 to 1, shape
        ``(n_groups, n_populations)``.
    population_g
        Which of the populations of the training it is, int64; -1 for another one.
    n_controls_g
        Control cells of the population.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.perturbation.design import Design
    >>> targets = torch.eye(3)  # three genes, each perturbed alone, in one population of cells
    >>> nothing, ones = torch.zeros(3, 0), torch.ones(3)
    >>> design = Design(targets, ones, nothing, ones[:, None], torch.zeros(3).long(), 100 * ones)
    >>> design.rows(torch.tensor([0])).targets_gt
    tensor([[1., 0., 0.]])
    """

    targets_gt: Tensor
    n_targets_g: Tensor
    features_gf: Tensor
    similarity_gp: Tensor
    population_g: Tensor
    n_controls_g: Tensor

    def rows(self, index: Tensor) -> Design:
        """Return some of the groups.

        Parameters
        ----------
        index
            Which, int64 or bool.

        Returns
        -------
        Their design.
        """
        return Design(*(part[index] for part in self))


class Prediction(NamedTuple):
    """Effects, in units of the standard deviation of a gene between cells.

    Parameters
    ----------
    mean_gn, variance_gn
        Mean and variance of the differences to the control cells that were measured, shape
        ``(n_groups, n_genes)``.
    effect_gn, effect_variance_gn
        Mean and variance of the effects themselves: the control cells have noise too.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.perturbation.design import Prediction
    >>> mean, variance = torch.zeros(2, 50), torch.ones(2, 50)
    >>> Prediction(mean, variance, mean, variance).mean_gn.shape
    torch.Size([2, 50])
    """

    mean_gn: Tensor
    variance_gn: Tensor
    effect_gn: Tensor
    effect_variance_gn: Tensor
