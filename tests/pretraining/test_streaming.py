"""Batches of a store: the same whoever asks, from any step on, and damage is counted."""

import anndata
import numpy as np
import pytest
import torch
from helpers import make_cells

from scxtrimo.data.dataset import to_ragged
from scxtrimo.pretraining.store import CellStore, DamagedStoreError
from scxtrimo.pretraining.store_writer import write_store
from scxtrimo.pretraining.stream import StoreDataModule, StreamLoader, StreamPlan

pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store")
    make_cells(400).write_h5ad(directory / "cells.h5ad")
    write_store([directory / "cells.h5ad"], directory / "store.zarr", min_genes=1, memory=60_000)
    return directory / "store.zarr"


def module(path, **kwargs):
    return StoreDataModule(str(path), **({"batch_size": 16, "window_size": 100} | kwargs))


def ids(batches):
    return [batch["cell_ids"].tolist() for batch in batches]


def test_batches_are_what_the_store_has(path):
    data = module(path, n_lanes=2)
    counts = data.store.read([slice(0, data.store.n_cells)])
    for batch in data.train_dataloader():
        expected = to_ragged(counts[batch["cell_ids"].numpy()], np.arange(counts.shape[1]))
        for name, array in expected.items():
            torch.testing.assert_close(batch[name], torch.from_numpy(array), check_dtype=False)
        assert batch["categories"].shape == (len(batch["cell_ids"]), 0)


def test_every_cell_once_an_epoch_and_other_orders_in_others(path):
    data = module(path, n_lanes=2)
    n_epoch = data.plan.n_steps
    data.n_steps = 2 * n_epoch
    batches = list(data.train_dataloader())
    first, second = (
        [i for b in batches if b["epoch"] == epoch for i in b["cell_ids"].tolist()]
        for epoch in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(data.store.n_cells))
    assert first != second


@pytest.mark.parametrize("step", [1, 7, 12, 20])
def test_any_step_can_be_the_first(path, step):
    store = CellStore(path)
    plan = StreamPlan(store.n_tokens, 16, n_lanes=2, window_size=100)
    whole = ids(StreamLoader(store, plan, 30))
    part = StreamLoader(store, plan, 30)
    part.load_state_dict({"step": step})
    assert ids(part) == whole[2 * step :]


def test_state_is_the_next_step(path):
    store = CellStore(path)
    plan = StreamPlan(store.n_tokens, 16, n_lanes=2, window_size=100)
    loader = StreamLoader(store, plan, 30)
    stream = iter(loader)
    for _ in range(10):
        next(stream)
    assert loader.state_dict() == {"step": 5}


def test_processes_share_what_one_would_read(path):
    store = CellStore(path)
    plan = StreamPlan(store.n_tokens, 16, n_lanes=4, window_size=100)
    alone = ids(StreamLoader(store, plan, 12))
    two = [ids(StreamLoader(store, plan, 12, rank, 2)) for rank in range(2)]
    # one process: lanes 0, 1, 2, 3 of a step; two: lanes 0, 2 and 1, 3
    for step in range(12):
        of_step = two[0][2 * step : 2 * step + 2] + two[1][2 * step : 2 * step + 2]
        assert sorted(of_step) == sorted(alone[4 * step : 4 * step + 4])


def test_lanes_must_be_shared_evenly(path):
    store = CellStore(path)
    plan = StreamPlan(store.n_tokens, 16, n_lanes=3)
    with pytest.raises(ValueError, match="3 batches per step cannot be shared by 2"):
        StreamLoader(store, plan, world_size=2)


def test_damaged_cells_are_named_or_left_out(path, tmp_path):
    import shutil

    copied = tmp_path / "store.zarr"
    shutil.copytree(path, copied)
    shard = sorted(p for p in (copied / "train").rglob("data/c/*") if p.is_file())[0]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    whole = module(copied).store
    broken = int(whole.ends[0])
    with pytest.raises(DamagedStoreError, match="dataset_0, cells"):
        list(module(copied).train_dataloader())
    loader = module(copied, on_damage="skip", chunk_size=16).train_dataloader()
    seen = sorted(i for b in loader for i in b["cell_ids"].tolist())
    assert len(set(seen)) == len(seen)
    assert set(range(broken + 16, whole.n_cells)) <= set(seen)
    assert len(seen) + loader.n_skipped == whole.n_cells


def test_errors_in_the_thread_that_reads_are_raised_here(path, monkeypatch):
    data = module(path)
    loader = data.train_dataloader()

    def fail(self, slices):
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(CellStore, "read", fail)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(iter(loader))


def test_validation_cells_come_in_their_order(path):
    data = module(path)
    held_out = CellStore(path, "validation")
    seen = [i for b in data.val_dataloader() for i in b["cell_ids"].tolist()]
    assert seen == list(range(held_out.n_cells))


def test_sample_is_random_cells_of_the_store(path):
    store = CellStore(path)
    sample = store.sample(128, seed=1)
    assert isinstance(sample, anndata.AnnData)
    rows = sample.obs_names.astype(int).to_numpy()
    assert len(set(rows)) == sample.n_obs >= 64
    expected = store.read([slice(0, store.n_cells)])[rows]
    assert (expected != sample.X).nnz == 0
