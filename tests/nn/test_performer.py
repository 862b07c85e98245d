"""FAVOR+ approximates softmax attention as its theory says."""

import pytest
import torch

from scxtrimo.nn.performer import FavorAttention, orthogonal_features, positive_features


def draw(n_features: int, seed: int) -> torch.Tensor:
    return orthogonal_features(n_features, 8, torch.Generator().manual_seed(seed)).double()


def test_features_are_orthogonal_within_blocks_and_as_long_as_gaussian_vectors():
    features = draw(8, 0)
    cosine = torch.nn.functional.normalize(features, dim=1)
    torch.testing.assert_close(
        cosine @ cosine.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-6
    )
    squares = torch.stack([draw(8, seed).square().sum(1) for seed in range(500)])
    assert squares.mean() == pytest.approx(8, rel=0.05)


def test_the_kernel_is_estimated_without_bias():
    """Products of features average to exp(q k / sqrt(d)), up to the known stabilisers."""
    generator = torch.Generator().manual_seed(0)
    q, k = 0.4 * torch.randn(2, 1, 5, 8, generator=generator, dtype=torch.float64)
    exact = torch.exp(q @ k.transpose(1, 2) / 8**0.5)
    estimates = []
    for seed in range(3000):
        features = draw(16, seed)
        products = positive_features(q, features, True) @ positive_features(
            k, features, False
        ).transpose(1, 2)
        highest_q = ((q * 8**-0.25) @ features.T).amax(-1, keepdim=True)
        highest_k = ((k * 8**-0.25) @ features.T).amax()
        estimates.append(products * torch.exp(highest_q + highest_k))
    torch.testing.assert_close(torch.stack(estimates).mean(0), exact, rtol=0.05, atol=0)


def test_the_error_falls_with_the_number_of_features():
    generator = torch.Generator().manual_seed(1)
    q, k, v = 0.5 * torch.randn(3, 1, 40, 8, generator=generator, dtype=torch.float64)
    exact = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v

    def error(n_features: int) -> float:
        errors = []
        for seed in range(40):
            features = draw(n_features, seed)
            q_m = positive_features(q, features, True)
            k_m = positive_features(k, features, False)
            approximate = (q_m @ (k_m.transpose(1, 2) @ v)) / (q_m @ k_m.sum(1)[..., None])
            errors.append((approximate - exact).square().mean())
        return torch.stack(errors).mean().sqrt().item()

    # theory: the error is proportional to the inverse square root of the number of features
    assert error(16) / error(256) == pytest.approx(4, rel=0.5)


def test_attention_is_seeded():
    first, again, other = (FavorAttention(16, 2, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(first.features, again.features)
    assert not torch.equal(first.features, other.features)
    assert first(torch.randn(30, 16)).shape == (30, 16)
