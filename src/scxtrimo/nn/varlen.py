"""torch's variable-length flash attention: all cells of a ragged batch in one kernel.

It needs a GPU with half precision and torch 2.10 or newer. Whatever is missing, and whatever the
check before the first use does not like, leads back to one cell after the other.
"""

from __future__ import annotations

import inspect
import warnings
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .ragged import CellBoundaries

varlen_attn: Any = None
with suppress(ImportError):  # torch before 2.10
    varlen_attn = import_module("torch.nn.attention.varlen").varlen_attn

TOLERANCE = 0.03
"""Largest difference to plain attention on numbers of about one, in half precision."""


def can_use_varlen(q_the: Tensor) -> bool:
    """Return whether the kernel works for such queries; tried once for each kind of them."""
    if not _has_kernel(q_the) or not len(q_the):
        return False
    if varlen_attn is None:
        _say_that_torch_is_old()
        return False
    return _passes_check(q_the.device, q_the.dtype, q_the.shape[1], q_the.shape[2])


def _has_kernel(q_the: Tensor) -> bool:
    """Whether there is a flash attention kernel for the device, type and width of a head."""
    return (
        q_the.is_cuda
        and q_the.dtype in (torch.float16, torch.bfloat16)
        and q_the.shape[-1] % 8 == 0
        and q_the.shape[-1] <= 256
        and torch.cuda.get_device_capability(q_the.device) >= (8, 0)
    )


def varlen_attention(
    q_the: Tensor, k_she: Tensor, v_she: Tensor, queries: CellBoundaries, keys: CellBoundaries
) -> Tensor:
    """Attend within all cells at once; see :func:`~scxtrimo.nn.ragged_attention`."""
    return varlen_attn(
        q_the,
        k_she,
        v_she,
        queries.cu_seqlens.int(),
        keys.cu_seqlens.int(),
        queries.max_length,
        keys.max_length,
        **_batch_invariance(),
    )


def plain_attention(
    q_the: Tensor, k_she: Tensor, v_she: Tensor, queries: CellBoundaries, keys: CellBoundaries
) -> Tensor:
    """Attend in one cell after the other; see :func:`~scxtrimo.nn.ragged_attention`."""
    # `split` rather than slices: its backward is one concatenation, where every slice would
    # write a full-size gradient of its own.
    cells = zip(
        q_the.split(queries.lengths),
        k_she.split(keys.lengths),
        v_she.split(keys.lengths),
        strict=True,
    )
    return torch.cat([_attend(q, k, v) for q, k, v in cells])


def _attend(q_the: Tensor, k_she: Tensor, v_she: Tensor) -> Tensor:
    """Attention in one cell."""
    q, k, v = (x[None].transpose(1, 2) for x in (q_the, k_she, v_she))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)[0]


@cache
def _batch_invariance() -> dict[str, Any]:
    """Keep the kernel, where it lets us, from splitting keys by the longest cell of the batch."""
    return {"num_splits": 1} if "num_splits" in inspect.signature(varlen_attn).parameters else {}


@cache
def _passes_check(device: torch.device, dtype: torch.dtype, n_heads: int, width: int) -> bool:
    """Compare the kernel, forward and backward, with plain attention on a few small cells."""
    try:
        difference = _difference(device, dtype, n_heads, width)
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = f"it fails here ({error!r})"
    else:
        if difference < TOLERANCE:
            return True
        reason = f"it is off by {difference:.2g} from plain attention"
    warnings.warn(
        f"torch's variable-length attention is not used, as {reason}. Cells are attended to one "
        "after the other, which is slower; another release of torch may help.",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


@cache
def _say_that_torch_is_old() -> None:
    warnings.warn(
        f"torch {torch.__version__} has no variable-length attention: cells are attended to one "
        "after the other, which is slower. torch 2.10 or newer has it.",
        RuntimeWarning,
        stacklevel=2,
    )


@torch.inference_mode(False)
@torch.enable_grad()
def _difference(device: torch.device, dtype: torch.dtype, n_heads: int, width: int) -> float:
    """Return the largest difference between results and gradients."""
    queries, keys = (
        CellBoundaries.of(torch.tensor(cu, dtype=torch.int32, device=device))
        for cu in ([0, 3, 3, 20], [0, 5, 6, 40])
    )
    generator = torch.Generator().manual_seed(0)
    # Views with gaps, as the model has them
    qkv = torch.randn(40, 3, n_heads, width, generator=generator).to(device, dtype)
    qkv.requires_grad_()
    with torch.autocast(device.type, enabled=False):
        results = []
        for attend in (varlen_attention, plain_attention):
            q, k, v = qkv.unbind(1)
            out_the = attend(q[:20], k, v, queries, keys)
            (gradient,) = torch.autograd.grad(out_the.float().square().sum(), qkv)
            results.append([x.detach().float() for x in (out_the, gradient)])
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1))
        for a, b in zip(*results, strict=True)
    )
