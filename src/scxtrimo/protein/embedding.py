"""Representations of proteins and of their residues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._logging import logger
from .network import Layer, XTrimoPGLMNet
from .sequences import Long, Proteins, Window, batches, windows_of

Pooling = Literal["mean", "max", "eos", "residue"]
OVERLAP = 0.25  # of windows, as a part of their length
MAX_TOKENS = 1024  # of a batch on a processor, whose caches it should fit
MAX_TOKENS_ON_GPU = 2**17
EDGE = 1e-3  # weight of a residue at the end of a window, beside 1 in its middle


class Reading(NamedTuple):
    """How proteins are read."""

    layer: Layer = -1
    long: Long = "window"
    window: int | None = None
    max_tokens: int | None = None


def default_max_tokens(net: XTrimoPGLMNet) -> int:
    """Return how many tokens a batch has on the device of a network."""
    on_gpu = net.output_layer.weight.device.type == "cuda"
    return MAX_TOKENS_ON_GPU if on_gpu else MAX_TOKENS


def residue_states(
    net: XTrimoPGLMNet, proteins: Proteins, how: Reading
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the number of each protein, states of its residues, and of its end, float32.

    Where windows overlap, states are averaged, those in the middle of a window with more weight.
    The states of the end are averages over windows.
    """
    size = how.window or net.config.max_length - 1
    windows = divide(proteins, how, size)
    n_windows = np.bincount([window.protein for window in windows])
    device = next(net.parameters()).device
    max_tokens = how.max_tokens or default_max_tokens(net)
    open_sums: dict[int, _Sum] = {}
    for batch in batches(proteins.ids, windows, max_tokens, device):
        states_td = net(batch.ids_t, batch.proteins, layer=how.layer)
        for member, states in zip(
            batch.members, states_td.float().cpu().split(batch.proteins.lengths), strict=True
        ):
            window = windows[member]
            i = window.protein
            if n_windows[i] == 1:
                yield i, states[:-1], states[-1]
                continue
            whole = open_sums.setdefault(i, _Sum(int(proteins.lengths[i]), states.shape[1]))
            whole.add(window, states)
            if whole.n_added == n_windows[i]:
                yield i, *open_sums.pop(i).mean()


def divide(proteins: Proteins, how: Reading, size: int) -> list[Window]:
    """Return the windows to read, and say what happens to proteins that are too long."""
    too_long = np.flatnonzero(proteins.lengths > size)
    if len(too_long) and how.long != "full":
        longest = int(proteins.lengths.max())
        what = (
            f"{len(too_long):,} of {len(proteins.ids):,} proteins have more than {size:,} residues"
        )
        if how.long == "error":
            first = too_long[0]
            raise ValueError(
                f"{what} ({proteins.names[first]!r} has {len(proteins.ids[first]):,}): choose "
                "long='window', 'truncate' or 'full'."
            )
        verb = {"window": "read in windows that overlap", "truncate": "cut"}[how.long]
        logger.info(f"{what} (the longest {longest:,}) and are {verb}.")
    overlap = min(size - 1, int(OVERLAP * size))
    return windows_of(proteins.lengths.tolist(), how.long, size, overlap)


class _Sum:
    """States of a protein whose windows come one after the other."""

    def __init__(self, length: int, width: int) -> None:
        self.states, self.weights = torch.zeros(length, width), torch.zeros(length, 1)
        self.end, self.n_added = torch.zeros(width), 0

    def add(self, window: Window, states: Tensor) -> None:
        n = window.stop - window.start
        middle = torch.arange(n) - (n - 1) / 2
        weights = (1 - middle.abs() / (n / 2)).clamp(min=EDGE)[:, None]
        self.states[window.start : window.stop] += weights * states[:-1]
        self.weights[window.start : window.stop] += weights
        self.end += states[-1]
        self.n_added += 1

    def mean(self) -> tuple[Tensor, Tensor]:
        return self.states / self.weights, self.end / self.n_added


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda states, end: states.mean(0),
    "max": lambda states, end: states.amax(0),
    "eos": lambda states, end: end,
}
