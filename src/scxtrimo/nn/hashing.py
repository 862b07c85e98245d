"""Random numbers that are a pure function of what they are for.

The masks of a cell then do not depend on the other cells of its batch, and a training that is
resumed sees the masks it would have seen.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hashed_uniform(key: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    """Return pseudo-random numbers in [0, 1), a pure function of the arguments.

    The key is mixed with the finaliser of SplitMix64 (Steele et al. 2014).

    Parameters
    ----------
    key
        int64 tensor.
    seed, epoch, stream
        Integers; each combination gives an independent set of numbers.
    """
    x = _mix(key + _signed(_mix_int(_mix_int(_mix_int(seed) + epoch) + stream)))
    return (_shift(x, 40)).to(torch.float32) * 2.0**-24


_C1, _C2, _GOLDEN = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch shifts int64 arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = x * _signed(_GOLDEN)
    x = (x ^ _shift(x, 30)) * _signed(_C1)
    x = (x ^ _shift(x, 27)) * _signed(_C2)
    return x ^ _shift(x, 31)


def _mix_int(value: int) -> int:
    value = (value + _GOLDEN) & _MASK64
    value = ((value ^ (value >> 30)) * _C1) & _MASK64
    value = ((value ^ (value >> 27)) * _C2) & _MASK64
    return value ^ (value >> 31)
