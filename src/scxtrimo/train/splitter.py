"""Which cells are trained on, in which order, and how many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scvi.data import AnnDataManager
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Sampler

from ..data.counts import as_rows
from ..data.dataset import PrefetchLoader, RaggedDataset
from ..latent import draw_rows

MAX_VALIDATED = 1000  # cells, at the end of every epoch


class EpochShuffler(Sampler[list[int]]):
    """Batches of rows in an order that depends on seed and epoch alone.

    A training that is resumed thus goes on with the order it would have had.

    Parameters
    ----------
    rows, batch_size
        Rows to draw from; cells per batch, of which the last one of an epoch may have fewer.
    seed, shuffle
        Seed of the order; whether to shuffle at all.
    drop_last
        Leave out what would be a last batch of fewer cells, if there are other batches.

    Examples
    --------
    >>> sampler = scxtrimo.train.EpochShuffler([3, 4, 5], batch_size=2, seed=0, shuffle=False)
    >>> sampler.set_epoch(1)
    >>> list(sampler)
    [[3, 4], [5]]
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
        """Choose the order of the next epoch; Lightning calls this.

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
    rows, n_tokens
        Rows to draw from, and the number of tokens of each of them.
    tokens_per_batch
        Tokens of a batch, at most if no cell has more than half of them; longer cells make some
        batches longer.
    seed, shuffle
        See :class:`EpochShuffler`.

    Examples
    --------
    >>> n_tokens = np.array([500, 900, 400, 600, 700])
    >>> list(TokenBudgetShuffler(np.arange(5), n_tokens, 2000, seed=0, shuffle=False))
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
    """Return the ``n_parts - 1`` places that split a sequence into parts of about equal weight."""
    reached = np.cumsum(weights, dtype=np.int64)
    shares = reached[-1] * np.arange(1, n_parts) / n_parts
    ends = np.searchsorted(reached, shares) + 1  # after the element that reaches the share
    # No part is empty, whatever the weights: ends increase, and leave elements for the others.
    places = np.arange(1, n_parts)
    ends = np.maximum.accumulate(ends - places) + places
    return np.minimum(ends, len(weights) - n_parts + places)


class RaggedDataSplitter(DataSplitter):
    """Loaders over ragged batches of as many cells or, with ``tokens_per_batch``, tokens."""

    def __init__(
        self,
        adata_manager: AnnDataManager,
        train_size: float | None = None,
        validation_size: float | None = None,
        batch_size: int = 64,
        tokens_per_batch: int | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        n_cells = adata_manager.adata.n_obs
        if (sets := kwargs.get("external_indexing")) is not None:
            kwargs["external_indexing"] = as_sets(sets, n_cells)
        default = 0.9 if not validation_size else 1 - validation_size
        # A float train_size keeps scvi-tools from moving the cells of a small last batch to the
        # validation set with a warning; this model has no need of large last batches.
        super().__init__(
            adata_manager,
            train_size=default if train_size is None else train_size,
            validation_size=validation_size,
            **kwargs,
        )
        if self.n_train == 0:
            raise ValueError(
                f"None of the {n_cells:,} cells is left to train on: raise "
                "`train_size`, or name cells in `external_indexing`."
            )
        self.batch_size = batch_size
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        """Draw the split."""
        if self.external_indexing is not None:
            super().setup(stage)
            return
        rows = np.arange(self.adata_manager.adata.n_obs)
        if self.shuffle_set_split:
            rows = np.random.default_rng(self.seed).permutation(rows)
        sets = np.split(rows, [self.n_val, self.n_val + self.n_train])
        self.val_idx, self.train_idx, self.test_idx = map(np.sort, sets)

    @cached_property
    def _dataset(self) -> RaggedDataset:
        return RaggedDataset(self.adata_manager, preload=True)

    @cached_property
    def n_tokens(self) -> np.ndarray:
        """Number of expressed genes of all cells."""
        return self._dataset.n_tokens()

    @property
    def n_batches(self) -> int:
        """Number of training batches of an epoch."""
        return len(self._sampler(self.train_idx, shuffle=True))

    def _sampler(self, rows: np.ndarray, shuffle: bool) -> EpochShuffler:
        rows = rows.astype(np.int64)
        if self.tokens_per_batch is None:
            drop_last = self.drop_last and shuffle
            return EpochShuffler(rows, self.batch_size, self.seed, shuffle, drop_last)
        n_tokens = self.n_tokens[rows]
        return TokenBudgetShuffler(rows, n_tokens, self.tokens_per_batch, self.seed, shuffle)

    def _loader(self, rows: np.ndarray, shuffle: bool) -> DataLoader:
        loader = PrefetchLoader if self.pin_memory else DataLoader
        return loader(
            self._dataset,
            sampler=self._sampler(rows, shuffle),
            batch_size=None,
            generator=torch.Generator(),  # or every epoch would draw from the global one
            pin_memory=self.pin_memory,
            **self.data_loader_kwargs,
        )

    def train_dataloader(self) -> DataLoader:
        """Return shuffled training batches."""
        return self._loader(self.train_idx, shuffle=True)

    def val_dataloader(self) -> DataLoader | list:
        """Return batches of at most 1,000 validation cells; none if there are none."""
        rows = draw_rows(self.val_idx, self.seed, MAX_VALIDATED)
        return self._loader(rows, shuffle=False) if len(rows) else []

    def test_dataloader(self) -> DataLoader | list:
        """Return the batches of cells in neither set."""
        return self._loader(self.test_idx, shuffle=False) if len(self.test_idx) else []


def as_sets(external_indexing: Any, n_cells: int) -> list[np.ndarray]:
    """Return rows to train on, validate on, and neither (all others, if not named)."""
    if not isinstance(external_indexing, list | tuple) or not 1 <= len(external_indexing) <= 3:
        raise ValueError(
            "external_indexing must be a list of up to three sets of cells: to train on, to "
            f"validate on, and neither; got {type(external_indexing).__name__}."
        )
    sets = [_rows_of(part, n_cells) for part in [*external_indexing, [], []][:3]]
    times = np.bincount(np.concatenate(sets), minlength=n_cells)
    left_out = np.flatnonzero(times == 0)
    if len(left_out) and len(sets[2]):
        raise ValueError(
            f"external_indexing leaves out {len(left_out):,} of {n_cells:,} cells. Put them into "
            "its third set, which is neither trained on nor validated."
        )
    if n_twice := int((times > 1).sum()):
        raise ValueError(f"external_indexing lists {n_twice:,} cells more than once.")
    return [*sets[:2], sets[2] if len(sets[2]) else left_out]


def _rows_of(part: Any, n_cells: int) -> np.ndarray:
    """Return row numbers; there may be none."""
    values = np.asarray([] if part is None else part)
    is_empty_mask = values.dtype == bool and not values.any()
    return as_rows(part, n_cells) if values.size and not is_empty_mask else np.arange(0)
