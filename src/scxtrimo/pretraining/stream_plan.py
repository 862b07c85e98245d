"""Which cells of a store are trained on when: a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..train.sampler import divide_evenly


@dataclass(frozen=True)
class Window:
    """Cells that are read together and then shuffled.

    Parameters
    ----------
    slices
        Rows of the store, runs of neighbours.
    n_batches
        How many batches they make.
    key
        Seed of their order.

    Examples
    --------
    >>> import numpy as np
    >>> from scxtrimo.pretraining.stream_plan import Window
    >>> window = Window([slice(0, 4), slice(8, 12)], n_batches=2, key=(0,))
    >>> window.n_cells, window.batches(np.full(8, 500), by_tokens=False, shuffle=False)
    (8, [array([0, 1, 2, 3]), array([4, 5, 6, 7])])
    """

    slices: list[slice]
    n_batches: int
    key: tuple[int, ...]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return sum(one.stop - one.start for one in self.slices)

    def batches(self, n_tokens: np.ndarray, by_tokens: bool, shuffle: bool) -> list[np.ndarray]:
        """Divide the cells of the window into its batches.

        Parameters
        ----------
        n_tokens
            Expressed genes of the cells of the window, in the order of ``slices``.
        by_tokens
            Divide tokens evenly, not cells.
        shuffle
            Whether cells change their order.

        Returns
        -------
        Places in the window, one array per batch. Every cell is in one of them.
        """
        order = np.arange(len(n_tokens))
        if shuffle:
            order = np.random.default_rng(self.key).permutation(order)
        weights = n_tokens[order] if by_tokens else np.ones(len(order), dtype=np.int64)
        return np.split(order, divide_evenly(weights, self.n_batches))


class StreamPlan:
    """The batches of every epoch over a store.

    An epoch deals runs of neighbouring cells to ``n_lanes`` lanes at random. Every lane reads some
    runs at a time (a window), shuffles their cells and divides them into batches; a step of the
    optimiser takes one batch of each lane. Processes share the lanes: two with one lane each and
    one with both (and two batches per step) see the same cells in every step, so that a training
    can go on with another number of devices.

    Parameters
    ----------
    n_tokens
        Expressed genes of every cell of the store.
    batch_size
        Cells per batch, on average at most.
    tokens_per_batch
        Expressed genes per batch, instead of cells, on average at most: what is left of it by
        chance is kept small by an allowance of half of the longest cell.
    n_lanes
        Batches per step of the optimiser, over all processes.
    window_size
        Cells that are read and shuffled together, over all lanes.
    chunk_size
        Neighbouring cells that are read at once.
    seed
        Seed of the order.
    shuffle
        If false, cells keep their order.

    Notes
    -----
    All lanes have the same number of batches, and all epochs have the same number of steps. In an
    epoch every cell is in exactly one batch.

    Examples
    --------
    >>> import numpy as np
    >>> from scxtrimo.pretraining import StreamPlan
    >>> plan = StreamPlan(np.full(1000, 500), batch_size=64, n_lanes=2)
    >>> plan.n_steps, plan.cells_per_step
    (8, 125.0)
    >>> sum(window.n_cells for lane in (0, 1) for window in plan.windows(epoch=0, lane=lane))
    1000
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
            longest = min(int(n_tokens.max()), tokens_per_batch)
            per_step = n_lanes * max(1, tokens_per_batch - longest // 2)
            n_steps = -(-int(n_tokens.sum(dtype=np.int64)) // per_step)
        else:
            assert batch_size is not None
            n_steps = -(-n_cells // (n_lanes * batch_size))
        # So small runs in a small store that no lane has much more of it than another
        self.chunk_size = int(np.clip(n_cells // (16 * n_lanes), 1, chunk_size))
        self.n_chunks = -(-n_cells // self.chunk_size)
        fewest = self.n_chunks // n_lanes  # runs of a lane
        n_windows = round(n_cells / window_size)
        self.n_windows = int(np.clip(n_windows, 1, max(1, fewest // 2)))
        # Equally many in every window, or batches would differ by what is left over.
        n_steps = self.n_windows * -(-n_steps // self.n_windows)
        # No batch is empty: a lane has at least so many whole runs, and one may be a short one.
        self.n_steps = int(np.clip(n_steps, 1, max(1, (fewest - 1) * self.chunk_size)))
        self.n_windows = min(self.n_windows, self.n_steps)
        starts = np.arange(0, n_cells, self.chunk_size)
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
            starts = (part * self.chunk_size).tolist()
            stops = (part * self.chunk_size + self._sizes[part]).tolist()
            slices = [slice(*ends) for ends in zip(starts, stops, strict=True)]
            yield Window(slices, int(n_batches[i]), (self.seed, epoch, lane, i))


def _share(n_batches: int, weights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Share batches among windows by weight; every window has from one to as many as cells."""
    ends = np.rint(np.cumsum(weights) / weights.sum() * n_batches).astype(np.int64)
    shares = np.clip(np.diff(ends, prepend=0), 1, sizes)
    while (left := n_batches - int(shares.sum())) != 0:
        step = np.sign(left)
        room = sizes - shares if step > 0 else shares - 1
        shares[np.argmax(room)] += step
    return shares
