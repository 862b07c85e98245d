"""Ragged batches of a store on disk, for one process of a training."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from functools import cached_property
from itertools import count
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..data.dataset import gather_rows
from ..data.prefetching import prefetch
from .store import CellStore, DamagedStoreError
from .stream_plan import StreamPlan, Window

OnDamage = Literal["raise", "skip"]


class StreamLoader:
    """Batches of one process, from any step on.

    While the cells of one window are trained on, a thread reads those of the next; no more than
    two windows are in memory. Worker processes would have to send batches to this one, which takes
    longer than making them.

    Parameters
    ----------
    store
        Where the cells are.
    plan
        Which cells are in which batch.
    n_steps
        Steps of the optimiser, over all epochs.
    rank, world_size
        Which of how many processes this is.
    on_damage
        What to do with cells that cannot be read: ``"raise"``, or ``"skip"`` and count them. Where
        that leaves a window without cells, others stand in.
    pin_memory
        Whether batches go to a GPU.

    Attributes
    ----------
    n_skipped
        Cells of this process that were left out so far, those of all epochs.

    Raises
    ------
    ValueError
        If the batches of a step cannot be shared evenly by the processes.

    Notes
    -----
    Yields dictionaries as :class:`~scxtrimo.data.RaggedDataset` has them, of tensors, with the
    ``epoch`` and ``lane`` of the batch beside. Where it is (:meth:`state_dict`) is the step alone,
    so that another number of processes can go on.

    Examples
    --------
    >>> from scxtrimo.pretraining import CellStore
    >>> from scxtrimo.pretraining import StreamLoader, StreamPlan
    >>> store = CellStore("cells.zarr")
    >>> loader = StreamLoader(store, StreamPlan(store.n_tokens, batch_size=64))
    >>> batch = next(iter(loader))
    >>> len(batch["library_size"]) <= 64, loader.state_dict()
    (True, {'step': 1})
    >>> loader.load_state_dict({"step": 5})
    >>> len(list(loader)) == loader.n_steps - 5
    True
    """

    def __init__(
        self,
        store: CellStore,
        plan: StreamPlan,
        n_steps: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        on_damage: OnDamage = "raise",
        pin_memory: bool = False,
    ) -> None:
        if plan.n_lanes % world_size:
            raise ValueError(
                f"{plan.n_lanes} batches per step cannot be shared by {world_size} processes: "
                "choose a multiple of their number for `batches_per_step`."
            )
        self.store, self.plan = store, plan
        self.n_steps = plan.n_steps if n_steps is None else n_steps
        self.lanes = range(rank, plan.n_lanes, world_size)
        self.on_damage, self.pin_memory = on_damage, pin_memory
        self.first_step, self.n_yielded = 0, 0
        self.n_skipped = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.n_steps * len(self.lanes)

    def state_dict(self) -> dict[str, int]:
        """Say where the loader is.

        Returns
        -------
        The ``step`` that comes next.
        """
        return {"step": self.first_step + self.n_yielded // len(self.lanes)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from a step.

        Parameters
        ----------
        state_dict
            What :meth:`state_dict` returned.
        """
        self.first_step, self.n_yielded = state_dict["step"], 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.n_yielded = 0
        streams = [self._batches(lane) for lane in self.lanes]
        try:
            for _ in range(self.first_step, self.n_steps):
                for stream in streams:
                    batch = next(stream)
                    self.n_yielded += 1
                    yield batch
        finally:
            for stream in streams:
                stream.close()

    def _batches(self, lane: int) -> Generator[dict[str, Any]]:
        """Iterate over the batches of a lane, without end."""
        for epoch, window, skip, counts, rows, n_lost in prefetch(self._windows(lane), 1):
            if not skip:  # not again, if a run goes on inside a window
                self.n_skipped += n_lost
            n_tokens = np.diff(counts.indptr)
            places = window.batches(n_tokens, self.plan.by_tokens, self.plan.shuffle)
            for place in places[skip:]:
                batch = ragged_batch(counts, place, rows[place])
                if self.pin_memory:
                    batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
                yield batch | {"epoch": epoch, "lane": lane}

    def _windows(self, lane: int) -> Iterator[tuple[int, Window, int, Any, np.ndarray, int]]:
        """Read one window after the other, from the first step on."""
        first_epoch, skip = divmod(self.first_step, self.plan.n_steps)
        for epoch in count(first_epoch):
            for window in self.plan.windows(epoch, lane):
                if skip >= window.n_batches:
                    skip -= window.n_batches
                    continue
                yield epoch, window, skip, *self._read(window)
                skip = 0

    def _read(self, window: Window) -> tuple[sparse.csr_matrix, np.ndarray, int]:
        """Return the cells of a window, their rows in the store, and how many were lost."""
        slices, n_lost = window.slices, 0
        with self._lock:  # the lanes of a process share a reader
            try:
                counts = self.store.read(slices)
            except DamagedStoreError:
                if self.on_damage == "raise":
                    raise
                slices = self.store.readable(slices)
                n_lost = window.n_cells - _n_cells(slices)
                if _n_cells(slices) < window.n_batches:
                    slices = slices + self._stand_ins(window)
                counts = self.store.read(slices)
        rows = np.concatenate([np.arange(one.start, one.stop) for one in slices])
        return counts, rows, n_lost

    def _stand_ins(self, window: Window) -> list[slice]:
        """Return cells from elsewhere for a window of which hardly any can be read.

        All processes take all steps, so that no batch may be empty.
        """
        size, first = self.plan.chunk_size, window.slices[0].start // self.plan.chunk_size
        found: list[slice] = []
        for i in range(1, self.plan.n_chunks):
            start = (first + i) % self.plan.n_chunks * size
            found += self.store.readable([slice(start, min(start + size, self.store.n_cells))])
            if _n_cells(found) >= window.n_batches:
                return found
        raise OSError(f"{self.store.path}: too few cells can be read to go on.")


