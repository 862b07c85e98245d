"""Work on single rows in chunks, so that what lies between input and output stays small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

WORTH_RECOMPUTING = 512
"""With fewer rows there is little to store."""


def in_chunks(function: Callable[..., Tensor], size: int, x_td: Tensor, *others: Tensor) -> Tensor:
    """Apply a function of single rows to some rows at a time; see :func:`recomputed`."""
    size = max(size, WORTH_RECOMPUTING)
    return torch.cat([recomputed(function, chunk, *others) for chunk in x_td.split(size)])


def recomputed(function: Callable, *inputs: Tensor) -> Any:
    """Call a function; where gradients are needed, compute it again then instead of storing."""
    if not torch.is_grad_enabled() or len(inputs[0]) < WORTH_RECOMPUTING:
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
