"""Parity of the blocks with the paper's formulas and with torch's own layers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from scxtrimo.nn.layers import (
    AutoDiscretization,
    Encoder,
    EncoderLayer,
    distinct_values,
    normalize_counts,
)
from scxtrimo.nn.ragged import CellBoundaries, EncodedCells
from scxtrimo.nn.xtrimogene import BottleneckDecoder, CrossAttentionDecoder

CU = torch.tensor([0, 5, 12, 13], dtype=torch.int32)


def test_normalised_counts_are_log1p_of_counts_per_ten_thousand():
    assert_close(
        normalize_counts(torch.tensor([5.0]), torch.tensor([500.0])), torch.tensor([101.0]).log()
    )


def test_auto_discretisation_is_the_formula_of_the_paper():
    module = AutoDiscretization(n_hidden=8, n_bins=10, alpha=0.7).double()
    v = torch.rand(6, dtype=torch.float64) * 5
    h = v[:, None] * module.to_bins.weight[:, 0] + module.to_bins.bias
    h = torch.where(h > 0, h, 0.1 * h)
    z = 0.7 * h + h @ module.mix_bins.weight.T + module.mix_bins.bias
    p = z.exp() / z.exp().sum(-1, keepdim=True)
    assert_close(module(v), p @ module.bins.weight)
    assert_close(module.bin_weights(v).sum(-1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_equals_torchs_transformer_encoder(norm_first, activation):
    torch.manual_seed(0)
    ours = Encoder(2, 16, 4, activation, norm_first).double()
    layer = nn.TransformerEncoderLayer(
        16, 4, 64, 0.0, activation, batch_first=True, norm_first=norm_first
    )
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False).double()
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        b.self_attn.in_proj_weight.data.copy_(a.attention.qkv.weight)
        b.self_attn.in_proj_bias.data.copy_(a.attention.qkv.bias.data.normal_())
        pairs = [
            (a.attention.out, b.self_attn.out_proj),
            (a.feed_forward.inner, b.linear1),
            (a.feed_forward.outer, b.linear2),
            (a.attention_norm, b.norm1),
            (a.feed_forward_norm, b.norm2),
        ]
        for mine, other in pairs:
            other.load_state_dict(mine.state_dict())
    x = torch.randn(13, 16, dtype=torch.float64, requires_grad=True)
    expected = torch.cat([theirs(part[None])[0] for part in x.split([5, 7, 1])])
    result = ours(x, CU)
    assert_close(result, expected)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((result * weights).sum(), x, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    assert_close(gradient, expected_gradient)


def encoded(n_hidden: int = 16, n_latent: int = 4, n_covariate: int = 2) -> EncodedCells:
    return EncodedCells(
        torch.randn(13, n_hidden),
        CU,
        torch.arange(13) % 9,
        torch.randn(3, n_latent),
        torch.randn(3, n_covariate),
        torch.randn(n_hidden),
    )


def test_bottleneck_scores_cell_vectors_against_gene_queries():
    decoder = BottleneckDecoder(n_genes=9, n_hidden=16, n_latent=4, n_covariate=2)
    nn.init.normal_(decoder.covariate_loadings)
    nn.init.normal_(decoder.log_baseline)
    cells, genes = encoded(), torch.randn(9, 16)
    scores = cells.latent_cz @ decoder.to_query(genes).T + decoder.log_baseline
    scores = scores + cells.covariates_ck @ decoder.covariate_loadings.T
    rates = torch.softmax(scores, -1)
    assert_close(decoder.log_rates(cells, genes).exp(), rates)
    asked = torch.tensor([3, 1, 8])
    predicted = decoder(cells, genes, asked, torch.tensor([0, 2, 2, 3]))
    assert_close(
        predicted, torch.log1p(1e4 * torch.stack([rates[0, 3], rates[0, 1], rates[2, 8]]))
    )


def test_cross_attention_answers_do_not_depend_on_what_else_is_asked():
    decoder = CrossAttentionDecoder(n_hidden=8, n_context=16, n_layers=2, n_heads=2)
    cells, genes = encoded(), torch.randn(9, 16)
    together = decoder(cells, genes, torch.tensor([3, 1, 8, 3]), torch.tensor([0, 2, 2, 4]))
    alone = decoder(cells, genes, torch.tensor([3]), torch.tensor([0, 0, 0, 1]))
    assert together.shape == (4,)
    assert_close(together[3], alone[0])
    assert not torch.isclose(together[0], together[3])  # the same gene in another cell


def test_cross_attention_asked_for_all_genes_of_all_cells_answers_as_for_one_gene():
    decoder = CrossAttentionDecoder(n_hidden=8, n_context=16, n_layers=1, n_heads=2)
    cells, genes = encoded(), torch.randn(9, 16)
    everything = decoder(cells, genes, torch.arange(9).repeat(3), torch.tensor([0, 9, 18, 27]))
    for gene in range(9):
        alone = decoder(cells, genes, torch.tensor([gene] * 3), torch.tensor([0, 1, 2, 3]))
        assert_close(everything.view(3, 9)[:, gene], alone)


def test_a_layer_uses_its_own_hooks():
    class Doubled(EncoderLayer):
        def update(self, x_td, attended_the):
            return 2 * super().update(x_td, attended_the)

    torch.manual_seed(0)
    layer, doubled = EncoderLayer(8, 2), Doubled(8, 2)
    doubled.load_state_dict(layer.state_dict())
    x, cells = torch.randn(5, 8), CellBoundaries.of(torch.tensor([0, 2, 5], dtype=torch.int32))
    torch.testing.assert_close(doubled(x, cells), 2 * layer(x, cells))


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=500), st.integers(0, 2**32 - 1))
def test_distinct_values_give_back_all_values(counts, seed):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(np.log1p(np.array(counts) / rng.integers(1, 9)).astype(np.float32))
    distinct, place = distinct_values(values)
    assert torch.equal(distinct[place], values)
    assert len(distinct) <= len(values)
