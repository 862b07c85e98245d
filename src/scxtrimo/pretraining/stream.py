"""The batches of a store: in what order its cells are read, and by which process."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from functools import cached_property
from itertools import count
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from scipy import sparse

from ..data.dataset import gather_rows, prefetch
from ..train.splitter import divide_evenly
from .store import CellStore, DamagedStoreError, rows_of

OnDamage = Literal["raise", "skip"]


class Window(NamedTuple):
    """Cells (slices of rows of the store) that are read together, shuffled and made batches."""

    slices: list[slice]
    n_batches: int
    epoch: int
    key: tuple[int, ...]  # seed of the order

    def batches(self, n_tokens: np.ndarray, by_tokens: bool, shuffle: bool) -> list[np.ndarray]:
        """Divide cells with so many expressed genes, by tokens or evenly."""
        order = np.arange(len(n_tokens))
        if shuffle:
            order = np.random.default_rng(self.key).permutation(order)
        weights = n_tokens[order] if by_tokens else np.ones(len(order), dtype=np.int64)
        return np.split(order, divide_evenly(weights, self.n_batches))


class StreamPlan:
    """The batches of every epoch over a store, a pure function of the seed and the step.

    An epoch deals runs of neighbouring cells to lanes at random. Every lane reads some runs at a
    time (a window) and shuffles their cells; a step takes one batch of each lane.

    Parameters
    ----------
    n_tokens
        Expressed genes of every cell of the store.
    batch_size, tokens_per_batch
        Cells per batch on average at most, or expressed genes instead.
    n_lanes
        Batches per step of the optimiser, over all processes.
    window_size, chunk_size
        Cells that are shuffled together, over all lanes; neighbouring cells that are read at once.
    seed, shuffle
        Seed of the order; without shuffling cells keep theirs.

    Examples
    --------
    >>> import numpy as np
    >>> plan = scxtrimo.pretraining.StreamPlan(np.full(1000, 500), batch_size=64, n_lanes=2)
    >>> plan.n_steps, plan.cells_per_step, len(list(plan.windows(epoch=0, lane=1)))
    (8, 125.0, 1)
    """

    def __init__(
        self,
        n_tokens: np.ndarray,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        n_lanes: int = 1,
        window_size: int = 4096,
        chunk_size: int = 256,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        if (batch_size is None) == (tokens_per_batch is None):
            raise ValueError("Give either `batch_size` or `tokens_per_batch`.")
        n_cells = len(n_tokens)
        if n_cells < n_lanes:
            raise ValueError(f"{n_cells} cells are too few for {n_lanes} batches per step.")
        self.n_tokens, self.n_lanes = n_tokens, n_lanes
        self.seed, self.shuffle = seed, shuffle
        self.by_tokens = tokens_per_batch is not None
        if tokens_per_batch is not None:
            # Smaller by half of the longest cell, so that few batches exceed the number.
            longest = min(int(n_tokens.max()), tokens_per_batch)
            per_step = n_lanes * max(1, tokens_per_batch - longest // 2)
            n_steps = -(-int(n_tokens.sum(dtype=np.int64)) // per_step)
        elif batch_size is not None:
            n_steps = -(-n_cells // (n_lanes * batch_size))
        # In a small store runs are short, so that all lanes have about as many cells.
        self.chunk_size = int(np.clip(n_cells // (16 * n_lanes), 1, chunk_size))
        starts = np.arange(0, n_cells, self.chunk_size)
        self.n_chunks = len(starts)
        fewest = self.n_chunks // n_lanes  # runs of a lane
        self.n_windows = int(np.clip(round(n_cells / window_size), 1, max(1, fewest // 2)))
        # All windows have the same number of batches, so that batches are of the same size.
        n_steps = self.n_windows * -(-n_steps // self.n_windows)
        # No batch is empty: a lane has at least `fewest` runs, one of which may be shorter.
        self.n_steps = int(np.clip(n_steps, 1, max(1, (fewest - 1) * self.chunk_size)))
        self.n_windows = min(self.n_windows, self.n_steps)
        self._sizes = np.diff(starts, append=n_cells)  # of the runs
        self._weights = self._sizes
        if self.by_tokens:
            self._weights = np.add.reduceat(n_tokens, starts, dtype=np.int64)

    @property
    def cells_per_step(self) -> float:
        """Cells per step of the optimiser, on average."""
        return len(self.n_tokens) / self.n_steps

    def windows(self, epoch: int, lane: int) -> Iterator[Window]:
        """Iterate over what a lane reads in an epoch.

        Parameters
        ----------
        epoch, lane
            Their numbers, from 0.

        Yields
        ------
        One window after the other.
        """
        chunks = np.arange(self.n_chunks)
        if self.shuffle:
            chunks = np.random.default_rng((self.seed, epoch)).permutation(chunks)
            mine = chunks[lane :: self.n_lanes]
        else:
            mine = np.array_split(chunks, self.n_lanes)[lane]
        parts = np.array_split(mine, self.n_windows)
        n_batches = _share(
            self.n_steps,
            np.array([self._weights[part].sum() for part in parts]),
            np.array([self._sizes[part].sum() for part in parts]),
        )
        for i, part in enumerate(parts):
            starts = part * self.chunk_size
            ends = np.stack([starts, starts + self._sizes[part]], axis=1)
            slices = [slice(*pair) for pair in ends.tolist()]
            yield Window(slices, int(n_batches[i]), epoch, (self.seed, epoch, lane, i))


def _share(n_batches: int, weights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Share batches among windows by weight: at least one, and at most one per cell."""
    ends = np.rint(np.cumsum(weights) / weights.sum() * n_batches).astype(np.int64)
    shares = np.clip(np.diff(ends, prepend=0), 1, sizes)
    while (left := n_batches - int(shares.sum())) != 0:
        step = np.sign(left)
        room = sizes - shares if step > 0 else shares - 1
        shares[np.argmax(room)] += step
    return shares


