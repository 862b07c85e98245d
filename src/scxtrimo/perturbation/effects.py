"""Effects of perturbations on all genes: a linear mixed model, corrected by a small network.

Suffixes of tensors: g groups of cells, t targets, p populations, n genes, i eigenvectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .groups import GroupMoments

HERE, ELSEWHERE, NEVER = 0, 1, 2
"""Where a target was perturbed in the training: this population, another one, or nowhere."""

MAX_FITTED = 500
MAX_BINS = 6
N_ROUNDS = 3
COMBINATION_SHARE = 0.1
SCALE_WIDTH = 2.0
MIN_VARIANCE = 1e-6
JITTER = 1e-6
N_TARGET_INPUTS = 3
N_OWN_GENE_INPUTS = 9
N_NET_HIDDEN = 32


class Design(NamedTuple):
    """What is perturbed in which population, one row per group of cells."""

    targets_gt: Tensor  # which of the known targets are perturbed, 0 or 1
    n_targets_g: Tensor  # number of perturbed genes, known or not
    features_gf: Tensor  # sum of the features of the perturbed genes
    similarity_gp: Tensor  # of the population to those of the training, from 0 to 1
    population_g: Tensor  # number of the training population, int64; -1 for another one
    n_controls_g: Tensor  # control cells of the population

    def rows(self, index: Tensor) -> Design:
        """Return some of the groups."""
        return Design(*(part[index] for part in self))


class Prediction(NamedTuple):
    """Effects in units of the standard deviation of a gene between cells, (groups, genes)."""

    mean_gn: Tensor  # expected difference to the control cells that were measured
    variance_gn: Tensor
    effect_gn: Tensor  # difference to their true mean, without their sampling noise
    effect_variance_gn: Tensor


class Controls(NamedTuple):
    """The control cells of some populations."""

    mean_pn: Tensor  # mean log-normalised expression
    expressing_pn: Tensor  # fraction of the cells that express a gene
    latent_pz: Tensor  # mean latent representation
    context_pnc: Tensor  # principal components of contextual gene embeddings


class Query(NamedTuple):
    """Groups of cells to predict."""

    design: Design
    singles: Design  # their targets one by one, max_targets rows per group; surplus rows are empty
    seen_gt: Tensor  # HERE, ELSEWHERE or NEVER, (groups, max_targets)
    affinity_gtn: Tensor  # cosine between embeddings of targets and genes, 0 if there is none
    population_g: Tensor  # row of the population in the Controls

    @property
    def is_target_gt(self) -> Tensor:
        """Which of the targets exist."""
        return self.singles.n_targets_g.view(self.seen_gt.shape) > 0

    @property
    def kind_g(self) -> Tensor:
        """Where the least known target of a group was seen."""
        return (self.seen_gt * self.is_target_gt).max(dim=1).values

    def as_seen_in(self, training: Design) -> Query:
        """Return the query with ``seen_gt`` for a model that was trained on these groups."""
        is_seen_pt = torch.zeros(training.similarity_gp.shape[1], training.targets_gt.shape[1])
        is_seen_pt.index_add_(0, training.population_g, training.targets_gt)
        # Nothing was seen in other populations, -1.
        is_seen_pt = nn.functional.pad((is_seen_pt > 0).float(), (0, 0, 0, 1))
        here_s = (self.singles.targets_gt * is_seen_pt[self.singles.population_g]).sum(dim=1) > 0
        anywhere_s = self.singles.targets_gt @ is_seen_pt.amax(dim=0) > 0
        seen_s = torch.where(here_s, HERE, torch.where(anywhere_s, ELSEWHERE, NEVER))
        return self._replace(seen_gt=seen_s.view(self.seen_gt.shape))

    def rows(self, index: Tensor) -> Query:
        """Return some of the groups, by number."""
        width = self.seen_gt.shape[1]
        single = (index[:, None] * width + torch.arange(width)).flatten()
        rest = (part[index] for part in self[2:])
        return Query(self.design.rows(index), self.singles.rows(single), *rest)


class NetInputs(NamedTuple):
    """Inputs of an ``EffectNet``."""

    targets_gtnu: Tensor
    is_target_gt: Tensor
    genes_gnx: Tensor


@dataclass(frozen=True)
class EffectSizes:
    """Sizes of an ``EffectModel``, those of its training data."""

    n_groups: int
    n_targets: int
    n_populations: int
    n_genes: int
    n_latent: int
    n_hidden: int  # width of contextual gene embeddings
    n_context: int  # number of their principal components that are kept
    n_embedding: int = 0  # width of gene embeddings as features of targets, 0 if not used
    n_named: int = 0  # genes with features given by the user
    named_blocks: tuple[int, ...] = ()  # numbers of such features of every kind


class EffectNames(NamedTuple):
    """Names of the perturbed genes, the populations, and the genes with features of the user."""

    targets: tuple[str, ...]
    populations: tuple[str, ...]
    named: tuple[str, ...] = ()


class MixedEffects(nn.Module):
    """Linear mixed model of the effects of perturbations :cite:p:`Henderson1975`.

    An effect is the sum over targets of what all perturbations do, what the target does and what
    its features do, of what a combination does beyond, and of noise that follows from the numbers
    of cells. All but the noise has parts shared by all populations, by similar ones, and by none.
    The equations are in ``docs/perturbation.md``.
    """

    def __init__(
        self,
        n_groups: int,
        n_targets: int,
        n_populations: int,
        n_genes: int,
        feature_blocks: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.feature_blocks = feature_blocks
        self.targets_gt = nn.Buffer(torch.zeros(n_groups, n_targets))
        self.n_targets_g = nn.Buffer(torch.zeros(n_groups))
        self.features_gf = nn.Buffer(torch.zeros(n_groups, sum(feature_blocks)))
        self.similarity_gp = nn.Buffer(torch.zeros(n_groups, n_populations))
        self.population_g = nn.Buffer(torch.zeros(n_groups, dtype=torch.int64))
        self.n_cells_g = nn.Buffer(torch.ones(n_groups))
        self.n_controls_g = nn.Buffer(torch.ones(n_groups))
        self.effects_gn = nn.Buffer(torch.zeros(n_groups, n_genes))
        # Common effect, target, combination, and one for every block of features.
        self.log_variances = nn.Buffer(torch.full((3 + len(feature_blocks),), -4.0))
        # Parts shared by all populations, by similar ones, and of one population alone.
        sharing = [1.0, 0.0, 0.0] if n_populations == 1 else [1 / 3] * 3
        self.sharing = nn.Buffer(torch.tensor(sharing))
        self.gene_scale = nn.Buffer(torch.ones(n_genes))
        self._solved: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def design(self) -> Design:
        """The training groups."""
        return Design(*(getattr(self, name) for name in Design._fields))

    def set(self, design: Design, effects_gn: Tensor, n_cells_g: Tensor) -> None:
        """Take the training data; effects are in units of the standard deviation between cells."""
        own = (*self.design, self.effects_gn, self.n_cells_g)
        for buffer, value in zip(own, (*design, effects_gn, n_cells_g), strict=True):
            buffer.copy_(value)
        self._solved = None

    def fit(self, seed: int = 0) -> None:
        """Fit variances (to at most 500 groups) and gene scales in turn, by maximum likelihood."""
        drawn = torch.arange(len(self.effects_gn))
        if len(drawn) > MAX_FITTED:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randperm(len(drawn), generator=generator)[:MAX_FITTED]
        self.gene_scale.fill_(1.0)
        for _ in range(N_ROUNDS):
            self._fit_variances(drawn)
            self._fit_gene_scale()

    def _fit_variances(self, drawn: Tensor) -> None:
        """Fit the variances that all genes share, given the gene scales."""
        design, effects_gn = self.design.rows(drawn), self.effects_gn[drawn].double()
        noise_gg = self._noise()[drawn][:, drawn]
        bins = []  # genes of about the same scale have one covariance
        for genes in self.gene_scale.argsort(stable=True).chunk(MAX_BINS):
            scale = self.gene_scale[genes].log().mean().exp().double()
            gram_gg = effects_gn[:, genes] @ effects_gn[:, genes].T / len(genes)
            bins.append((len(genes) / len(self.gene_scale), scale, gram_gg))
        one_population = self.similarity_gp.shape[1] == 1
        start = torch.cat([self.log_variances.double(), self.sharing.double().clamp(1e-3).log()])
        parameters = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([parameters], max_iter=40, line_search_fn="strong_wolfe")

        def negative_log_likelihood() -> Tensor:
            optimizer.zero_grad()
            variances = parameters[:-3].clamp(-14, 6).exp()
            sharing = self.sharing.double() if one_population else parameters[-3:].softmax(dim=0)
            signal_gg = self._covariance(design, design, variances, sharing)
            # A weak penalty keeps parameters that the data do not determine at their start.
            loss = 0.005 * (parameters - start).square().sum()
            # Pairs of genes that were not perturbed alone do not separate the effects of targets
            # from interactions; most interactions are small (Norman et al. 2019).
            peculiar = parameters[2] - parameters[1] - math.log(COMBINATION_SHARE)
            loss = loss + 0.5 * peculiar.square()
            for part, scale, gram_gg in bins:
                factor = torch.linalg.cholesky(scale * signal_gg + noise_gg)
                fit = 0.5 * torch.cholesky_solve(gram_gg, factor).trace()
                loss = loss + part * (fit + factor.diagonal().log().sum())
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(negative_log_likelihood)
        self.log_variances.copy_(parameters.detach()[:-3].clamp(-14, 6))
        if not one_population:
            self.sharing.copy_(parameters.detach()[-3:].softmax(dim=0))
        self._solved = None

    @torch.no_grad()
    def _fit_gene_scale(self) -> None:
        """Fit the factor of the variances of every gene, on a grid."""
        _, eigenvalues_i, effects_in = self._solution()
        squares_in = effects_in.square()
        best_n = torch.full((squares_in.shape[1],), -torch.inf, dtype=torch.float64)
        for log_scale in torch.linspace(-7, 7, 29, dtype=torch.float64):
            variance_i = (eigenvalues_i * log_scale.exp() + 1)[:, None]
            log_likelihood_n = -0.5 * (variance_i.log() + squares_in / variance_i).sum(dim=0)
            log_posterior_n = log_likelihood_n - 0.5 * (log_scale / SCALE_WIDTH) ** 2
            self.gene_scale[log_posterior_n > best_n] = log_scale.exp().float()
            best_n = torch.maximum(best_n, log_posterior_n)

    def without(self, keep_g: Tensor) -> MixedEffects:
        """Return the model of these groups alone: same variances, gene scales fitted again."""
        sizes = (self.targets_gt.shape[1], self.similarity_gp.shape[1], self.effects_gn.shape[1])
        model = MixedEffects(int(keep_g.sum()), *sizes, self.feature_blocks)
        model.set(self.design.rows(keep_g), self.effects_gn[keep_g], self.n_cells_g[keep_g])
        model.log_variances.copy_(self.log_variances)
        model.sharing.copy_(self.sharing)
        model._fit_gene_scale()
        return model

    @torch.no_grad()
    def predict(self, design: Design) -> Prediction:
        """Return posterior means and variances of groups of cells, float32."""
        (basis_gi, eigenvalues_i, effects_in), scale_n = self._solution(), self.gene_scale.double()
        signal_qi = self._covariance_with(design) @ basis_gi
        is_same_qg = design.population_g[:, None] == self.population_g[None]
        noise_qi = (is_same_qg / self.n_controls_g.double()[None]) @ basis_gi
        precision_in = 1 / (eigenvalues_i[:, None] * scale_n + 1)
        weights_in = precision_in * effects_in
        effect_qn = scale_n * (signal_qi @ weights_in)
        effect_variance_qn = scale_n * (
            self._prior_variance(design)[:, None] - scale_n * (signal_qi.square() @ precision_in)
        )
        mean_qn = effect_qn + noise_qi @ weights_in
        variance_qn = (
            effect_variance_qn
            + (1 / design.n_controls_g.double())[:, None]
            - 2 * scale_n * ((signal_qi * noise_qi) @ precision_in)
            - noise_qi.square() @ precision_in
        )
        return Prediction(
            mean_qn.float(),
            variance_qn.clamp(min=MIN_VARIANCE).float(),
            effect_qn.float(),
            effect_variance_qn.clamp(min=MIN_VARIANCE).float(),
        )

    def is_trained(self, design: Design) -> Tensor:
        """Return which groups are among the training groups, bool."""
        same_size = design.n_targets_g[:, None] == self.n_targets_g[None]
        same = (design.targets_gt @ self.targets_gt.T == self.n_targets_g[None]) & same_size
        return (same & (design.population_g[:, None] == self.population_g[None])).any(dim=1)

    @torch.no_grad()
    def target_effects(self, design: Design) -> Tensor:
        """Return the posterior means of the effects of single targets, one per row."""
        (basis_gi, eigenvalues_i, effects_in), scale_n = self._solution(), self.gene_scale.double()
        weights_in = effects_in / (eigenvalues_i[:, None] * scale_n + 1)
        signal_qi = self._covariance_with(design) @ basis_gi
        return (scale_n * (signal_qi @ weights_in)).float()

    def _solution(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return a basis where the noise is 1 and covariances are diagonal; these; effects."""
        if self._solved is None:
            factor = torch.linalg.cholesky(self._noise())
            covariance_gg = self._covariance_with(self.design)
            whitened = torch.linalg.solve_triangular(factor, covariance_gg, upper=False)
            whitened = torch.linalg.solve_triangular(factor, whitened.T, upper=False)
            eigenvalues_i, vectors_gi = torch.linalg.eigh((whitened + whitened.T) / 2)
            basis_gi = torch.linalg.solve_triangular(factor.T, vectors_gi, upper=True)
            effects_in = basis_gi.T @ self.effects_gn.double()
            self._solved = basis_gi, eigenvalues_i.clamp(min=0), effects_in
        return self._solved

    def _covariance_with(self, design: Design) -> Tensor:
        """Return the prior covariance of effects with those of the training groups."""
        variances, sharing = self.log_variances.double().exp(), self.sharing.double()
        return self._covariance(design, self.design, variances, sharing)

    def _covariance(self, a: Design, b: Design, variances: Tensor, sharing: Tensor) -> Tensor:
        a, b = (Design(*(part.double() for part in design)) for design in (a, b))
        n_a, n_b = a.n_targets_g[:, None], b.n_targets_g[None]
        overlap = a.targets_gt @ b.targets_gt.T
        is_same = (overlap == n_a) & (overlap == n_b) & (n_a > 1)
        covariance = variances[0] * (n_a * n_b) + variances[1] * overlap + variances[2] * is_same
        features = [design.features_gf.split(self.feature_blocks, dim=1) for design in (a, b)]
        for variance, of_a, of_b in zip(variances[3:], *features, strict=True):
            covariance = covariance + variance * of_a @ of_b.T
        # Populations that are not of the training are only more or less similar to those.
        likeness = a.similarity_gp[:, b.population_g.long()]
        is_same = a.population_g[:, None] == b.population_g[None]
        return covariance * (sharing[0] + sharing[1] * likeness + sharing[2] * is_same)

    def _prior_variance(self, design: Design) -> Tensor:
        """Return the prior variance of effects."""
        variances = self.log_variances.double().exp()
        n_targets = design.n_targets_g.double()
        variance_q = variances[0] * n_targets**2 + variances[1] * n_targets
        variance_q = variance_q + variances[2] * (n_targets > 1)
        features = design.features_gf.double().split(self.feature_blocks, dim=1)
        for variance, of_block in zip(variances[3:], features, strict=True):
            variance_q = variance_q + variance * of_block.square().sum(dim=1)
        return variance_q

    def _noise(self) -> Tensor:
        """Return the covariance of the noise of training groups; control cells are shared."""
        is_same = self.population_g[:, None] == self.population_g[None]
        noise = is_same / self.n_controls_g[None] + torch.diag(1 / self.n_cells_g + JITTER)
        return noise.double()

    def __getstate__(self) -> dict:
        """Leave out the solution: a copy may be moved to another device."""
        return self.__dict__ | {"_solved": None}


