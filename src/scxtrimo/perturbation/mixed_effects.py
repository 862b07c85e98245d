"""Effects of perturbations as the sum of what their targets do: a linear mixed model."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .design import Design, Prediction

MAX_FITTED = 500
MAX_BINS = 6
N_ROUNDS = 3
COMBINATION_SHARE = 0.1
COMBINATION_WEIGHT = 1.0
SCALE_WIDTH = 2.0
MIN_VARIANCE = 1e-6
JITTER = 1e-6


class _Solution(NamedTuple):
    """The training groups in the basis in which noise and covariance are diagonal.

    There the posterior of every gene, with a scale of its own, is a division.
    """

    basis_gi: Tensor
    eigenvalues_i: Tensor
    effects_in: Tensor

    def divisors(self, scale_n: Tensor) -> Tensor:
        """Return the variances of the effects in this basis, shape ``(n_groups, n_genes)``."""
        return self.eigenvalues_i[:, None] * scale_n + 1


class MixedEffects(nn.Module):
    r"""Linear mixed model of the effects of perturbations.

    The mean expression of the cells of population :math:`k` in which the genes :math:`p` were
    perturbed, less that of its control cells, in units of the standard deviation between cells, is

    .. math::
        \delta_{kp} = \sum_{t \in p} \left( m_k + e_{kt} + F_t w_k \right) + i_{kp}
            + \varepsilon_{kp} - \varepsilon_{k0}

    with independent normal effects: what all perturbations have in common, :math:`m`, what a
    target does, :math:`e_t`, what follows from its features, :math:`F_t w`, and what a
    combination does beyond the sum, :math:`i`. Each has a part that all populations share, one
    shared in as far as they are alike, and one that each has for itself. The noise
    :math:`\varepsilon` is known from the numbers of cells; that of the control cells is the same
    for all perturbations of a population. The variances are fitted by
    maximum likelihood, then one factor for every gene, as few genes react and these strongly;
    effects are predicted by their posterior mean :cite:p:`Henderson1975`. The additive model, the
    mean of the training perturbations and ridge regression on features are special cases.

    Parameters
    ----------
    n_groups, n_targets, n_populations, n_genes
        Sizes of the training data.
    feature_blocks
        Numbers of features of targets that share a variance.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.perturbation.design import Design
    >>> from scxtrimo.perturbation.mixed_effects import MixedEffects
    >>> targets = torch.eye(3)  # three genes, each perturbed alone, in one population of cells
    >>> nothing, ones = torch.zeros(3, 0), torch.ones(3)
    >>> design = Design(targets, ones, nothing, ones[:, None], torch.zeros(3).long(), 100 * ones)
    >>> model = MixedEffects(n_groups=3, n_targets=3, n_populations=1, n_genes=50)
    >>> model.set(design, effects_gn=torch.randn(3, 50), n_cells_g=50 * ones)
    >>> model.fit(n_steps=5)
    >>> model.predict(design).effect_gn.shape, model.target_effects(design).shape
    (torch.Size([3, 50]), torch.Size([3, 50]))
    >>> model.is_trained(design)
    tensor([True, True, True])
    >>> held_out = model.without(torch.tensor([True, True, False]))
    >>> len(held_out.design.n_targets_g)
    2
    """

    targets_gt: Tensor
    n_targets_g: Tensor
    features_gf: Tensor
    similarity_gp: Tensor
    population_g: Tensor
    n_controls_g: Tensor
    n_cells_g: Tensor
    effects_gn: Tensor
    log_variances: Tensor
    sharing: Tensor
    gene_scale: Tensor

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
        self.register_buffer("n_controls_g", torch.ones(n_groups))
        self.register_buffer("effects_gn", torch.zeros(n_groups, n_genes))
        # Common effect, target, combination, and one for every block of features.
        self.register_buffer("log_variances", torch.full((3 + len(feature_blocks),), -4.0))
        # Parts that all populations share, that those alike share, and that each has for itself.
        alone = n_populations == 1
        self.register_buffer("sharing", torch.tensor([1.0, 0.0, 0.0] if alone else [1 / 3] * 3))
        self.register_buffer("gene_scale", torch.ones(n_genes))
        self._solved: _Solution | None = None

    @property
    def design(self) -> Design:
        """The groups of the training."""
        return Design(
            self.targets_gt,
            self.n_targets_g,
            self.features_gf,
            self.similarity_gp,
            self.population_g,
            self.n_controls_g,
        )

    def set(self, design: Design, effects_gn: Tensor, n_cells_g: Tensor) -> None:
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
        """
        for name, value in design._asdict().items():
            getattr(self, name).copy_(value)
        self.effects_gn.copy_(effects_gn)
        self.n_cells_g.copy_(n_cells_g)
        self._solved = None

    def fit(self, seed: int = 0, n_steps: int = 40) -> None:
        """Fit variances and the scales of the genes in turn, by maximum likelihood.

        Parameters
        ----------
        seed
            Seed of the draw of five hundred groups, if there are more.
        n_steps
            Steps of the optimiser at most, each time.
        """
        n_groups = len(self.effects_gn)
        drawn = torch.arange(n_groups)
        if n_groups > MAX_FITTED:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randperm(n_groups, generator=generator)[:MAX_FITTED]
        self.gene_scale.fill_(1.0)
        for _ in range(N_ROUNDS):
            self._fit_variances(drawn, n_steps)
            self._fit_gene_scale()

    def _fit_variances(self, drawn: Tensor, n_steps: int) -> None:
        """Fit what the genes have in common, with their scales as they are."""
        design, effects_gn = self.design.rows(drawn), self.effects_gn[drawn].double()
        noise_gg = self._noise(drawn).double()
        bins = []  # genes of about the same scale have one covariance
        for genes in self.gene_scale.argsort(stable=True).chunk(MAX_BINS):
            scale = self.gene_scale[genes].log().mean().exp().double()
            gram_gg = effects_gn[:, genes] @ effects_gn[:, genes].T / len(genes)
            bins.append((len(genes) / len(self.gene_scale), scale, gram_gg))
        one_population = self.similarity_gp.shape[1] == 1
        start = torch.cat([self.log_variances.double(), self.sharing.double().clamp(1e-3).log()])
        parameters = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [parameters], max_iter=n_steps, line_search_fn="strong_wolfe"
        )

        def negative_log_likelihood() -> Tensor:
            optimizer.zero_grad()
            variances = parameters[:-3].clamp(-14, 6).exp()
            sharing = self.sharing.double() if one_population else parameters[-3:].softmax(dim=0)
            signal_gg = self._covariance(design, design, variances, sharing)
            # A weak pull keeps what the data say nothing about where it was.
            loss = 0.005 * (parameters - start).square().sum()
            # Pairs of genes of which neither was perturbed alone do not tell what each does from
            # what they do together; most pairs do little together (Norman et al. 2019).
            peculiar = parameters[2] - parameters[1] - math.log(COMBINATION_SHARE)
            loss = loss + 0.5 * COMBINATION_WEIGHT * peculiar.square()
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
        """Fit by how much larger the variances are for each gene, on a grid."""
        solution = self._solution()
        squares_in = solution.effects_in.square()
        best_n = torch.full((squares_in.shape[1],), -torch.inf, dtype=torch.float64)
        for log_scale in torch.linspace(-7, 7, 29, dtype=torch.float64):
            variance_i = (solution.eigenvalues_i * log_scale.exp() + 1)[:, None]
            log_likelihood_n = -0.5 * (variance_i.log() + squares_in / variance_i).sum(dim=0)
            log_posterior_n = log_likelihood_n - 0.5 * (log_scale / SCALE_WIDTH) ** 2
            self.gene_scale[log_posterior_n > best_n] = log_scale.exp().float()
            best_n = torch.maximum(best_n, log_posterior_n)

    def without(self, keep_g: Tensor) -> MixedEffects:
        """Return the model that has not seen some of the groups, with the same variances.

        The scales of the genes are fitted again.

        Parameters
        ----------
        keep_g
            Groups that it has seen, bool, shape ``(n_groups,)``.

        Returns
        -------
        The model; this one stays as it is.
        """
        kept = torch.nonzero(keep_g)[:, 0]
        sizes = (self.targets_gt.shape[1], self.similarity_gp.shape[1], self.effects_gn.shape[1])
        model = MixedEffects(len(kept), *sizes, self.feature_blocks).to(self.effects_gn.device)
        model.set(self.design.rows(kept), self.effects_gn[kept], self.n_cells_g[kept])
        model.log_variances.copy_(self.log_variances)
        model.sharing.copy_(self.sharing)
        model._fit_gene_scale()
        return model

    @torch.no_grad()
    def predict(self, design: Design) -> Prediction:
        """Return what is expected of groups of cells.

        Parameters
        ----------
        design
            The groups to predict, the same in every population or not.

        Returns
        -------
        Means and variances, float32.
        """
        solution, scale_n = self._solution(), self.gene_scale.double()
        signal_qi = self._covariance_with(design) @ solution.basis_gi
        noise_qi = self._shared_noise(design) @ solution.basis_gi
        precision_in = 1 / solution.divisors(scale_n)
        weights_in = precision_in * solution.effects_in
        signal_q, noise_q = self._own_variances(design)
        effect_qn = scale_n * (signal_qi @ weights_in)
        effect_variance_qn = scale_n * (
            signal_q[:, None] - scale_n * (signal_qi.square() @ precision_in)
        )
        mean_qn = effect_qn + noise_qi @ weights_in
        variance_qn = effect_variance_qn + noise_q[:, None]
        variance_qn = variance_qn - 2 * scale_n * ((signal_qi * noise_qi) @ precision_in)
        variance_qn = variance_qn - noise_qi.square() @ precision_in
        return Prediction(
            mean_qn.float(),
            variance_qn.clamp(min=MIN_VARIANCE).float(),
            effect_qn.float(),
            effect_variance_qn.clamp(min=MIN_VARIANCE).float(),
        )

    def is_trained(self, design: Design) -> Tensor:
        """Return which groups are among those of the training.

        Parameters
        ----------
        design
            The groups to look for.

        Returns
        -------
        bool, shape ``(n_groups,)``.
        """
        same_size = design.n_targets_g[:, None] == self.n_targets_g[None]
        same = (design.targets_gt @ self.targets_gt.T == self.n_targets_g[None]) & same_size
        return (same & (design.population_g[:, None] == self.population_g[None])).any(dim=1)

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
        solution, scale_n = self._solution(), self.gene_scale.double()
        weights_in = solution.effects_in / solution.divisors(scale_n)
        signal_qi = self._covariance_with(design) @ solution.basis_gi
        return (scale_n * (signal_qi @ weights_in)).float()

    def _solution(self) -> _Solution:
        """Return the basis in which the noise is 1 and the covariance of effects diagonal."""
        if self._solved is None:
            everything = torch.arange(len(self.n_cells_g), device=self.n_cells_g.device)
            factor = torch.linalg.cholesky(self._noise(everything).double())
            covariance_gg = self._covariance_with(self.design)
            whitened = torch.linalg.solve_triangular(factor, covariance_gg, upper=False)
            whitened = torch.linalg.solve_triangular(factor, whitened.T, upper=False)
            eigenvalues_i, vectors_gi = torch.linalg.eigh((whitened + whitened.T) / 2)
            basis_gi = torch.linalg.solve_triangular(factor.T, vectors_gi, upper=True)
            self._solved = _Solution(
                basis_gi, eigenvalues_i.clamp(min=0), basis_gi.T @ self.effects_gn.double()
            )
        return self._solved

    def _covariance_with(self, design: Design) -> Tensor:
        """Return the covariance of effects with those of the training groups."""
        variances, sharing = self.log_variances.double().exp(), self.sharing.double()
        return self._covariance(design, self.design, variances, sharing)

    def _covariance(self, a: Design, b: Design, variances: Tensor, sharing: Tensor) -> Tensor:
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
        is_same = a.population_g[:, None] == b.population_g[None]
        return covariance * (sharing[0] + sharing[1] * likeness + sharing[2] * is_same)

    def _own_variances(self, design: Design) -> tuple[Tensor, Tensor]:
        """Return variances of effects, and of the noise of the control cells, before any data."""
        variances = self.log_variances.double().exp()
        n_targets = design.n_targets_g.double()
        variance_q = variances[0] * n_targets**2 + variances[1] * n_targets
        variance_q = variance_q + variances[2] * (n_targets > 1)
        features = design.features_gf.double().split(self.feature_blocks, dim=1)
        for variance, of_block in zip(variances[3:], features, strict=True):
            variance_q = variance_q + variance * of_block.square().sum(dim=1)
        return variance_q, 1 / design.n_controls_g.double()

    def _shared_noise(self, design: Design) -> Tensor:
        """Return the covariance that comes from the same control cells."""
        is_same_qg = design.population_g[:, None] == self.population_g[None]
        return is_same_qg / self.n_controls_g.double()[None]

    def _noise(self, index: Tensor) -> Tensor:
        population = self.population_g[index]
        is_same = population[:, None] == population[None]
        noise = is_same / self.n_controls_g[index][None]
        return noise + torch.diag(1 / self.n_cells_g[index] + JITTER)

    def __getstate__(self) -> dict:
        """Leave out what can be computed again."""
        return self.__dict__ | {"_solved": None}


def cosine(a_nd: Tensor, b_md: Tensor) -> Tensor:
    """Return all cosines between rows; 0 where a row is 0."""
    return F.normalize(a_nd) @ F.normalize(b_md).T