class StreamLoader:
    """Batches of one process, starting at any step.

    They are dictionaries of tensors as in :class:`~scxtrimo.data.RaggedDataset`, with their
    ``epoch`` and ``lane``. A thread reads the cells of the next window.

    Parameters
    ----------
    store, plan
        Where the cells are, and which cells are in which batch.
    n_steps
        Steps of the optimiser, over all epochs; by default those of one epoch.
    rank, world_size
        Number of this process, and how many there are; they must share the lanes evenly.
    codes, balance
        Category of every cell of the store, for the batches; how far categories count equally,
        see :class:`~scxtrimo.DataConfig`.
    on_damage, pin_memory
        Whether to ``"raise"`` or ``"skip"`` cells that cannot be read, and count them in
        ``n_skipped``; whether batches go to a GPU.

    Examples
    --------
    >>> store = scxtrimo.pretraining.CellStore("cells.zarr")
    >>> plan = scxtrimo.pretraining.StreamPlan(store.n_tokens, batch_size=64)
    >>> loader = scxtrimo.pretraining.StreamLoader(store, plan)
    >>> loader.load_state_dict({"step": 5})
    >>> len(list(loader)) == loader.n_steps - 5, loader.state_dict()
    (True, {'step': 11})
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
        codes: np.ndarray | None = None,
        balance: float = 0.0,
    ) -> None:
        if plan.n_lanes % world_size:
            raise ValueError(
                f"{plan.n_lanes} batches per step cannot be shared by {world_size} processes: "
                "choose a multiple of their number for `batches_per_step`."
            )
        self.store, self.plan, self.codes = store, plan, codes
        self.weights: np.ndarray | None = None
        if codes is not None and balance:
            weights = np.bincount(codes)[codes] ** -balance
            self.weights = (weights / weights.mean()).astype(np.float32)
        self.n_steps = plan.n_steps if n_steps is None else n_steps
        self.lanes = range(rank, plan.n_lanes, world_size)
        self.on_damage, self.pin_memory = on_damage, pin_memory
        self.first_step, self.n_yielded, self.n_skipped = 0, 0, 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.n_steps * len(self.lanes)

    def state_dict(self) -> dict[str, int]:
        """Return the position of the loader.

        Returns
        -------
        The ``step`` that comes next.
        """
        return {"step": self.first_step + self.n_yielded // len(self.lanes)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from a step.

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
        for window, skip, counts, rows in prefetch(self._windows(lane), 1):
            if not skip:  # a run that is resumed within a window has counted them before
                self.n_skipped += len(np.setdiff1d(rows_of(window.slices), rows))
            n_tokens = np.diff(counts.indptr)
            places = window.batches(n_tokens, self.plan.by_tokens, self.plan.shuffle)
            for place in places[skip:]:
                batch = ragged_batch(counts, place, rows[place])
                if self.codes is not None:
                    codes = self.codes[rows[place]]
                    batch["categories"] = torch.from_numpy(codes)[:, None]
                if self.weights is not None:
                    batch["cell_weights"] = torch.from_numpy(self.weights[rows[place]])
                if self.pin_memory:
                    batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
                yield batch | {"epoch": window.epoch, "lane": lane}

    def _windows(self, lane: int) -> Iterator[tuple[Window, int, Any, np.ndarray]]:
        """Read one window after the other, from the first step on."""
        first_epoch, skip = divmod(self.first_step, self.plan.n_steps)
        for epoch in count(first_epoch):
            for window in self.plan.windows(epoch, lane):
                if skip >= window.n_batches:
                    skip -= window.n_batches
                    continue
                yield window, skip, *self._read(window)
                skip = 0

    def _read(self, window: Window) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Return the cells of a window that can be read, and their rows in the store."""
        slices = window.slices
        with self._lock:  # the lanes of a process share a reader
            try:
                return self.store.read(slices), rows_of(slices)
            except DamagedStoreError:
                if self.on_damage == "raise":
                    raise
            slices = self.store.readable(slices)
            if len(rows_of(slices)) < window.n_batches:
                slices += self._stand_ins(window)
            return self.store.read(slices), rows_of(slices)

    def _stand_ins(self, window: Window) -> list[slice]:
        """Return cells from elsewhere, as every process needs a batch in every step."""
        size, n_cells = self.plan.chunk_size, self.store.n_cells
        first = window.slices[0].start // size
        found: list[slice] = []
        for start in np.roll(np.arange(0, n_cells, size), -first)[1:].tolist():
            found += self.store.readable([slice(start, min(start + size, n_cells))])
            if len(rows_of(found)) >= window.n_batches:
                return found
        raise OSError(f"{self.store.path}: too few cells can be read to continue.")


