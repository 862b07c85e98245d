"""Effects of perturbations as the sum of what their targets do: a linear mixed model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_FITTED = 1000
JITTER = 1e-6


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
    """

    targets_gt: Tensor
    n_targets_g: Tensor
    features_gf: Tensor
    similarity_gp: Tensor
    population_g: Tensor

    def rows(self, index: Tensor) -> Design:
        """Return some of the groups."""
        return Design(*(part[index] for part in self))


class Prediction(NamedTuple):
    """Effects, in units of the standard deviation of a gene between cells.

    Parameters
    ----------
    mean_gn
        Expected effects, shape ``(n_groups, n_genes)``.
    variance_g
        Their variance, the same for all genes, shape ``(n_groups,)``.
    """

    mean_gn: Tensor
    variance_g: Tensor


class MixedEffects(nn.Module):
    r"""Linear mixed model of the effects of perturbations.

    The mean expression of the cells of population :math:`k` in which the genes :math:`p` were
    perturbed, less that of its control cells, in units of the standard deviation between cells, is

    .. math::
        \delta_{kp} = \sum_{t \in p} \left( m_k + e_{kt} + F_t w_k \right) + i_{kp}
            + \varepsilon_{kp} - \varepsilon_{k0}

    with independent normal effects: what all perturbations have in common, :math:`m`, what a
    target does, :math:`e_t`, what follows from its features, :math:`F_t w`, and what a
    combination does beyond the sum, :math:`i`. Each is shared between populations in as far as
    they are alike. The noise :math:`\varepsilon` is known from the numbers of cells; that of the
    control cells is the same for all perturbations of a population. The variances are fitted by
    maximum likelihood, and effects are predicted by their posterior mean
    :cite:p:`Henderson1975`. The additive model, the mean of the training perturbations and ridge
    regression on features are special cases.

    Parameters
    ----------
    n_groups, n_targets, n_populations, n_genes
        Sizes of the training data.
    feature_blocks
        Numbers of features of targets that share a variance.
    """

    targets_gt: Tensor
    n_targets_g: Tensor
    features_gf: Tensor
    similarity_gp: Tensor
    population_g: Tensor
    n_cells_g: Tensor
    n_controls_p: Tensor
    effects_gn: Tensor
    log_variances: Tensor
    shared: Tensor

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
        self.register_buffer("targets_gt", torch.zeros(n_groups, n_targets))
        self.register_buffer("n_targets_g", torch.zeros(n_groups))
        self.register_buffer("features_gf", torch.zeros(n_groups, sum(feature_blocks)))
        self.register_buffer("similarity_gp", torch.zeros(n_groups, n_populations))
        self.register_buffer("population_g", torch.zeros(n_groups, dtype=torch.int64))
        self.register_buffer("n_cells_g", torch.ones(n_groups))
        self.register_buffer("n_controls_p", torch.ones(n_populations))
        self.register_buffer("effects_gn", torch.zeros(n_groups, n_genes))
        # Common effect, target, combination, and one for every block of features.
        self.register_buffer("log_variances", torch.full((3 + len(feature_blocks),), -4.0))
        self.register_buffer("shared", torch.ones(()))
        self._solved: tuple[Tensor, Tensor] | None = None

    @property
    def design(self) -> Design:
        """The groups of the training."""
        return Design(
            self.targets_gt,
            self.n_targets_g,
            self.features_gf,
            self.similarity_gp,
            self.population_g,
        )

    def set(
        self, design: Design, effects_gn: Tensor, n_cells_g: Tensor, n_controls_p: Tensor
    ) -> None:
        """Take the training data.

        Parameters
        ----------
        design
            The groups.
        effects_gn
            Observed effects in units of the standard deviation between cells, shape
            ``(n_groups, n_genes)``.
        n_cells_g
            Perturbed cells per group.
        n_controls_p
            Control cells per population.
        """
        for name, value in design._asdict().items():
            getattr(self, name).copy_(value)
        self.effects_gn.copy_(effects_gn)
        self.n_cells_g.copy_(n_cells_g)
        self.n_controls_p.copy_(n_controls_p)
        self._solved = None

    def fit(self, seed: int = 0, n_steps: int = 60) -> None:
        """Fit the variances by maximum likelihood.

        Parameters
        ----------
        seed
            Seed of the draw of a thousand groups, if there are more.
        n_steps
            Steps of the optimiser at most.
        """
        n_groups, n_genes = self.effects_gn.shape
        drawn = torch.arange(n_groups)
        if n_groups > MAX_FITTED:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randperm(n_groups, generator=generator)[:MAX_FITTED]
        design = self.design.rows(drawn)
        effects = self.effects_gn[drawn].double()
        gram_gg = effects @ effects.T / n_genes
        noise_gg = self._noise(drawn).double()
        one_population = self.similarity_gp.shape[1] == 1
        start = torch.cat([self.log_variances.double(), torch.zeros(1, dtype=torch.float64)])
        parameters = start.requires_grad_()
        optimizer = torch.optim.LBFGS(
            [parameters], max_iter=n_steps, line_search_fn="strong_wolfe"
        )

        def negative_log_likelihood() -> Tensor:
            optimizer.zero_grad()
            variances = parameters[:-1].clamp(-14, 6).exp()
            shared = torch.ones(()) if one_population else parameters[-1].sigmoid()
            covariance_gg = self._covariance(design, design, variances, shared) + noise_gg
            factor = torch.linalg.cholesky(covariance_gg)
            loss = (
                0.5 * torch.cholesky_solve(gram_gg, factor).trace() + factor.diagonal().log().sum()
            )
            # A weak pull keeps what the data say nothing about where it was.
            loss = loss + 0.005 * (parameters - start.detach()).square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(negative_log_likelihood)
        self.log_variances.copy_(parameters.detach()[:-1].clamp(-14, 6))
        if not one_population:
            self.shared.copy_(parameters.detach()[-1].sigmoid())
        self._solved = None

    def without(self, keep_g: Tensor) -> MixedEffects:
        """Return the model that has not seen some of the groups, with the same variances.

        Parameters
        ----------
        keep_g
            Groups that it has seen, bool, shape ``(n_groups,)``.
        """
        kept = torch.nonzero(keep_g)[:, 0]
        sizes = (self.targets_gt.shape[1], self.similarity_gp.shape[1], self.effects_gn.shape[1])
        model = MixedEffects(len(kept), *sizes, self.feature_blocks).to(self.effects_gn.device)
        model.set(
            self.design.rows(kept), self.effects_gn[kept], self.n_cells_g[kept], self.n_controls_p
        )
        model.log_variances.copy_(self.log_variances)
        model.shared.copy_(self.shared)
        return model

    @torch.no_grad()
    def predict(self, design: Design) -> Prediction:
        """Return the expected effects against the control cells that were measured.

        Parameters
        ----------
        design
            The groups to predict, the same in every population or not.
        """
        inverse_gg, weights_gn = self._solution()
        cross_qg = self._covariance_with(design) + self._shared_noise(design)
        variance_q = self._own_variance(design)
        explained_q = ((cross_qg @ inverse_gg) * cross_qg).sum(dim=1)
        mean_qn = (cross_qg @ weights_gn).float()
        return Prediction(mean_qn, (variance_q - explained_q).clamp(min=1e-6).float())

    @torch.no_grad()
    def target_effects(self, design: Design) -> Tensor:
        """Return the expected effects of single targets, without those of the control cells.

        Parameters
        ----------
        design
            One target per row.

        Returns
        -------
        Shape ``(n_rows, n_genes)``.
        """
        return (self._covariance_with(design) @ self._solution()[1]).float()

    def _solution(self) -> tuple[Tensor, Tensor]:
        """Return the inverse of the covariance of the training groups, and it times effects."""
        if self._solved is None:
            everything = torch.arange(len(self.n_cells_g), device=self.n_cells_g.device)
            covariance_gg = self._covariance_with(self.design) + self._noise(everything).double()
            factor = torch.linalg.cholesky(covariance_gg)
            inverse_gg = torch.cholesky_inverse(factor)
            self._solved = inverse_gg, inverse_gg @ self.effects_gn.double()
        return self._solved

    def _covariance_with(self, design: Design) -> Tensor:
        """Return the covariance of effects with those of the training groups."""
        variances, shared = self.log_variances.double().exp(), self.shared.double()
        return self._covariance(design, self.design, variances, shared)

    def _covariance(self, a: Design, b: Design, variances: Tensor, shared: Tensor) -> Tensor:
        a, b = (Design(*(part.double() for part in design)) for design in (a, b))
        overlap = a.targets_gt @ b.targets_gt.T
        covariance = variances[0] * torch.outer(a.n_targets_g, b.n_targets_g)
        covariance = covariance + variances[1] * overlap
        sizes = a.n_targets_g[:, None], b.n_targets_g[None]
        is_same = (overlap == sizes[0]) & (overlap == sizes[1]) & (sizes[0] > 1)
        covariance = covariance + variances[2] * is_same
        features = [design.features_gf.split(self.feature_blocks, dim=1) for design in (a, b)]
        for variance, of_a, of_b in zip(variances[3:], *features, strict=True):
            covariance = covariance + variance * of_a @ of_b.T
        # Populations of the training are named; others are only more or less like them.
        likeness = a.similarity_gp[:, b.population_g.long()]
        return covariance * (shared + (1 - shared) * likeness)

    def _own_variance(self, design: Design) -> Tensor:
        """Return the variance of effects, with the noise of the control cells, before any data."""
        variances = self.log_variances.double().exp()
        n_targets = design.n_targets_g.double()
        variance_q = variances[0] * n_targets**2 + variances[1] * n_targets
        variance_q = variance_q + variances[2] * (n_targets > 1)
        features = design.features_gf.double().split(self.feature_blocks, dim=1)
        for variance, of_block in zip(variances[3:], features, strict=True):
            variance_q = variance_q + variance * of_block.square().sum(dim=1)
        is_known = design.population_g >= 0
        noise_q = 1 / self.n_controls_p.double()[design.population_g.clamp(min=0)]
        return variance_q + noise_q * is_known

    def _shared_noise(self, design: Design) -> Tensor:
        """Return the covariance that comes from the same control cells."""
        is_same_qg = design.population_g[:, None] == self.population_g[None]
        return is_same_qg / self.n_controls_p.double()[self.population_g][None]

    def _noise(self, index: Tensor) -> Tensor:
        population = self.population_g[index]
        is_same = population[:, None] == population[None]
        noise = is_same / self.n_controls_p[population][None]
        return noise + torch.diag(1 / self.n_cells_g[index] + JITTER)

    def __getstate__(self) -> dict:
        """Leave out what can be computed again."""
        return self.__dict__ | {"_solved": None}


def stack_designs(designs: list[Design]) -> Design:
    """Return the groups of several designs, one after the other."""
    return Design(*(torch.cat(parts) for parts in zip(*designs, strict=True)))


def cosine(a_nd: Tensor, b_md: Tensor) -> Tensor:
    """Return all cosines between rows; 0 where a row is 0."""
    return F.normalize(a_nd) @ F.normalize(b_md).T
