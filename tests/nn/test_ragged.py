import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from scxtrimo.nn.layers import ragged_attention
from scxtrimo.nn.ragged import (
    CellBoundaries,
    cells_of,
    drop_first_tokens,
    lengths_of,
    max_per_cell,
    mean_per_cell,
    prepend_tokens,
    select_tokens,
    sum_per_cell,
    to_tokens,
)

lengths = st.lists(st.integers(0, 6), min_size=1, max_size=8)


def boundaries(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


@given(lengths)
def test_reductions_equal_a_loop_over_cells(lengths):
    cu = boundaries(lengths)
    x = torch.randn(sum(lengths), 3)
    parts = x.split(lengths)
    assert_close(sum_per_cell(x, cu), torch.stack([part.sum(0) for part in parts]))
    expected = [part.mean(0) if len(part) else torch.zeros(3) for part in parts]
    assert_close(mean_per_cell(x, cu), torch.stack(expected))
    assert cells_of(cu, len(x)).tolist() == [c for c, n in enumerate(lengths) for _ in range(n)]
    assert lengths_of(cu).tolist() == lengths
    of_cells = torch.randn(len(lengths), 2)
    assert_close(to_tokens(of_cells, cu, len(x)), of_cells[cells_of(cu, len(x))])


@given(lengths, st.integers(0, 3))
def test_prepended_tokens_come_first_in_every_cell_and_can_be_dropped(lengths, n_first):
    cu = boundaries(lengths)
    x, first = torch.randn(sum(lengths), 3), torch.randn(len(lengths), n_first, 3)
    joined, cu_joined = prepend_tokens(x, first, cu)
    assert cu_joined.dtype == cu.dtype
    parts = joined.split(lengths_of(cu_joined).tolist())
    for part, own, original in zip(parts, first, x.split(lengths)):
        assert_close(part, torch.cat([own, original]))
    back, cu_back = drop_first_tokens(joined, cu_joined, n_first)
    assert_close(back, x)
    assert_close(cu_back, cu)
    expected = [part.amax(0) if len(part) else torch.zeros(3) for part in parts]
    assert_close(max_per_cell(joined, cu_joined), torch.stack(expected))


@given(lengths, st.randoms(use_true_random=False))
def test_selected_tokens_keep_their_cells(lengths, random):
    cu = boundaries(lengths)
    keep = torch.tensor([random.random() < 0.5 for _ in range(sum(lengths))], dtype=torch.bool)
    expected = [int(part.sum()) for part in keep.split(lengths)]
    assert lengths_of(select_tokens(keep, cu)).tolist() == expected


@given(lengths, st.integers(1, 4))
def test_attention_equals_softmax_attention_within_each_cell(n_queries, n_keys):
    keys = [n_keys + i for i in range(len(n_queries))]
    cu_q, cu_k = boundaries(n_queries), boundaries(keys)
    q = torch.randn(sum(n_queries), 2, 4, dtype=torch.float64)
    k, v = torch.randn(2, sum(keys), 2, 4, dtype=torch.float64)
    expected = []
    for q_c, k_c, v_c in zip(q.split(n_queries), k.split(keys), v.split(keys)):
        weights = torch.softmax(torch.einsum("the,she->hts", q_c, k_c) / 2, dim=-1)
        expected.append(torch.einsum("hts,she->the", weights, v_c))
    result = ragged_attention(q, k, v, CellBoundaries.of(cu_q), CellBoundaries.of(cu_k))
    assert_close(result, torch.cat(expected))
