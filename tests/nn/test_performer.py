"""FAVOR+ approximates softmax attention as its theory says, chunk by chunk."""

import pytest
import torch
from torch.testing import assert_close

from scxtrimo.nn import layers, performer
from scxtrimo.nn.performer import (
    FavorAttention,
    Performer,
    PerformerDecoder,
    exponential_features,
    orthogonal_features,
)
from scxtrimo.nn.ragged import EncodedCells, HiddenGenes


def draw(n_features: int, seed: int) -> torch.Tensor:
    return orthogonal_features(n_features, 8, torch.Generator().manual_seed(seed)).double()


def test_features_are_orthogonal_within_blocks_and_as_long_as_gaussian_vectors():
    features = draw(8, 0)
    cosine = torch.nn.functional.normalize(features, dim=1)
    assert_close(cosine @ cosine.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-6)
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
        q_m, highest_q = exponential_features(q, features, is_query=True)
        k_m, highest_k = exponential_features(k, features, is_query=False)
        estimates.append(q_m @ k_m.transpose(1, 2) / 16 * torch.exp(highest_q + highest_k))
    assert_close(torch.stack(estimates).mean(0), exact, rtol=0.05, atol=0)


def test_the_error_falls_with_the_number_of_features():
    generator = torch.Generator().manual_seed(1)
    q, k, v = 0.5 * torch.randn(3, 1, 40, 8, generator=generator, dtype=torch.float64)
    exact = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v

    def error(n_features: int) -> float:
        errors = []
        for seed in range(40):
            features = draw(n_features, seed)
            q_m, _ = exponential_features(q, features, is_query=True)
            k_m, _ = exponential_features(k, features, is_query=False)
            approximate = (q_m @ (k_m.transpose(1, 2) @ v)) / (q_m @ k_m.sum(1)[..., None])
            errors.append((approximate - exact).square().mean())
        return torch.stack(errors).mean().sqrt().item()

    # theory: the error is proportional to the inverse square root of the number of features
    assert error(16) / error(256) == pytest.approx(4, rel=0.5)


def naive_attention(attention: FavorAttention, x: torch.Tensor) -> torch.Tensor:
    """The published formula with all genes at once."""
    q, k, v = attention.qkv(x).view(len(x), 3, attention.n_heads, -1).permute(1, 2, 0, 3)

    def features(y: torch.Tensor, dims) -> torch.Tensor:
        y = y / y.shape[-1] ** 0.25
        projected = y @ attention.features.T
        shifted = projected - y.square().sum(-1, keepdim=True) / 2
        return torch.exp(shifted - projected.amax(dims, keepdim=True).detach()) + 1e-4

    q, k = features(q, -1), features(k, (0, 1, 2))
    out = (q @ (k.transpose(1, 2) @ v)) / (q @ k.sum(1)[..., None])
    return attention.out(out.transpose(0, 1).flatten(1))


def naive(network: Performer, x: torch.Tensor) -> torch.Tensor:
    for layer in network.layers:
        x = x + naive_attention(layer.attention, layer.attention_norm(x))
        x = x + layer.feed_forward(layer.feed_forward_norm(x))
    return network.norm(x)


@pytest.mark.parametrize("chunk", [3, 7, 100])
def test_chunks_change_neither_result_nor_gradient(monkeypatch, chunk):
    monkeypatch.setattr(performer, "CHUNK", chunk)
    monkeypatch.setattr(layers, "WORTH_RECOMPUTING", 4)  # some chunks are, some not
    torch.manual_seed(0)
    network = Performer(n_layers=2, n_hidden=12, n_heads=2, head_width=6).double()
    x = torch.randn(20, 12, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([4, 19, 0, 4])
    result, expected = network(x, rows), naive(network, x)[rows]
    assert_close(result, expected)
    weights = torch.randn_like(expected)
    parameters = [x, *network.parameters()]
    gradients = torch.autograd.grad((result * weights).sum(), parameters)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), parameters)
    for gradient, other in zip(gradients, expected_gradients):
        assert_close(gradient, other)
    with torch.inference_mode():
        assert_close(network(x), naive(network, x))


def test_attention_is_seeded_and_can_be_redrawn():
    first, again, other = (FavorAttention(16, 2, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(first.features, again.features)
    assert not torch.equal(first.features, other.features)
    again.redraw(1)
    assert torch.equal(again.features, other.features)


def cells_of_two(decoder_width: int = 16) -> tuple[EncodedCells, torch.Tensor]:
    """Two cells with a cell token and three and two encoded genes of nine."""
    torch.manual_seed(1)
    ids = torch.tensor([-1, 2, 5, 8, -1, 0, 2])
    cu = torch.tensor([0, 4, 7], dtype=torch.int32)
    nothing = torch.zeros(2, 0)
    cells = EncodedCells(torch.randn(7, 16), cu, ids, nothing, nothing, torch.randn(16))
    return cells, torch.randn(9, 16)


def test_a_cell_in_the_decoder_depends_on_its_own_tokens_only():
    cells, genes = cells_of_two()
    decoder = PerformerDecoder(12, 16, n_layers=2, n_heads=2, head_width=6)
    asked = torch.arange(9).repeat(2)
    both = decoder(cells, genes, asked, torch.tensor([0, 9, 18])).view(2, 9)
    second = cells._replace(
        tokens_td=cells.tokens_td[4:],
        gene_ids_t=cells.gene_ids_t[4:],
        cu_seqlens=torch.tensor([0, 3]),
    )
    alone = decoder(second, genes, asked[:9], torch.tensor([0, 9]))
    assert_close(both[1], alone)
    assert not torch.isclose(both[0], both[1]).any()
    changed = cells._replace(tokens_td=cells.tokens_td.clone())
    changed.tokens_td[0] += 1  # the cell token has no place among the genes
    assert_close(decoder(changed, genes, asked, torch.tensor([0, 9, 18])).view(2, 9), both)


def test_hidden_genes_take_the_place_of_zeros():
    cells, genes = cells_of_two()
    decoder = PerformerDecoder(12, 16, n_layers=1, n_heads=2, head_width=6)
    asked, ends = torch.arange(9).repeat(2), torch.tensor([0, 9, 18])
    gene, cu = torch.tensor([4]), torch.tensor([0, 1, 1])

    def predict(token: torch.Tensor) -> torch.Tensor:
        hidden = HiddenGenes(token[None], gene, cu)
        return decoder(cells._replace(hidden=hidden), genes, asked, ends).view(2, 9)

    without = decoder(cells, genes, asked, ends).view(2, 9)
    assert_close(predict(cells.zero_d), without)
    masked = predict(torch.randn(16))
    assert not torch.isclose(masked[0], without[0]).any()
    assert_close(masked[1], without[1])
