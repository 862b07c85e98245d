"""What an effect model is given and asked: sizes, control cells, groups of perturbed cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .design import Design, Prediction

HERE, ELSEWHERE, NEVER = 0, 1, 2


@dataclass(frozen=True)
class EffectSizes:
    """Sizes of an ``EffectModel``, those of the data it is trained on.

    Parameters
    ----------
    n_groups, n_targets, n_populations, n_genes
        Groups of perturbed cells, perturbed genes, populations of cells, and measured genes.
    n_latent
        Width of the mean latent representation of a population.
    n_hidden, n_context
        Width of contextual gene embeddings, and of what is kept of them.
    n_embedding
        Width of the gene embeddings that are features of targets, 0 if they are not.
    n_named
        Genes with features of the user.
    named_blocks
        Numbers of these features that belong together.

    Examples
    --------
    >>> effects = perturbation_model.module.effects
    >>> effects.sizes.n_populations, effects.sizes.n_genes, effects.sizes.feature_blocks
    (1, 60, (32,))
    """

    n_groups: int
    n_targets: int
    n_populations: int
    n_genes: int
    n_latent: int
    n_hidden: int
    n_context: int
    n_embedding: int = 0
    n_named: int = 0
    named_blocks: tuple[int, ...] = ()

    @property
    def feature_blocks(self) -> tuple[int, ...]:
        """Numbers of features of a target that belong together, embeddings first."""
        return (*([self.n_embedding] if self.n_embedding else []), *self.named_blocks)


class Controls(NamedTuple):
    """The unperturbed cells of some populations.

    Parameters
    ----------
    mean_pn
        Mean log-normalised expression, shape ``(n_populations, n_genes)``.
    expressing_pn
        Fraction of the cells that express a gene, of the same shape.
    latent_pz
        Mean latent representation.
    context_pnc
        Contextual gene embeddings, shape ``(n_populations, n_genes, n_context)``.

    Examples
    --------
    >>> effects = perturbation_model.module.effects
    >>> effects.controls.mean_pn.shape, effects.controls.latent_pz.shape
    (torch.Size([1, 60]), torch.Size([1, 32]))
    """

    mean_pn: Tensor
    expressing_pn: Tensor
    latent_pz: Tensor
    context_pnc: Tensor


class Query(NamedTuple):
    """Groups of cells to predict.

    Parameters
    ----------
    design
        The groups.
    singles
        Their targets one by one, ``max_targets`` rows for every group; where a group has fewer,
        rows without a target.
    seen_gt
        Where targets were perturbed in the training: ``HERE``, in the same population,
        ``ELSEWHERE``, in another one, or ``NEVER``; int64, shape ``(n_groups, max_targets)``.
    affinity_gtn
        Cosine between the embeddings of targets and genes, 0 if the target has none, shape
        ``(n_groups, max_targets, n_genes)``.
    population_g
        Row of the population in the :class:`Controls`, int64.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.perturbation.effect_data import Query
    >>> effects = perturbation_model.module.effects
    >>> design = effects.mixed.design.rows(torch.tensor([0, 1]))  # of two genes perturbed alone
    >>> affinity_gtn = torch.zeros(2, 1, effects.sizes.n_genes)
    >>> population_g = torch.zeros(2, dtype=torch.int64)
    >>> query = Query(design, design, torch.zeros(2, 1).long(), affinity_gtn, population_g)
    >>> query = query.as_seen_in(effects.mixed.design)
    >>> query.is_target_gt.shape, query.kind_g  # both were perturbed in these cells
    (torch.Size([2, 1]), tensor([0, 0]))
    >>> query.rows(torch.tensor([1])).population_g
    tensor([0])
    """

    design: Design
    singles: Design
    seen_gt: Tensor
    affinity_gtn: Tensor
    population_g: Tensor

    @property
    def is_target_gt(self) -> Tensor:
        """Which of the targets exist."""
        return self.singles.n_targets_g.view(self.seen_gt.shape) > 0

    @property
    def kind_g(self) -> Tensor:
        """Where the target of which least is known was seen."""
        return (self.seen_gt * self.is_target_gt).max(dim=1).values

    def as_seen_in(self, training: Design) -> Query:
        """Return the query to a model that was trained on these groups.

        Parameters
        ----------
        training
            The groups.

        Returns
        -------
        The query with ``seen_gt``.
        """
        is_seen_pt = torch.zeros(training.similarity_gp.shape[1], training.targets_gt.shape[1])
        is_seen_pt.index_add_(0, training.population_g, training.targets_gt)
        is_seen_pt = (is_seen_pt > 0).float()
        population_s = self.singles.population_g
        of_own_st = is_seen_pt[population_s.clamp(min=0)] * (population_s >= 0)[:, None]
        here_s = (self.singles.targets_gt * of_own_st).sum(dim=1) > 0
        anywhere_s = self.singles.targets_gt @ is_seen_pt.amax(dim=0) > 0
        seen_s = torch.where(here_s, HERE, torch.where(anywhere_s, ELSEWHERE, NEVER))
        return self._replace(seen_gt=seen_s.view(self.seen_gt.shape))

    def rows(self, index: Tensor) -> Query:
        """Return some of the groups.

        Parameters
        ----------
        index
            Which, int64, shape ``(n_rows,)``.

        Returns
        -------
        The query of these.
        """
        max_targets = self.seen_gt.shape[1]
        single = (index[:, None] * max_targets + torch.arange(max_targets)).flatten()
        return Query(
            self.design.rows(index),
            self.singles.rows(single),
            self.seen_gt[index],
            self.affinity_gtn[index],
            self.population_g[index],
        )


class NetInputs(NamedTuple):
    """What an ``EffectNet`` sees, and the effects it corrects.

    Parameters
    ----------
    base
        What the mixed model predicts.
    targets_gtnu, is_target_gt, genes_gnx
        See ``EffectNet.forward``.

    Examples
    --------
    >>> from scxtrimo.perturbation.effect_data import NetInputs
    >>> NetInputs._fields
    ('base', 'targets_gtnu', 'is_target_gt', 'genes_gnx')
    """

    base: Prediction
    targets_gtnu: Tensor
    is_target_gt: Tensor
    genes_gnx: Tensor
