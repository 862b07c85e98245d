"""Token budgets: every cell once an epoch, even batches, the same number of them."""

import anndata
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scxtrimo
from scxtrimo.data.dataset import RaggedDataset
from scxtrimo.train.splitter import RaggedDataSplitter, TokenBudgetShuffler


@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=60),
    st.integers(1, 8000),
    st.integers(0, 3),
)
def test_every_cell_once_an_epoch_within_the_budget(n_tokens, budget, epoch):
    n_tokens, rows = np.array(n_tokens), np.arange(len(n_tokens)) + 7
    sampler = TokenBudgetShuffler(rows, n_tokens, budget, seed=0)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert all(batches)
    assert sorted(sum(batches, [])) == rows.tolist()
    if n_tokens.max() <= budget // 2:
        assert all(n_tokens[np.array(batch) - 7].sum() <= budget for batch in batches)


def test_batches_are_even_where_cells_are_not():
    n_tokens = np.random.default_rng(0).lognormal(7, 1, 2000).astype(int).clip(max=8000)
    sampler = TokenBudgetShuffler(np.arange(2000), n_tokens, 50_000, seed=0)
    sizes = [n_tokens[batch].sum() for batch in sampler]
    assert max(sizes) <= 50_000
    assert np.mean(sizes) > 0.8 * 50_000
    assert list(sampler) == list(sampler)
    before = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != before


def test_training_with_a_token_budget(cells, caplog):
    scxtrimo.model.XTrimoGene.setup_anndata(cells)
    model = scxtrimo.model.XTrimoGene(cells, size="tiny")
    n_tokens = np.diff(cells.X.indptr)
    budget = int(8 * n_tokens.max())
    with caplog.at_level("INFO", logger="scxtrimo"):
        model.train(max_epochs=1, tokens_per_batch=budget, enable_progress_bar=False)
    assert f"about {budget:,} tokens (" in caplog.text
    splitter = RaggedDataSplitter(model.adata_manager, tokens_per_batch=budget)
    splitter.setup()
    loader = splitter.train_dataloader()
    tokens = [len(batch["counts"]) for batch in loader]
    assert len(tokens) == len(loader) == splitter.n_batches
    assert max(tokens) <= budget
    with pytest.warns(UserWarning, match="less than twice the"):
        model.train(max_epochs=1, tokens_per_batch=budget // 8, enable_progress_bar=False)
    with pytest.raises(ValueError, match="tokens_per_batch=0 must be positive"):
        model.train(max_epochs=1, tokens_per_batch=0)
    with pytest.raises(ValueError, match="either `batch_size` or `tokens_per_batch`"):
        model.train(max_epochs=1, tokens_per_batch=1000, batch_size=3)


@pytest.mark.parametrize("backed", ["csr", "dense", None])
def test_lengths_of_cells_are_known_without_the_counts_in_memory(cells, tmp_path, backed):
    expected = np.diff(cells.X.indptr)
    if backed is not None:
        if backed == "dense":
            cells.X = cells.X.toarray()
        cells.write_h5ad(tmp_path / "cells.h5ad")
        cells = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    scxtrimo.model.XTrimoGene.setup_anndata(cells)
    model = scxtrimo.model.XTrimoGene(cells, size="tiny")
    dataset = RaggedDataset(model.adata_manager, preload=True)
    np.testing.assert_array_equal(dataset.n_tokens(), expected)
