"""Attention between genes, beside a softmax written out."""

import numpy as np
import pytest
import torch
from helpers import make_cells, train_tiny

from scxtrimo.model.xtrimogene import XTrimoGene
from scxtrimo.nn import layers as attention


def by_hand(model, cells, row, layer):
    """Attention of one cell from what goes into a layer, over all its tokens."""
    of_layer = model.module.net.encoder.layers[layer]
    seen = []
    hook = of_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    (_, batch), *_ = model._batches(cells, [row], None, "")
    with torch.no_grad():
        encoded = model._encode(batch)
        hook.remove()
        x = of_layer.attention_norm(seen[0]) if of_layer.norm_first else seen[0]
        q, k, _ = of_layer.attention.qkv(x).chunk(3, dim=1)
    heads = []
    for one_q, one_k in zip(*(p.chunk(of_layer.attention.n_heads, dim=1) for p in (q, k))):
        heads.append((one_q @ one_k.T / one_q.shape[1] ** 0.5).softmax(dim=1))
    ids = encoded.gene_ids_t
    is_gene = (ids >= 0) & (ids < model.module.n_genes)
    among = torch.stack(heads).mean(0)[is_gene][:, is_gene]
    full = np.full((model.module.n_genes,) * 2, np.nan)
    full[np.ix_(ids[is_gene], ids[is_gene])] = among
    return full


@pytest.fixture(scope="module", params=["tiny", "3m", "published-tiny"])
def trained(request):
    cells = make_cells(60)
    XTrimoGene.setup_anndata(cells)
    config = {} if request.param == "published-tiny" else {"n_inducing": None}
    config |= {"n_layers": 2} if request.param == "tiny" else {}
    model = XTrimoGene(cells, size=request.param, seed=0, **config)
    model.train(1, accelerator="cpu", enable_progress_bar=False)
    return model, cells


@pytest.mark.parametrize("layer", [0, -1])
def test_it_is_the_softmax_over_all_tokens_averaged_over_cells(trained, layer):
    model, cells = trained
    rows, genes = [0, 7, 9, 20], list(cells.var_names[[3, 0, 11, 30, 42]])
    single = np.stack([by_hand(model, cells, row, layer) for row in rows])
    n_cells = (~np.isnan(single)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        expected = np.nansum(single, axis=0) / n_cells
    table = model.get_attention(genes, cells, rows, layer=layer)
    at = model.vocabulary.index_of(genes)
    assert list(table.index) == list(table.columns) == genes
    np.testing.assert_allclose(table, expected[np.ix_(at, at)], rtol=1e-4)
    every = model.get_attention(list(cells.var_names), cells, rows, layer=layer, batch_size=1)
    np.testing.assert_allclose(every, expected, rtol=1e-4)


def test_special_tokens_take_their_part(trained):
    model, cells = trained
    total = model.get_attention(list(cells.var_names), cells, [4]).sum(axis=1)
    total = total[total > 0]
    assert len(total) > 10
    assert (total < 1).all()
    assert (total > 0.5).all()


def test_inducing_tokens_pass_attention_on():
    """Attention of the decoder to the tokens times that of these to the genes."""
    cells = make_cells(60)
    model = train_tiny(cells, 1, n_decoder_layers=2)
    net, seen = model.module.net, {}
    (_, batch), *_ = model._batches(cells, [7], None, "")
    layer = net.imputation.layers[1]
    layer.register_forward_pre_hook(lambda _, inputs: seen.update(query=inputs[0].clone()))
    genes = torch.tensor([5, 3, 11])
    with torch.no_grad():
        x, _, ids = net.embed(**net.inputs(model.module.readable(batch)))
        encoded = model._encode(batch)
        net.imputation(encoded, net.positions, genes, torch.tensor([0, 3], dtype=torch.int32))
        to_genes = net.inducing.score(x).unflatten(1, (4, 2)).softmax(0).mean(-1).T
        q = layer.attention.q(layer.attention_norm(seen["query"])).unflatten(-1, (2, -1))
        k = layer.attention.kv(encoded.tokens_td).chunk(2, dim=1)[0].unflatten(-1, (2, -1))
        to_tokens = (torch.einsum("qhe,khe->hqk", q, k) / q.shape[-1] ** 0.5).softmax(-1).mean(0)
        expected = to_tokens @ to_genes
    at = [ids.tolist().index(gene) if gene in ids else None for gene in genes.tolist()]
    names = model.vocabulary.gene_ids
    table = model.get_attention([names[gene] for gene in genes], cells, [7]).to_numpy()
    for i, j in np.ndindex(3, 3):
        if at[i] is None or at[j] is None:
            assert np.isnan(table[i, j])
        else:
            np.testing.assert_allclose(table[i, j], expected[i, at[j]], rtol=1e-4)
    assert np.isfinite(table).any()
    total = model.get_attention(list(cells.var_names), cells, [7]).sum(axis=1)
    np.testing.assert_allclose(total[total > 0], 1, rtol=1e-4)
    with pytest.raises(ValueError, match="needs an imputation decoder"):
        train_tiny(cells, 1, objective="counts").get_attention(["GENE0"])


def test_pairs_that_no_cell_expresses_are_nan_and_repeated_genes_repeated(trained):
    model, _ = trained
    cells = make_cells(4)
    x = cells.X.toarray()
    x[:2, 5], x[2:, 6], x[:, 7] = 0, 0, 0
    x[2:, 5], x[:2, 6] = 1, 1
    cells.X = x
    table = model.get_attention(["GENE5", "GENE6", "GENE7", "GENE0", "GENE5"], cells)
    expected = np.ones((5, 5), dtype=bool)
    expected[2], expected[:, 2] = False, False
    expected[[0, 4], 1] = expected[1, [0, 4]] = False
    np.testing.assert_array_equal(table.notna(), expected)
    np.testing.assert_array_equal(table.iloc[0], table.iloc[4])


def test_genes_that_are_not_read_have_none():
    cells = make_cells()
    model = train_tiny(cells, 1, n_input_genes=20)
    unread = next(gene for gene in cells.var_names if gene not in set(model.input_genes))
    genes = [unread, *model.input_genes[:2]]
    table = model.get_attention(genes)
    assert table[unread].isna().all()
    assert table.loc[genes[1], genes[2]] > 0


def test_few_queries_at_a_time_give_the_same(monkeypatch):
    torch.manual_seed(0)
    q, k = torch.randn(2, 30, 3, 8)
    chosen = torch.tensor([4, 2, 29, 11])
    whole = attention.attention_among(q, k, chosen)
    monkeypatch.setattr(attention, "MAX_WEIGHTS", 1)
    torch.testing.assert_close(attention.attention_among(q, k, chosen), whole)


def test_what_is_not_there_is_an_error(model):
    with pytest.raises(ValueError, match=r"layer=1 .* layers 0 to 0"):
        model.get_attention(["GENE0"], layer=1)
    with pytest.raises(ValueError, match="1 of 2 genes"):
        model.get_attention(["GENE0", "NOGENE"])