class EffectNet(nn.Module):
    """Correction of effects from what is known about targets, gene and population."""

    def __init__(self, n_target_inputs: int, n_gene_inputs: int) -> None:
        super().__init__()
        n_inputs, n_hidden = n_target_inputs + n_gene_inputs, N_NET_HIDDEN
        self.of_target = nn.Sequential(
            nn.Linear(n_inputs, n_hidden), nn.GELU(), nn.Linear(n_hidden, n_hidden)
        )
        last = nn.Linear(n_hidden, 1)
        self.of_sum = nn.Sequential(nn.Linear(n_hidden + n_gene_inputs, n_hidden), nn.GELU(), last)
        # Untrained, it corrects nothing.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, targets_gtnu: Tensor, is_target_gt: Tensor, genes_gnx: Tensor) -> Tensor:
        """Return the corrections, ``(n_groups, n_genes)``."""
        per_target = genes_gnx[:, None].expand(-1, targets_gtnu.shape[1], -1, -1)
        hidden_gtnh = self.of_target(torch.cat([targets_gtnu, per_target], dim=-1))
        sum_gnh = (hidden_gtnh * is_target_gt[:, :, None, None]).sum(dim=1)
        return self.of_sum(torch.cat([sum_gnh, genes_gnx], dim=-1))[..., 0]


