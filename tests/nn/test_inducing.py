"""Inducing tokens: as a softmax written out, whatever way it is computed, and like any encoder."""

import pytest
import torch
from helpers import N_GENES, net, ragged
from torch.testing import assert_close

from scxtrimo.nn.layers import (
    InducingAttention,
    _SumPerCell,
    padded_sum_per_cell,
    plain_attention,
)
from scxtrimo.nn.ragged import CellBoundaries

LENGTHS = [3, 0, 5, 1]


def test_tokens_attend_to_all_genes_of_their_cell():
    torch.manual_seed(0)
    layer = InducingAttention(6, n_inducing=2, n_heads=3)
    x = torch.randn(9, 6)
    cells = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    tokens = layer(x, cells).unflatten(0, (4, 2))
    for cell, part in enumerate(x.split(LENGTHS)):
        for token in range(2):
            heads = []
            for head in range(3):
                row = 3 * token + head
                scores = part @ layer.score.weight[row] + layer.score.bias[row]
                heads.append(scores.softmax(0) @ part)
            expected = layer.tokens[token] + layer.merge(torch.cat(heads))
            assert_close(tokens[cell, token], expected)


def test_gradients_and_padding():
    torch.manual_seed(0)
    scores = torch.randn(4, 9, dtype=torch.double, requires_grad=True)
    x = torch.randn(9, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, t: _SumPerCell.apply(s, t, LENGTHS), (scores, x))
    ways = [function(scores, x, LENGTHS) for function in (_SumPerCell.apply, padded_sum_per_cell)]
    assert_close(*ways)
    gradients = [torch.autograd.grad(out.square().sum(), (scores, x)) for out in ways]
    assert_close(*gradients)


@pytest.mark.parametrize("queries", [[3, 3, 3], [4, 0, 2]])
def test_attention_to_equally_many_keys_is_that_of_cell_by_cell(queries):
    torch.manual_seed(0)
    q, (k, v) = torch.randn(sum(queries), 2, 8), torch.randn(2, 12, 2, 8)
    of_cells = [
        CellBoundaries.of(torch.tensor([0, *lengths]).cumsum(0).int())
        for lengths in (queries, [4, 4, 4])
    ]
    together = plain_attention(q, k, v, *of_cells)
    parts = zip(q.split(queries), k.split(4), v.split(4))
    alone = [
        torch.einsum("she,qhs->qhe", b, (torch.einsum("qhe,she->qhs", a, c) / 8**0.5).softmax(-1))
        for a, c, b in parts
    ]
    assert_close(together, torch.cat(alone))


def test_a_cell_depends_on_all_its_genes_and_on_no_other_cell():
    lengths = [7, 1, 20, 3]
    counts, gene_ids, cu, library = ragged(lengths)
    network = net(n_inducing=3)
    together = network.encode(counts, gene_ids, cu, library)
    assert together.tokens_td.shape == (4 * 3, 16)
    assert together.cu_seqlens.tolist() == [0, 3, 6, 9, 12]
    order = torch.cat([cu[2] + torch.randperm(20), torch.arange(0, 8), torch.arange(28, 31)])
    moved = torch.tensor([0, 20, 27, 28, 31]).int()
    shuffled = network.encode(counts[order], gene_ids[order], moved, library[[2, 0, 1, 3]])
    assert_close(shuffled.latent_cz, together.latent_cz[[2, 0, 1, 3]], rtol=1e-5, atol=1e-5)
    for token in range(8, 28):
        changed = counts.clone()
        changed[token] += 10
        after = network.encode(changed, gene_ids, cu, library).latent_cz
        differs = (after - together.latent_cz).abs().amax(1) > 1e-6
        assert differs.tolist() == [False, False, True, False]


def test_a_cell_without_visible_genes_has_its_tokens():
    counts, gene_ids, cu, library = ragged([4, 0, 3])
    encoded = net(n_inducing=4).encode(counts, gene_ids, cu, library.clamp(min=1))
    assert encoded.latent_cz.isfinite().all()
    assert encoded.tokens_td.shape == (12, 16)


def test_a_sample_of_the_genes_stands_for_all():
    """Its likelihood is that of all genes on average, and the same if every gene is scored."""
    counts, gene_ids, cu, library = ragged([30, 12, 20])
    network = net(n_inducing=2, objective="counts")
    torch.nn.init.normal_(network.bottleneck.log_baseline)
    batch = {"counts": counts, "gene_ids": gene_ids, "cu_seqlens": cu, "library_size": library}

    def score(**scored) -> torch.Tensor:
        return network(batch | scored).reconstruction_c.detach()

    whole, every = score(), torch.randperm(N_GENES)
    same = score(scored_gene_ids=every, scored_weights=torch.ones(N_GENES))
    assert_close(same, whole, rtol=1e-4, atol=1e-4)
    always, others = torch.arange(10), torch.arange(10, N_GENES)
    samples = []
    for _ in range(400):
        drawn = others[torch.randperm(len(others))[:30]]
        weights = torch.cat([torch.ones(10), torch.full((30,), len(others) / 30)])
        samples.append(score(scored_gene_ids=torch.cat([always, drawn]), scored_weights=weights))
    assert_close(torch.stack(samples).mean(0), whole, rtol=0.01, atol=0)
