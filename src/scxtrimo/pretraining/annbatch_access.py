"""What is needed of annbatch and zarrs, which are there with the extra ``stream`` only."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import zarr

ZARRS = "zarrs.ZarrsCodecPipeline"


def require_annbatch() -> None:
    """Raise an :class:`ImportError` that says how to get annbatch, if it is not there."""
    if find_spec("annbatch") is not None:
        return
    if sys.version_info < (3, 12):
        raise ImportError(
            "Streaming cells from disk needs annbatch, which needs Python 3.12 or newer; this is "
            f"Python {sys.version_info.major}.{sys.version_info.minor}. Make an environment with "
            'Python 3.12 or 3.13 and `pip install "scxtrimo[stream]"`.'
        )
    raise ImportError(
        'Streaming cells from disk needs annbatch: `pip install "scxtrimo[stream]"`.'
    )


class _Codecs:
    """Who uses zarrs at the moment; the choice is one for the whole process."""

    lock = threading.Lock()
    n_users = 0
    setting: Any = None


@contextmanager
def fast_codecs() -> Iterator[None]:
    """Let zarrs, if it is there, read and write chunks: several times as fast as zarr itself."""
    if find_spec("zarrs") is None:
        yield
        return
    with _Codecs.lock:
        _Codecs.n_users += 1
        if _Codecs.n_users == 1:
            _Codecs.setting = zarr.config.set({"codec_pipeline.path": ZARRS})
            _Codecs.setting.__enter__()
    try:
        yield
    finally:
        with _Codecs.lock:
            _Codecs.n_users -= 1
            if _Codecs.n_users == 0:
                _Codecs.setting.__exit__(None, None, None)


def make_requests() -> Any:
    """Return a sampler of annbatch that asks for one window of cells, as it is."""
    from annbatch.abc import Sampler

    class Requests(Sampler):
        batch_size, shuffle = None, False

        def __init__(self) -> None:
            self.slices: list[slice] = []

        def n_batches(self, n_obs: int) -> int:
            return 1

        def validate(self, n_obs: int) -> None:
            pass

        def _sample(self, n_obs: int) -> Iterator[Any]:
            n_cells = sum(one.stop - one.start for one in self.slices)
            yield {"requests": self.slices, "splits": [np.arange(n_cells)]}

    return Requests()