class EffectModel(nn.Module):
    """Mean effects of perturbations on log-normalised expression, see ``docs/perturbation.md``."""

    def __init__(self, sizes: EffectSizes, names: EffectNames) -> None:
        super().__init__()
        self.sizes, self.names = sizes, names
        n_populations, n_genes = sizes.n_populations, sizes.n_genes
        blocks = (sizes.n_embedding,) * bool(sizes.n_embedding) + sizes.named_blocks
        self.mixed = MixedEffects(sizes.n_groups, sizes.n_targets, n_populations, n_genes, blocks)
        self.net = EffectNet(N_TARGET_INPUTS, N_OWN_GENE_INPUTS + sizes.n_context)
        self.gene_ids = nn.Buffer(torch.zeros(n_genes, dtype=torch.int64))
        self.gene_sd = nn.Buffer(torch.ones(n_genes))
        # Of the standard deviation and the correction, by where the targets were seen.
        self.calibration = nn.Buffer(torch.ones(3))
        self.gate = nn.Buffer(torch.zeros(3))
        self.control_mean = nn.Buffer(torch.zeros(n_populations, n_genes))
        self.control_expressing = nn.Buffer(torch.zeros(n_populations, n_genes))
        self.latent = nn.Buffer(torch.zeros(n_populations, sizes.n_latent))
        self.latent_width = nn.Buffer(torch.ones(()))
        self.context = nn.Buffer(torch.zeros(n_populations, n_genes, sizes.n_context))
        self.context_mean = nn.Buffer(torch.zeros(sizes.n_hidden))
        self.context_axes = nn.Buffer(torch.zeros(sizes.n_hidden, sizes.n_context))
        self.named_features = nn.Buffer(torch.zeros(sizes.n_named, sum(sizes.named_blocks)))

    @property
    def controls(self) -> Controls:
        """The control cells of the training."""
        return Controls(self.control_mean, self.control_expressing, self.latent, self.context)

    @property
    def uses_encoder(self) -> bool:
        """Whether predictions depend on the encoder; if not, they are the same for any encoder."""
        return len(self.latent) > 1 or self.sizes.n_embedding > 0 or bool(self.gate.any())

    def set_controls(self, moments: GroupMoments, latent: Tensor, embeddings: Tensor) -> Controls:
        """Take the control cells of the training, with principal components of gene embeddings."""
        known_nd = embeddings[embeddings.isfinite().all(dim=2)]
        if len(known_nd) > self.sizes.n_context:
            self.context_mean.copy_(known_nd.mean(dim=0))
            # Their signs are arbitrary, but the network is trained on what they are here.
            axes_dd = torch.linalg.eigh(torch.cov(known_nd.T))[1].flip(1)
            axes_dc = axes_dd[:, : self.sizes.n_context]
            spread_c = ((known_nd - self.context_mean) @ axes_dc).std(dim=0).clamp(min=1e-6)
            self.context_axes.copy_(axes_dc / spread_c)
        if len(latent) > 1:
            self.latent_width.copy_(torch.pdist(latent).median().clamp(min=1e-6))
        controls = self.controls_of(moments, latent, embeddings)
        for buffer, values in zip(self.controls, controls, strict=True):
            buffer.copy_(values)
        return controls

    def controls_of(self, moments: GroupMoments, latent: Tensor, embeddings: Tensor) -> Controls:
        """Return control cells; genes that they lack (NaN) are expressed as in the training."""

        def filled(values: np.ndarray, ours: Tensor) -> Tensor:
            tensor = torch.from_numpy(values).float()
            return torch.where(tensor.isnan(), ours.mean(dim=0), tensor)

        context = [(part - self.context_mean) @ self.context_axes for part in embeddings]
        return Controls(
            filled(moments.mean, self.control_mean),
            filled(moments.expressing, self.control_expressing),
            latent,
            torch.stack(context).nan_to_num(0.0),
        )

    def similarity(self, latent_qz: Tensor) -> Tensor:
        """Return similarities from 0 to 1 to the training populations, ``(n_queries, n_pop)``."""
        if len(self.latent) == 1:  # nothing tells how effects depend on the population
            return torch.ones(len(latent_qz), 1)
        distance = torch.cdist(latent_qz, self.latent) / self.latent_width
        return (-0.5 * distance.square()).exp()

    def inputs(
        self, query: Query, controls: Controls, mixed: MixedEffects
    ) -> tuple[Prediction, NetInputs]:
        """Return what a mixed model that may have seen less predicts, and the network's inputs."""
        design, population = query.design, query.population_g
        base = mixed.predict(design)
        effects_gtn = mixed.target_effects(query.singles).view(*query.seen_gt.shape, -1)
        any_target = design._replace(
            targets_gt=torch.zeros_like(design.targets_gt),
            n_targets_g=torch.ones_like(design.n_targets_g),
            features_gf=torch.zeros_like(design.features_gf),
        )
        is_known_gtn = (query.seen_gt == HERE)[:, :, None].expand(effects_gtn.shape)
        of_target = [effects_gtn.asinh(), is_known_gtn.float(), query.affinity_gtn]
        mean_gn = controls.mean_pn[population]
        size_g = base.mean_gn.square().mean(dim=1).sqrt()
        of_gene = [
            base.mean_gn.asinh(),
            base.mean_gn * self.gene_sd,
            mixed.target_effects(any_target),
            mean_gn,
            controls.expressing_pn[population],
            self.gene_sd.expand_as(mean_gn),
            base.variance_gn.sqrt(),
            size_g[:, None].expand_as(mean_gn),
            (design.n_targets_g - 1)[:, None].expand_as(mean_gn),
        ]
        genes_gnx = torch.cat([torch.stack(of_gene, -1), controls.context_pnc[population]], dim=-1)
        return base, NetInputs(torch.stack(of_target, dim=-1), query.is_target_gt, genes_gnx)

    @torch.inference_mode()
    def predict(self, query: Query, controls: Controls) -> tuple[Tensor, Tensor, Tensor]:
        """Return effect, its standard deviation and score on log-normalised expression."""
        base = self.mixed.predict(query.design)
        is_trained_g, kind_g = self.mixed.is_trained(query.design), query.kind_g
        # Measured effects need no correction: the network was trained on those left out.
        gate_g1 = torch.where(is_trained_g, 0.0, self.gate[kind_g])[:, None]
        calibration_g1 = torch.where(is_trained_g, 1.0, self.calibration[kind_g])[:, None]
        correction_gn = torch.zeros_like(base.mean_gn)
        if bool(gate_g1.any()):
            correction_gn = gate_g1 * self.net(*self.inputs(query, controls, self.mixed)[1])
        effect_gn = (base.mean_gn + correction_gn) * self.gene_sd
        std_gn = calibration_g1 * base.variance_gn.sqrt() * self.gene_sd
        effect_std_gn = calibration_g1 * base.effect_variance_gn.sqrt()
        return effect_gn, std_gn, (base.effect_gn + correction_gn) / effect_std_gn
