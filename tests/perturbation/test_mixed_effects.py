"""The mixed model against the textbook, and the correcting network."""

import numpy as np
import pytest
import torch

from scxtrimo.perturbation.effects import Design, EffectNet, MixedEffects


def design(targets, population=None, n_populations=1, n_controls=100.0) -> Design:
    targets = torch.as_tensor(targets, dtype=torch.float32)
    population = torch.zeros(len(targets), dtype=torch.int64) if population is None else population
    return Design(
        targets,
        targets.sum(dim=1),
        torch.zeros(len(targets), 0),
        torch.eye(n_populations)[population],
        population,
        torch.full((len(targets),), float(n_controls)),
    )


def model_of(targets, effects, n_cells=100.0, **kwargs) -> MixedEffects:
    of_training = design(targets, **kwargs)
    n_populations = of_training.similarity_gp.shape[1]
    model = MixedEffects(len(targets), np.shape(targets)[1], n_populations, effects.shape[1])
    model.set(
        of_training,
        torch.as_tensor(effects, dtype=torch.float32),
        torch.full((len(targets),), float(n_cells)),
    )
    return model


def simulated(n_targets=30, n_pairs=30, n_genes=200, seed=0):
    rng = np.random.default_rng(seed)
    single = rng.normal(0, 0.5, (n_targets, n_genes)) + rng.normal(0, 0.2, n_genes)
    pairs = np.array([rng.choice(n_targets, 2, replace=False) for _ in range(n_pairs)])
    targets = np.zeros((n_targets + n_pairs, n_targets))
    targets[np.arange(n_targets), np.arange(n_targets)] = 1
    targets[n_targets + np.arange(n_pairs)[:, None], pairs] = 1
    true = targets @ single
    noise = rng.normal(0, 0.1, true.shape) - rng.normal(0, 0.1, n_genes)
    return targets, true, true + noise


def test_the_posterior_mean_is_that_of_henderson():
    """BLUP by the mixed model equations, without the trick of the covariance of observations."""
    rng = np.random.default_rng(1)
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    effects = rng.normal(size=(4, 5))
    model = model_of(targets, effects, n_cells=50.0, n_controls=80.0)
    model.log_variances.copy_(torch.tensor([0.3, 0.7, 0.2]).log())
    # Unknowns: common effect, three targets, one combination, noise of the control cells.
    n_targets = targets.sum(axis=1, keepdims=True)
    z = np.hstack([n_targets, targets, [[0], [0], [1], [0]], np.ones((4, 1))])
    prior = np.diag(1 / np.array([0.3, 0.7, 0.7, 0.7, 0.2, 1 / 80]))
    u = np.linalg.solve(z.T @ z * 50 + prior, z.T @ effects * 50)
    asked = np.array([[1, 0, 1], [0, 1, 0]])
    z_asked = np.hstack(
        [asked.sum(axis=1, keepdims=True), asked, np.zeros((2, 1)), np.ones((2, 1))]
    )
    predicted = model.predict(design(asked, n_controls=80.0))
    np.testing.assert_allclose(predicted.mean_gn, z_asked @ u, rtol=2e-4, atol=1e-5)
    # The combination asked for is another one than that of the training.
    covariance = np.linalg.inv(z.T @ z * 50 + prior)
    variance = np.diag(z_asked @ covariance @ z_asked.T) + np.array([0.2, 0])
    np.testing.assert_allclose(predicted.variance_gn[:, 0], variance, rtol=2e-3)


