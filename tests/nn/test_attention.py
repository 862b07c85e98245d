"""Every way of encoding cells gives the same: one kernel for all, groups, chunks."""

import warnings

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from scxtrimo.nn import layers
from scxtrimo.nn.layers import AutoDiscretization, Encoder, FeedForward, ragged_attention
from scxtrimo.nn.ragged import CellBoundaries

QUERIES, KEYS = ([4, 0, 9], [6, 2, 5])


def ragged(lengths: list[int]) -> CellBoundaries:
    cu = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
    return CellBoundaries.of(cu)


def inputs(dtype: torch.dtype, width: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(n, 3, width).to(dtype) for n in (sum(QUERIES), sum(KEYS), sum(KEYS))]


def one_cell_after_the_other(q, k, v, cu_q, cu_k) -> torch.Tensor:
    n_q, n_k = cu_q.diff().tolist(), cu_k.diff().tolist()
    parts = zip(
        *(x.float().transpose(0, 1).split(n, 1) for x, n in ((q, n_q), (k, n_k), (v, n_k))),
        strict=True,
    )
    done = [F.scaled_dot_product_attention(*part) for part in parts]
    return torch.cat(done, 1).transpose(0, 1).to(q.dtype)


@pytest.fixture
def gpu_like(monkeypatch):
    """Let tensors on the processor pass for such on a GPU."""
    monkeypatch.setattr(layers, "_has_kernel", lambda q: q.dtype == torch.bfloat16)
    yield monkeypatch
    layers._passes_check.cache_clear()
    layers._batch_invariance.cache_clear()
    layers._say_that_torch_is_old.cache_clear()


def test_one_kernel_takes_all_cells(gpu_like):
    calls = []

    def kernel(q, k, v, cu_q, cu_k, max_q, max_k, *, num_splits=None):
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert (max_q, max_k) == (cu_q.diff().max(), cu_k.diff().max())
        assert num_splits == 1  # or a cell's result would depend on its neighbours
        calls.append(len(q))
        return one_cell_after_the_other(q, k, v, cu_q, cu_k)

    gpu_like.setattr(layers, "varlen_attn", kernel)
    result = ragged_attention(*inputs(torch.bfloat16), ragged(QUERIES), ragged(KEYS))
    assert calls == [20, sum(QUERIES)]  # the check, then the work
    ragged_attention(*inputs(torch.bfloat16), ragged(QUERIES), ragged(KEYS))
    assert calls[2:] == [sum(QUERIES)]  # the check is not repeated
    ragged_attention(*inputs(torch.float32), ragged(QUERIES), ragged(KEYS))
    assert len(calls) == 3  # not in float32
    gpu_like.setattr(layers, "varlen_attn", None)
    with pytest.warns(RuntimeWarning, match="torch 2.10 or newer has it"):
        expected = ragged_attention(*inputs(torch.bfloat16), ragged(QUERIES), ragged(KEYS))
    assert_close(result, expected, rtol=0, atol=0.02)


def test_a_kernel_without_splits_is_called_without(gpu_like):
    def kernel(q, k, v, cu_q, cu_k, max_q, max_k):
        return one_cell_after_the_other(q, k, v, cu_q, cu_k)

    gpu_like.setattr(layers, "varlen_attn", kernel)
    with torch.inference_mode():  # the check takes gradients all the same
        assert layers.can_use_varlen(inputs(torch.bfloat16)[0])


def wrong(q, k, v, cu_q, cu_k, *lengths):
    return 2 * one_cell_after_the_other(q, k, v, cu_q, cu_k)


def failing(q, *args, **kwargs):
    raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize(("kernel", "reason"), [(wrong, "off by"), (failing, "no kernel image")])
