"""Batches prepared in a thread: the same ones, in order, with their errors."""

import threading

import numpy as np
import pytest
from torch.utils.data import DataLoader

import scxtrimo
from scxtrimo.data.dataset import PrefetchLoader, RaggedDataset, prefetch
from scxtrimo.train.splitter import EpochShuffler


def test_all_batches_in_order_from_another_thread():
    threads = []

    def batches():
        for i in range(10):
            threads.append(threading.current_thread())
            yield i

    assert list(prefetch(batches())) == list(range(10))
    assert threading.current_thread() not in threads
    assert list(prefetch([])) == []


def test_it_works_ahead_but_not_far():
    made = []

    def batches():
        for i in range(10):
            made.append(i)
            yield i

    ahead = prefetch(batches(), n_ahead=2)
    assert next(ahead) == 0
    ahead.close()  # waits for what is under way
    assert made == [0, 1, 2]


def test_an_error_comes_after_the_batches_before_it():
    def batches():
        yield 1
        raise OSError("disk gone")

    ahead = prefetch(batches())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(ahead)


def test_the_loader_serves_the_same_batches(cells):
    scxtrimo.model.XTrimoGene.setup_anndata(cells)
    model = scxtrimo.model.XTrimoGene(cells, size="tiny")
    dataset = RaggedDataset(model.adata_manager, preload=True)
    sampler = EpochShuffler(np.arange(150), batch_size=40, seed=0)
    plain, ahead = (
        loader(dataset, sampler=sampler, batch_size=None)
        for loader in (DataLoader, PrefetchLoader)
    )
    assert len(plain) == len(ahead) == 4
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        for one, other in zip(plain, ahead, strict=True):
            np.testing.assert_array_equal(one["cell_ids"], other["cell_ids"])
            np.testing.assert_array_equal(one["counts"], other["counts"])