def ragged_batch(
    counts: sparse.csr_matrix, place: np.ndarray, cell_ids: np.ndarray | None = None
) -> dict[str, Any]:
    """Return some cells as a batch of tensors.

    Parameters
    ----------
    counts
        Counts without zeros, with the columns of the vocabulary.
    place, cell_ids
        Which rows, and the identifiers of their cells, by default ``place``.

    Returns
    -------
    The batch; see :class:`~scxtrimo.data.RaggedDataset`.

    Examples
    --------
    >>> import numpy as np
    >>> scxtrimo.pretraining.ragged_batch(adata.X, np.arange(8))["cell_ids"]
    tensor([0, 1, 2, 3, 4, 5, 6, 7])
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
    n_steps, on_damage
        See :class:`StreamLoader`.
    study_key, balance
        Column of ``obs`` whose categories training batches have (held-out cells have none), and
        how far these count equally; see :class:`~scxtrimo.DataConfig`.
    max_cells
        Train on so many cells at most; held-out cells are all used.

    Examples
    --------
    >>> data = scxtrimo.pretraining.StoreDataModule("cells.zarr", batch_size=64)
    >>> data.store.n_cells, data.validation_store.n_cells, data.plan.n_steps
    (671, 29, 11)
    >>> data.train_dataloader() is data.train_loader
    True
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
        study_key: str | None = None,
        balance: float = 0.0,
        max_cells: int | None = None,
    ) -> None:
        super().__init__()
        self.path, self.n_steps, self.on_damage = store, n_steps, on_damage
        self.balance = balance
        self._sizes: dict[str, Any] = {
            "batch_size": None if tokens_per_batch else batch_size,
            "tokens_per_batch": tokens_per_batch,
            "window_size": window_size,
            "chunk_size": chunk_size,
        }
        self.store = CellStore(store, max_cells=max_cells)
        self.plan = StreamPlan(self.store.n_tokens, n_lanes=n_lanes, seed=seed, **self._sizes)
        self.codes: np.ndarray | None = None
        self.studies: list[str] = []
        if study_key is not None:
            self.codes, self.studies = self.store.categories(study_key)

    @cached_property
    def validation_store(self) -> CellStore:
        """The cells that are held out."""
        return CellStore(self.path, "validation")

    @cached_property
    def train_loader(self) -> StreamLoader:
        """The batches of this process."""
        return self._loader(self.store, self.plan, self.n_steps, self.codes, self.balance)

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
        store = self.validation_store
        world_size = 1 if self.trainer is None else self.trainer.world_size
        if store.n_cells < world_size:
            return []
        plan = StreamPlan(store.n_tokens, n_lanes=world_size, shuffle=False, **self._sizes)
        # Studies that are held out are none of those in training.
        unknown = None if self.codes is None else np.full(store.n_cells, -1)
        return self._loader(store, plan, None, unknown)

    def _loader(
        self,
        store: CellStore,
        plan: StreamPlan,
        n_steps: int | None,
        codes: np.ndarray | None,
        balance: float = 0.0,
    ) -> StreamLoader:
        rank, world_size, on_gpu = 0, 1, False
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            on_gpu = self.trainer.strategy.root_device.type == "cuda"
        damage = self.on_damage
        shares = rank, world_size, damage, on_gpu
        return StreamLoader(store, plan, n_steps, *shares, codes, balance)
