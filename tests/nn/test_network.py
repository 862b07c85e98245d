"""What the paper promises of the encoder: only expressed genes matter, and only the own cell."""

import torch
from helpers import net, ragged
from torch.testing import assert_close


def test_a_cell_does_not_depend_on_its_neighbours():
    lengths = [7, 1, 20, 3]
    counts, gene_ids, cu, library = ragged(lengths)
    network = net()
    together = network.encode(counts, gene_ids, cu, library).latent_cz
    for c in range(len(lengths)):
        part = slice(cu[c], cu[c + 1])
        alone = network.encode(
            counts[part], gene_ids[part], torch.tensor([0, lengths[c]]).int(), library[c : c + 1]
        ).latent_cz
        assert_close(alone[0], together[c], rtol=1e-5, atol=1e-5)


def test_the_order_of_genes_does_not_matter():
    counts, gene_ids, cu, library = ragged([30])
    network, order = net(), torch.randperm(30)
    first = network.encode(counts, gene_ids, cu, library).latent_cz
    second = network.encode(counts[order], gene_ids[order], cu, library).latent_cz
    assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_every_visible_gene_matters():
    counts, gene_ids, cu, library = ragged([10])
    changed = counts.clone()
    changed[4] += 10
    first, second = (net().encode(c, gene_ids, cu, library).latent_cz for c in (counts, changed))
    assert (first - second).abs().max() > 1e-4


def test_a_cell_without_visible_genes_is_encoded_from_its_cell_token():
    counts, gene_ids, cu, library = ragged([4, 0, 3])
    encoded = net().encode(counts, gene_ids, cu, library.clamp(min=1))
    assert encoded.latent_cz.isfinite().all()
    assert encoded.tokens_td.shape[0] == 4 + 0 + 3 + 3


def test_covariates_reach_the_decoder_and_not_the_latent_representation():
    counts, gene_ids, cu, library = ragged([8, 8])
    network = net(n_categories=(3,), n_covariate=2)
    torch.nn.init.normal_(network.bottleneck.covariate_loadings)
    encoded = [
        network.encode(counts, gene_ids, cu, library, torch.tensor([[b], [b]])) for b in (0, 1, -1)
    ]
    assert_close(encoded[0].latent_cz, encoded[1].latent_cz)
    rates = [network.bottleneck.log_rates(e, network.gene_embeddings) for e in encoded]
    assert (rates[0] - rates[1]).abs().max() > 1e-3
    average = network.covariates[0].weight.mean(0)
    assert_close(encoded[2].covariates_ck, average.expand(2, -1))