def _n_cells(slices: list[slice]) -> int:
    return sum(one.stop - one.start for one in slices)


def ragged_batch(
    counts: sparse.csr_matrix, place: np.ndarray, cell_ids: np.ndarray | None = None
) -> dict[str, Tensor]:
    """Return some cells as a batch of tensors.

    Parameters
    ----------
    counts
        Counts without zeros, with the columns of the vocabulary.
    place
        Which rows.
    cell_ids
        What they are called, by default ``place``.

    Returns
    -------
    The batch; see :class:`~scxtrimo.data.RaggedDataset`.

    Examples
    --------
    >>> import numpy as np
    >>> from scxtrimo.pretraining import ragged_batch
    >>> batch = ragged_batch(adata.X, np.arange(8))  # of adata, all genes
    >>> batch["library_size"].shape, batch["cell_ids"]
    (torch.Size([8]), tensor([0, 1, 2, 3, 4, 5, 6, 7]))
    """
    arrays = gather_rows(counts, place)
    totals = np.add.reduceat(arrays["counts"], arrays["cu_seqlens"][:-1], dtype=np.float64)
    arrays["library_size"] = totals.astype(np.float32)
    arrays["categories"] = np.empty((len(place), 0), dtype=np.int64)
    arrays["cell_ids"] = place if cell_ids is None else cell_ids
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class StoreDataModule(pl.LightningDataModule):
    """Training and validation batches of a store, shared by the processes of a trainer.

    Parameters
    ----------
    store
        Path or URL of a store that :func:`~scxtrimo.pretraining.write_store` wrote.
    batch_size, tokens_per_batch, n_lanes, window_size, chunk_size, seed
        See :class:`StreamPlan`.
    n_steps
        Steps of the optimiser, over all epochs; by default those of one epoch.
    on_damage
        See :class:`StreamLoader`.

    Examples
    --------
    >>> from scxtrimo.pretraining import StoreDataModule
    >>> data = StoreDataModule("cells.zarr", batch_size=64)
    >>> data.store.n_cells, data.validation_store.n_cells, data.plan.n_steps
    (671, 29, 11)
    >>> data.train_dataloader() is data.train_loader
    True
    >>> len(next(iter(data.val_dataloader()))["library_size"])
    29
    """

    def __init__(
        self,
        store: str,
        batch_size: int | None = 256,
        tokens_per_batch: int | None = None,
        n_lanes: int = 1,
        n_steps: int | None = None,
        window_size: int = 4096,
        chunk_size: int = 256,
        seed: int = 0,
        on_damage: OnDamage = "raise",
    ) -> None:
        super().__init__()
        self.path, self.n_lanes, self.n_steps = store, n_lanes, n_steps
        self.seed, self.on_damage = seed, on_damage
        self._sizes: dict[str, Any] = {
            "batch_size": None if tokens_per_batch else batch_size,
            "tokens_per_batch": tokens_per_batch,
            "window_size": window_size,
            "chunk_size": chunk_size,
        }

    @cached_property
    def store(self) -> CellStore:
        """The cells to train on."""
        return CellStore(self.path, "train")

    @cached_property
    def validation_store(self) -> CellStore:
        """The cells that are held out."""
        return CellStore(self.path, "validation")

    @cached_property
    def plan(self) -> StreamPlan:
        """Which cells are trained on when."""
        return StreamPlan(self.store.n_tokens, n_lanes=self.n_lanes, seed=self.seed, **self._sizes)

    @cached_property
    def train_loader(self) -> StreamLoader:
        """The batches of this process."""
        return self._loader(self.store, self.plan, self.n_steps)

    def train_dataloader(self) -> StreamLoader:
        """Return the training batches of this process.

        Returns
        -------
        The loader, always the same.
        """
        return self.train_loader

    def val_dataloader(self) -> StreamLoader | list:
        """Return the held-out cells, in their order.

        Returns
        -------
        A loader; an empty list if there are fewer cells than processes.
        """
        if self.validation_store.n_cells < self._process()[1]:
            return []
        plan = StreamPlan(
            self.validation_store.n_tokens,
            n_lanes=self._process()[1],
            shuffle=False,
            **self._sizes,
        )
        return self._loader(self.validation_store, plan, None)

    def _loader(self, store: CellStore, plan: StreamPlan, n_steps: int | None) -> StreamLoader:
        rank, world_size = self._process()
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return StreamLoader(store, plan, n_steps, rank, world_size, self.on_damage, on_gpu)

    def _process(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