def test_the_scale_of_a_gene_multiplies_its_variances():
    targets, _, observed = simulated()
    asked = design(targets[:3])
    twice, scaled = model_of(targets, observed), model_of(targets, observed)
    twice.log_variances += np.log(2.0)
    scaled.gene_scale.fill_(2.0)
    for a, b in zip(twice.predict(asked), scaled.predict(asked), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_genes_that_do_not_react_are_left_alone():
    """Their noise is not taken for effects, and those that react are not shrunk."""
    rng = np.random.default_rng(2)
    targets, true, observed = simulated()
    observed[:, 100:] += rng.normal(0, 0.1, (len(targets), 100)) - true[:, 100:]
    true[:, 100:] = 0
    model = model_of(targets, observed)
    model.fit()
    predicted = model.predict(design(targets))
    error = np.square(predicted.effect_gn.numpy() - true).mean(axis=0)
    assert error[100:].mean() < 0.3 * np.square(observed - true)[:, 100:].mean()
    assert model.gene_scale[:100].median() > 30 * model.gene_scale[100:].median()
    z = (predicted.effect_gn.numpy() - true) / predicted.effect_variance_gn.sqrt().numpy()
    assert 0.85 < z[:, :100].std() < 1.15


def test_variances_are_recovered():
    targets, _, observed = simulated()
    model = model_of(targets, observed)
    model.fit()
    common, target, combination = model.log_variances.exp().tolist()
    assert 0.02 < common < 0.08
    assert target == pytest.approx(0.25, rel=0.25)
    assert combination < 0.01


def test_it_beats_the_additive_model_and_the_mean():
    targets, true, observed = simulated()
    model = model_of(targets[:50], observed[:50], n_cells=100)
    model.fit()
    predicted = model.predict(design(targets[50:])).mean_gn.numpy()
    additive = targets[50:] @ observed[:30]

    def error(effect):
        return np.square(effect - observed[50:]).mean()

    assert error(predicted) < error(additive)
    assert error(predicted) < 0.1 * error(observed[:50].mean(axis=0))


def test_without_data_on_a_target_the_common_effect_is_predicted():
    targets, _, observed = simulated()
    padded = np.hstack([targets, np.zeros((len(targets), 2))])
    model = model_of(padded, observed)
    model.fit()
    unseen = np.zeros((2, padded.shape[1]))
    unseen[0, -1] = unseen[1, -2] = 1
    predicted = model.predict(design(unseen))
    torch.testing.assert_close(predicted.mean_gn[0], predicted.mean_gn[1])
    assert np.corrcoef(predicted.mean_gn[0], observed[:30].mean(axis=0))[0, 1] > 0.9
    seen = model.predict(design(padded[:1]))
    assert predicted.variance_gn[0].mean() > 10 * seen.variance_gn[0].mean()


@pytest.mark.parametrize("sign", [1.0, 0.0, -1.0])
def test_effects_are_shared_between_populations_if_they_are_the_same(sign):
    rng = np.random.default_rng(3)
    n_targets, n_genes = 20, 200
    single = rng.normal(0, 0.5, (n_targets, n_genes))
    other = sign * single + (1 - abs(sign)) * rng.normal(0, 0.5, (n_targets, n_genes))
    targets = np.vstack([np.eye(n_targets)] * 2)
    population = torch.arange(2).repeat_interleave(n_targets)
    effects = np.vstack([single, other]) + rng.normal(0, 0.1, (2 * n_targets, n_genes))
    model = model_of(targets, effects, population=population, n_populations=2)
    # Two populations say nothing about how effects depend on how much alike they are.
    model.similarity_gp.copy_(torch.tensor([[1.0, 0.6], [0.6, 1.0]])[population])
    model.fit()
    alike = float(model.sharing[0] + 0.6 * model.sharing[1])
    assert alike > 0.9 if sign == 1 else alike < 0.15
    hidden = torch.arange(len(targets)) != 2 * n_targets - 1
    predicted = model.without(hidden).predict(model.design.rows(torch.tensor([-1]))).effect_gn
    error = np.square(predicted.numpy() - other[-1]).mean()
    nothing = np.square(other[-1]).mean()
    assert error < 0.1 * nothing if sign == 1 else error < 1.1 * nothing


def test_leaving_groups_out_is_training_without_them():
    targets, _, observed = simulated()
    model = model_of(targets, observed)
    model.fit()
    keep = torch.arange(len(targets)) < 40
    left = model.without(keep)
    alone = model_of(targets[:40], observed[:40])
    alone.log_variances.copy_(model.log_variances)
    alone._fit_gene_scale()
    asked = design(targets[40:])
    torch.testing.assert_close(left.predict(asked).mean_gn, alone.predict(asked).mean_gn)


def test_the_network_starts_at_zero_and_has_no_order_of_targets():
    torch.manual_seed(0)
    net = EffectNet(3, 5)
    targets, genes = torch.randn(4, 2, 7, 3), torch.randn(4, 7, 5)
    is_target = torch.tensor([[True, True], [True, False], [True, True], [True, False]])
    assert net(targets, is_target, genes).abs().max() == 0
    torch.nn.init.normal_(net.of_sum[-1].weight)
    value = net(targets, is_target, genes)
    assert value.shape == (4, 7)
    swapped = net(targets.flip(1), is_target.flip(1), genes)
    torch.testing.assert_close(value, swapped)
    targets[1, 1] = 100.0  # there is no such target
    torch.testing.assert_close(net(targets, is_target, genes), value)
