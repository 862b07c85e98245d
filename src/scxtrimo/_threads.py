"""How many threads torch works with on a processor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import joblib
import torch

WORTH_SHARING = 128  # width of a network from which operations are worth dividing among threads


def threads_for(n_hidden: int) -> int:
    """Return how many threads a network of a width should have.

    ``OMP_NUM_THREADS`` decides if it is set. The operations of a narrow network are so small that
    a second thread saves a fifth of the time; but as threads wait for each other actively, two
    processes with as many threads as there are processors slow each other down twenty times. Wide
    networks have the processors that affinity and control groups leave to this process.
    """
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return int(os.environ["OMP_NUM_THREADS"])
    available = joblib.cpu_count() if n_hidden >= WORTH_SHARING else 1
    return min(torch.get_num_threads(), available)


@contextmanager
def torch_threads(n_threads: int | None = None) -> Iterator[None]:
    """Let torch work with so many threads, or with the number it has, which numba changes."""
    before = torch.get_num_threads()
    try:
        if n_threads is not None:
            torch.set_num_threads(max(1, n_threads))
        yield
    finally:
        torch.set_num_threads(before)
