"""Batches prepared ahead, so that a GPU does not wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torch.utils.data import DataLoader

T = TypeVar("T")
END: Any = object()


def prefetch(batches: Iterable[T], n_ahead: int = 2) -> Iterator[T]:
    """Prepare the next batches in a thread while the caller works on this one.

    Parameters
    ----------
    batches
        Where the batches come from; only the thread touches it.
    n_ahead
        How many batches may be ready and not yet used.

    Yields
    ------
    The batches, in their order. An error in one of them is raised where it would have come.

    Examples
    --------
    >>> from scxtrimo.data import prefetch
    >>> list(prefetch(iter("abc")))
    ['a', 'b', 'c']
    """
    iterator = iter(batches)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        ready = deque(thread.submit(next, iterator, END) for _ in range(n_ahead))
        while (batch := ready.popleft().result()) is not END:
            ready.append(thread.submit(next, iterator, END))
            yield batch


class PrefetchLoader(DataLoader):
    """A :class:`~torch.utils.data.DataLoader` that works ahead in a thread.

    Slicing ragged batches takes a fraction of a millisecond: worker processes, which have to send
    every batch to this one, are slower.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.data import PrefetchLoader, RaggedDataset
    >>> sampler = torch.utils.data.BatchSampler(range(10), batch_size=4, drop_last=False)
    >>> dataset = RaggedDataset(model.adata_manager)
    >>> loader = PrefetchLoader(dataset, sampler=sampler, batch_size=None)
    >>> [len(batch["library_size"]) for batch in loader]
    [4, 4, 2]
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return prefetch(super().__iter__())
