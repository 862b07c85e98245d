"""From what is perturbed, in which cells, to the effect on every gene."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .effect_data import HERE, Controls, EffectSizes, NetInputs, Query
from .mixed_effects import MixedEffects
from .net import EffectNet

N_TARGET_INPUTS = 3
N_OWN_GENE_INPUTS = 9


class EffectModel(nn.Module):
    r"""Mean effects of perturbations on log-normalised expression.

    .. math::
        \Delta_{pn} = s_n \left( \delta_{pn} + \lambda \, r_{pn} \right), \qquad
        \operatorname{sd}_{pn} = s_n \, c \sqrt{v_{pn}}

    :math:`\delta` and :math:`v` come from the ``MixedEffects``, :math:`r` from
    the ``EffectNet``; :math:`s_n` is the standard deviation of a gene between
    cells. The weight :math:`\lambda`, from 0 to 1, and the calibration :math:`c` are chosen on
    perturbations that were left out, apart for those with and without targets that were never
    seen, or only in other populations. For perturbations of the training :math:`c` is 1 and
    :math:`\lambda` is 0.

    Parameters
    ----------
    sizes
        Sizes of the training data.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.perturbation.effect_data import Query
    >>> effects = perturbation_model.module.effects
    >>> design = effects.mixed.design.rows(torch.tensor([0, 1]))  # of two genes perturbed alone
    >>> affinity_gtn = torch.zeros(2, 1, effects.sizes.n_genes)
    >>> population_g = torch.zeros(2, dtype=torch.int64)
    >>> query = Query(design, design, torch.zeros(2, 1).long(), affinity_gtn, population_g)
    >>> effect, std, score = effects.predict(query, effects.controls)
    >>> effect.shape
    torch.Size([2, 60])
    >>> effects.similarity(effects.controls.latent_pz)
    tensor([[1.]])
    >>> effects.inputs(query, effects.controls, effects.mixed).base.mean_gn.shape
    torch.Size([2, 60])
    >>> effects.project_context(torch.zeros(60, effects.sizes.n_hidden)).shape
    torch.Size([60, 8])
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

        Examples
        --------
        >>> effects = perturbation_model.module.effects
        >>> effects.set_controls(effects.controls)
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

        Examples
        --------
        >>> import torch
        >>> from scxtrimo.perturbation.effects import EffectModel
        >>> from scxtrimo.perturbation.effect_data import EffectSizes
        >>> effects = EffectModel(EffectSizes(3, 3, 1, 50, n_latent=8, n_hidden=16, n_context=4))
        >>> effects.set_context_axes(torch.randn(50, 16))
        >>> effects.project_context(torch.randn(50, 16)).shape
        torch.Size([50, 4])
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
        """Return what is kept of contextual gene embeddings.

        Parameters
        ----------
        embeddings_nd
            Contextual gene embeddings, shape ``(n_genes, n_hidden)``; NaN where a gene has none.

        Returns
        -------
        Shape ``(n_genes, n_context)``; 0 where a gene has none.
        """
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

        Returns
        -------
        What the network takes, and the effects it corrects.
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