def test_a_kernel_that_does_not_pass_its_check_is_not_used(gpu_like, kernel, reason):
    gpu_like.setattr(layers, "varlen_attn", kernel)
    half = inputs(torch.bfloat16)
    with pytest.warns(RuntimeWarning, match=f"{reason}.*one after the other"):
        result = ragged_attention(*half, ragged(QUERIES), ragged(KEYS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        ragged_attention(*half, ragged(QUERIES), ragged(KEYS))
    cu_q, cu_k = ragged(QUERIES).cu_seqlens, ragged(KEYS).cu_seqlens
    assert_close(result, one_cell_after_the_other(*half, cu_q, cu_k), rtol=0, atol=0.02)


@pytest.mark.parametrize("most", [1, 7, 12, 100])
def test_groups_are_runs_of_whole_cells(most):
    lengths = [5, 0, 7, 2, 11, 1]
    groups = ragged(lengths).groups(most)
    assert sum((group.lengths for group in groups), []) == lengths
    for group in groups:
        assert group.cu_seqlens.tolist() == ragged(group.lengths).cu_seqlens.tolist()
        assert sum(group.lengths) <= most or sum(n > 0 for n in group.lengths) == 1


@torch.no_grad()
def test_an_encoder_works_through_groups_of_cells(monkeypatch):
    torch.manual_seed(0)
    module = Encoder(2, 16, 4).double()
    x, cells = torch.randn(26, 16, dtype=torch.float64), ragged([5, 7, 2, 11, 1])
    with torch.enable_grad():
        expected = module(x, cells.cu_seqlens)
    for most in (1, 12 * 16, 1000 * 16):
        monkeypatch.setattr(layers, "MAX_ENTRIES", most)
        assert_close(module(x, cells.cu_seqlens), expected.detach())


@pytest.mark.parametrize("recompute", [False, True])
def test_feed_forward_in_chunks_has_the_same_result_and_gradients(monkeypatch, recompute):
    torch.manual_seed(0)
    module = FeedForward(8, recompute=recompute).double()
    x = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(20, 8, dtype=torch.float64)
    expected = module.outer(F.gelu(module.inner(x)))
    parameters = [x, *module.parameters()]
    gradients = torch.autograd.grad((expected * weights).sum(), parameters)
    monkeypatch.setattr(layers, "WORTH_RECOMPUTING", 4)
    monkeypatch.setattr(layers, "MAX_INNER_TRAINED", 7 * 32)
    monkeypatch.setattr(layers, "MAX_INNER", 7 * 32)
    result = module(x)
    assert_close(result, expected)
    for ours, other in zip(
        torch.autograd.grad((result * weights).sum(), parameters), gradients, strict=True
    ):
        assert_close(ours, other)
    with torch.no_grad():
        assert_close(module(x), expected)


def test_equal_values_share_one_embedding_and_add_up_their_gradients():
    torch.manual_seed(0)
    module = AutoDiscretization(8, n_bins=5).double()
    values = torch.tensor([0.5, 2.0, 0.5, 0.5, 1.0], dtype=torch.float64)
    weights = torch.randn(5, 8, dtype=torch.float64)
    expected = torch.cat([module(value[None]) for value in values])
    result = module(values)
    assert_close(result, expected)
    parameters = list(module.parameters())
    for ours, other in zip(
        torch.autograd.grad((result * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        assert_close(ours, other)


def test_gradients_of_many_equal_values_are_summed_in_full_precision():
    torch.manual_seed(0)
    module = AutoDiscretization(4, n_bins=3)
    values = torch.ones(20_000)
    module(values).sum().backward()
    expected = module.bins.weight.grad.clone()
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        module(values).sum().backward()
    assert_close(module.bins.weight.grad, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("width", [128, 768])
def test_a_wide_layer_does_not_keep_its_inner_activations(width):
    module = FeedForward(width, recompute=True)
    kept = []

    def pack(tensor):
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = module(torch.randn(2048, width))
    assert not [shape for shape in kept if shape[-1] == 4 * width and shape[0] >= 512]
    result.sum().backward()
    assert module.inner.weight.grad.abs().sum() > 0
