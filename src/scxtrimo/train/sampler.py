"""The order in which cells are trained on, and how many at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochShuffler(Sampler[list[int]]):
    """Batches of rows in an order that depends on seed and epoch alone.

    Parameters
    ----------
    rows
        Rows to draw from.
    batch_size
        Cells per batch; the last one of an epoch may have fewer.
    seed
        Seed of the order.
    shuffle
        If false, rows keep their order.
    drop_last
        Leave out what would be a last batch of fewer cells, if there are other batches.

    Notes
    -----
    Lightning calls :meth:`set_epoch`, also when a training is resumed, which then goes on with
    the order that an uninterrupted training would have had.

    Examples
    --------
    >>> import numpy as np
    >>> from scxtrimo.train import EpochShuffler
    >>> list(EpochShuffler(np.arange(5), batch_size=2, seed=0, shuffle=False))
    [[0, 1], [2, 3], [4]]
    >>> sampler = EpochShuffler(np.arange(5), batch_size=2, seed=0)
    >>> sampler.set_epoch(1)
    >>> sorted(sum(sampler, []))
    [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        self.rows = np.asarray(rows)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        n_full = len(self.rows) // batch_size * batch_size
        self.n_used = n_full if drop_last and n_full else len(self.rows)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next epoch.

        Parameters
        ----------
        epoch
            Its number.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n_used // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(len(self.rows))
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        for part in self._divide(order[: self.n_used]):
            yield self.rows[part].tolist()

    def _divide(self, order: np.ndarray) -> list[np.ndarray]:
        return np.split(order, range(self.batch_size, len(order), self.batch_size))


class TokenBudgetShuffler(EpochShuffler):
    """Batches of about equally many tokens instead of cells, so that memory is used evenly.

    All epochs have the same number of batches, which is what trainers and schedules expect.

    Parameters
    ----------
    rows
        Rows to draw from.
    n_tokens
        Number of tokens of each of them.
    tokens_per_batch
        Tokens of a batch, at most if no cell has more than half of them; longer cells make some
        batches longer.
    seed, shuffle
        See :class:`EpochShuffler`.

    Examples
    --------
    >>> import numpy as np
    >>> from scxtrimo.train import TokenBudgetShuffler
    >>> n_tokens = np.array([500, 900, 400, 600, 700])
    >>> sampler = TokenBudgetShuffler(np.arange(5), n_tokens, 2000, seed=0, shuffle=False)
    >>> list(sampler)
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        rows: np.ndarray,
        n_tokens: np.ndarray,
        tokens_per_batch: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        longest = min(int(n_tokens.max(initial=0)), tokens_per_batch // 2)
        # A batch ends with the cell that reaches its share, and exceeds it by less than a cell.
        share = max(1, tokens_per_batch - longest)
        n_batches = int(np.clip(-(-int(n_tokens.sum()) // share), 1, max(1, len(rows))))
        super().__init__(rows, max(1, len(rows) // n_batches), seed, shuffle)
        self.n_tokens = n_tokens
        self.n_batches = n_batches

    def __len__(self) -> int:
        return self.n_batches

    def _divide(self, order: np.ndarray) -> list[np.ndarray]:
        return np.split(order, divide_evenly(self.n_tokens[order], self.n_batches))


def divide_evenly(weights: np.ndarray, n_parts: int) -> np.ndarray:
    """Return where to split a sequence so that all parts weigh about the same.

    Parameters
    ----------
    weights
        Weights of the elements, not negative.
    n_parts
        Number of parts, at most that of the elements.

    Returns
    -------
    ``n_parts - 1`` places. No part is empty, and a part ends with the element that reaches its
    share.

    Examples
    --------
    >>> divide_evenly(np.array([500, 900, 400, 600, 700]), 3)
    array([2, 4])
    """
    reached = np.cumsum(weights, dtype=np.int64)
    shares = reached[-1] * np.arange(1, n_parts) / n_parts
    ends = np.searchsorted(reached, shares) + 1
    # No part is empty, whatever the weights: ends increase, and leave elements for the others.
    places = np.arange(1, n_parts)
    ends = np.maximum.accumulate(ends - places) + places
    return np.minimum(ends, len(weights) - n_parts + places)
