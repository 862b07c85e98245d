"""The plan of a stream: every cell once an epoch, whoever reads it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scxtrimo.pretraining.stream import StreamPlan


def batches_of(plan, epoch, lane):
    """Return the rows of every batch of a lane."""
    found = []
    for window in plan.windows(epoch, lane):
        rows = np.concatenate([np.arange(s.start, s.stop) for s in window.slices])
        batches = window.batches(plan.n_tokens[rows], plan.by_tokens, plan.shuffle)
        assert len(batches) == window.n_batches
        found += [rows[batch] for batch in batches]
    return found


@st.composite
def plans(draw):
    n_cells = draw(st.integers(1, 800))
    tokens = draw(st.sampled_from([1, 50, 3000]))
    n_tokens = np.random.default_rng(draw(st.integers(0, 9))).integers(1, tokens + 1, n_cells)
    size = (
        {"batch_size": draw(st.integers(1, 300))}
        if draw(st.booleans())
        else {"tokens_per_batch": draw(st.integers(1, 100_000))}
    )
    return StreamPlan(
        n_tokens,
        n_lanes=draw(st.integers(1, min(8, n_cells))),
        window_size=draw(st.sampled_from([50, 8192])),
        chunk_size=draw(st.sampled_from([1, 16, 256])),
        shuffle=draw(st.booleans()),
        **size,
    )


@given(plans(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_every_cell_is_in_one_batch_of_an_epoch(plan, epoch):
    lanes = [batches_of(plan, epoch, lane) for lane in range(plan.n_lanes)]
    assert {len(lane) for lane in lanes} == {plan.n_steps}
    assert all(len(batch) for lane in lanes for batch in lane)
    rows = np.concatenate([batch for lane in lanes for batch in lane])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(plan.n_tokens)))


def test_epochs_and_seeds_differ():
    n_tokens = np.full(5000, 10)
    orders = {
        tuple(np.concatenate(batches_of(StreamPlan(n_tokens, 64, seed=seed), epoch, 0)))
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    }
    assert len(orders) == 3


def test_token_budget_is_kept_and_shared_evenly():
    rng = np.random.default_rng(0)
    n_tokens = np.clip(rng.lognormal(7, 0.6, 50_000), 200, 6000).astype(np.int32)
    plan = StreamPlan(n_tokens, tokens_per_batch=100_000, n_lanes=4)
    sizes = np.array([[n_tokens[b].sum() for b in batches_of(plan, 0, lane)] for lane in range(4)])
    assert sizes.max() < 1.05 * 100_000
    assert sizes.mean() > 0.9 * 100_000
    assert (sizes.max(axis=0) / sizes.mean(axis=0)).max() < 1.1  # the slowest lane of a step


def test_batches_are_mixed_beyond_neighbours():
    plan = StreamPlan(np.full(40_000, 10), batch_size=256)
    batch = batches_of(plan, 0, 0)[0]
    assert len(np.unique(batch // plan.chunk_size)) > 8
