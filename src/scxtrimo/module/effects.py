"""From what is perturbed, in which cells, to the effect on every gene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..nn import Design, EffectNet, MixedEffects, Prediction

N_TARGET_INPUTS = 3
HERE, ELSEWHERE, NEVER = 0, 1, 2
N_OWN_GENE_INPUTS = 9


@dataclass(frozen=True)
class EffectSizes:
    """Sizes of an :class:`EffectModel`, which depend on the data it is trained on.

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
        """Return some of the groups."""
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
    """What an :class:`~scxtrimo.nn.EffectNet` sees, and the effects it corrects.

    Parameters
    ----------
    base
        What the mixed model predicts.
    targets_gtnu, is_target_gt, genes_gnx
        See :meth:`~scxtrimo.nn.EffectNet.forward`.
    """

    base: Prediction
    targets_gtnu: Tensor
    is_target_gt: Tensor
    genes_gnx: Tensor


class EffectModel(nn.Module):
    r"""Mean effects of perturbations on log-normalised expression.

    .. math::
        \Delta_{pn} = s_n \left( \delta_{pn} + \lambda \, r_{pn} \right), \qquad
        \operatorname{sd}_{pn} = s_n \, c \sqrt{v_{pn}}

    :math:`\delta` and :math:`v` come from the :class:`~scxtrimo.nn.MixedEffects`, :math:`r` from
    the :class:`~scxtrimo.nn.EffectNet`; :math:`s_n` is the standard deviation of a gene between
    cells. The weight :math:`\lambda`, from 0 to 1, and the calibration :math:`c` are chosen on
    perturbations that were left out, apart for those with and without targets that were never
    seen, or only in other populations. For perturbations of the training :math:`c` is 1 and
    :math:`\lambda` is 0.

    Parameters
    ----------
    sizes
        Sizes of the training data.
    """

    gene_ids: Tensor
    gene_sd: Tensor
    calibration: Tensor
    gate: Tensor
    control_mean: Tensor
    control_expressing: Tensor
    latent: Tensor
    latent_width: Tensor
    context: Tensor
    context_mean: Tensor
    context_axes: Tensor
    named_features: Tensor

    def __init__(self, sizes: EffectSizes) -> None:
        super().__init__()
        self.sizes = sizes
        n_populations, n_genes = sizes.n_populations, sizes.n_genes
        self.mixed = MixedEffects(
            sizes.n_groups, sizes.n_targets, n_populations, n_genes, sizes.feature_blocks
        )
        self.net = EffectNet(N_TARGET_INPUTS, N_OWN_GENE_INPUTS + sizes.n_context)
        self.register_buffer("gene_ids", torch.zeros(n_genes, dtype=torch.int64))
        self.register_buffer("gene_sd", torch.ones(n_genes))
        self.register_buffer("calibration", torch.ones(3))
        self.register_buffer("gate", torch.zeros(3))
        self.register_buffer("control_mean", torch.zeros(n_populations, n_genes))
        self.register_buffer("control_expressing", torch.zeros(n_populations, n_genes))
        self.register_buffer("latent", torch.zeros(n_populations, sizes.n_latent))
        self.register_buffer("latent_width", torch.ones(()))
        self.register_buffer("context", torch.zeros(n_populations, n_genes, sizes.n_context))
        self.register_buffer("context_mean", torch.zeros(sizes.n_hidden))
        self.register_buffer("context_axes", torch.zeros(sizes.n_hidden, sizes.n_context))
        self.register_buffer("named_features", torch.zeros(sizes.n_named, sum(sizes.named_blocks)))

    @property
    def controls(self) -> Controls:
        """The control cells of the training."""
        return Controls(self.control_mean, self.control_expressing, self.latent, self.context)

    def set_controls(self, controls: Controls) -> None:
        """Take the control cells of the training.

        Parameters
        ----------
        controls
            Their populations.
        """
        self.control_mean.copy_(controls.mean_pn)
        self.control_expressing.copy_(controls.expressing_pn)
        self.latent.copy_(controls.latent_pz)
        self.context.copy_(controls.context_pnc)
        if len(self.latent) > 1:
            self.latent_width.copy_(torch.pdist(self.latent).median().clamp(min=1e-6))

    def set_context_axes(self, embeddings_nd: Tensor) -> None:
        """Choose what to keep of contextual gene embeddings: their principal components.

        Parameters
        ----------
        embeddings_nd
            Contextual gene embeddings of any populations; NaN where a gene has none.
        """
        known_nd = embeddings_nd[embeddings_nd.isfinite().all(dim=1)]
        if len(known_nd) <= self.sizes.n_context:
            return
        self.context_mean.copy_(known_nd.mean(dim=0))
        # Their signs are arbitrary, but the network is trained on what they are here.
        axes_dc = torch.linalg.eigh(torch.cov(known_nd.T))[1].flip(1)[:, : self.sizes.n_context]
        spread_c = ((known_nd - self.context_mean) @ axes_dc).std(dim=0).clamp(min=1e-6)
        self.context_axes.copy_(axes_dc / spread_c)

    def project_context(self, embeddings_nd: Tensor) -> Tensor:
        """Return what is kept of contextual gene embeddings; 0 where a gene has none."""
        return ((embeddings_nd - self.context_mean) @ self.context_axes).nan_to_num(0.0)

    def similarity(self, latent_qz: Tensor) -> Tensor:
        """Return how much alike populations are to those of the training, from 0 to 1.

        Parameters
        ----------
        latent_qz
            Mean latent representations, shape ``(n_queries, n_latent)``.

        Returns
        -------
        Shape ``(n_queries, n_populations)``. With a single population in the training all others
        count as like it: there is nothing to learn from how effects depend on the population.
        """
        distance = torch.cdist(latent_qz, self.latent) / self.latent_width
        if len(self.latent) == 1:
            return torch.ones_like(distance)
        return (-0.5 * distance.square()).exp()

    def inputs(self, query: Query, controls: Controls, mixed: MixedEffects) -> NetInputs:
        """Return what is known about the groups, to a mixed model.

        Parameters
        ----------
        query
            The groups.
        controls
            Their populations.
        mixed
            The mixed model, or one that has seen fewer groups.
        """
        base = mixed.predict(query.design)
        n_groups, max_targets = query.seen_gt.shape
        effects_gtn = mixed.target_effects(query.singles).view(n_groups, max_targets, -1)
        anything = query.design._replace(
            targets_gt=torch.zeros_like(query.design.targets_gt),
            n_targets_g=torch.ones_like(query.design.n_targets_g),
            features_gf=torch.zeros_like(query.design.features_gf),
        )
        common_gn = mixed.target_effects(anything)
        is_known_gtn = (query.seen_gt == HERE)[:, :, None].expand(effects_gtn.shape)
        targets_gtnu = torch.stack(
            [effects_gtn.asinh(), is_known_gtn.float(), query.affinity_gtn], dim=-1
        )
        of_group = torch.stack(
            [
                base.mean_gn.square().mean(dim=1).sqrt(),
                query.design.n_targets_g - 1,
            ],
            dim=1,
        )
        mean_gn = controls.mean_pn[query.population_g]
        of_gene = [
            base.mean_gn.asinh(),
            base.mean_gn * self.gene_sd,
            common_gn,
            mean_gn,
            controls.expressing_pn[query.population_g],
            self.gene_sd.expand_as(mean_gn),
            base.variance_gn.sqrt(),
        ]
        genes_gnx = torch.cat(
            [
                torch.stack(of_gene, dim=-1),
                of_group[:, None].expand(-1, mean_gn.shape[1], -1),
                controls.context_pnc[query.population_g],
            ],
            dim=-1,
        )
        return NetInputs(base, targets_gtnu, query.is_target_gt, genes_gnx)

    @torch.inference_mode()
    def predict(self, query: Query, controls: Controls) -> tuple[Tensor, Tensor, Tensor]:
        """Return effects and their standard deviations, in units of log-normalised expression.

        Parameters
        ----------
        query
            Groups of cells.
        controls
            Their populations.

        Returns
        -------
        Three float32 tensors of shape ``(n_groups, n_genes)``; the last is the effect in units of
        its standard deviation, where the noise of the control cells counts as well.
        """
        base = self.mixed.predict(query.design)
        is_trained_g, kind_g = self.mixed.is_trained(query.design), query.kind_g
        # What was measured needs no correction: the network has learned from what was left out.
        gate_g1 = torch.where(is_trained_g, 0.0, self.gate[kind_g])[:, None]
        calibration_g1 = torch.where(is_trained_g, 1.0, self.calibration[kind_g])[:, None]
        correction_gn = torch.zeros_like(base.mean_gn)
        if bool(gate_g1.any()):
            known = self.inputs(query, controls, self.mixed)
            correction_gn = gate_g1 * self.net(
                known.targets_gtnu, known.is_target_gt, known.genes_gnx
            )
        effect_gn = (base.mean_gn + correction_gn) * self.gene_sd
        std_gn = calibration_g1 * base.variance_gn.sqrt() * self.gene_sd
        effect_std_gn = calibration_g1 * base.effect_variance_gn.sqrt()
        return effect_gn, std_gn, (base.effect_gn + correction_gn) / effect_std_gn
