"""Splits cells into training and validation, and shuffles them the same way every time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scvi.data import AnnDataManager
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Sampler

from ..data import RaggedDataset


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

    Notes
    -----
    Lightning calls :meth:`set_epoch`, also when a training is resumed, which then goes on with
    the order that an uninterrupted training would have had.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int, shuffle: bool = True) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rows = self.rows
        if self.shuffle:
            rows = np.random.default_rng((self.seed, self.epoch)).permutation(rows)
        for start in range(0, len(rows), self.batch_size):
            yield rows[start : start + self.batch_size].tolist()


class RaggedDataSplitter(DataSplitter):
    """Training and validation loaders over ragged batches.

    Parameters
    ----------
    adata_manager
        Manager with the registered AnnData.
    train_size, validation_size
        Fractions of the cells; see :class:`scvi.dataloaders.DataSplitter`. By default nine tenths
        are trained on; a single cell is trained on and not validated.
    batch_size
        Cells per batch.
    seed
        Seed of the split and of the order of the training cells.
    **kwargs
        Passed to :class:`scvi.dataloaders.DataSplitter` and on to
        :class:`torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        train_size: float | None = None,
        validation_size: float | None = None,
        batch_size: int = 64,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        # A float train_size keeps scvi-tools from moving the cells of a small last batch to the
        # validation set with a warning; this model has no need of large last batches.
        super().__init__(
            adata_manager,
            train_size=0.9 if train_size is None else train_size,
            validation_size=validation_size,
            **kwargs,
        )
        self.batch_size = batch_size
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        """Draw the split."""
        if self.external_indexing is not None:
            super().setup(stage)
            return
        rows = np.arange(self.adata_manager.adata.n_obs)
        if self.shuffle_set_split:
            rows = np.random.default_rng(self.seed).permutation(rows)
        self.val_idx = np.sort(rows[: self.n_val])
        self.train_idx = np.sort(rows[self.n_val : self.n_val + self.n_train])
        self.test_idx = np.sort(rows[self.n_val + self.n_train :])

    @cached_property
    def _dataset(self) -> RaggedDataset:
        return RaggedDataset(self.adata_manager, preload=True)

    def _loader(self, rows: np.ndarray, shuffle: bool) -> DataLoader:
        return DataLoader(
            self._dataset,
            sampler=EpochShuffler(rows.astype(np.int64), self.batch_size, self.seed, shuffle),
            batch_size=None,
            generator=torch.Generator(),  # or every epoch would draw from the global one
            pin_memory=self.pin_memory,
            **self.data_loader_kwargs,
        )

    def train_dataloader(self) -> DataLoader:
        """Return shuffled training batches."""
        return self._loader(self.train_idx, shuffle=True)

    def val_dataloader(self) -> DataLoader | list:
        """Return validation batches; none if there are no validation cells."""
        return self._loader(self.val_idx, shuffle=False) if len(self.val_idx) else []

    def test_dataloader(self) -> DataLoader | list:
        """Return the batches of cells in neither set."""
        return self._loader(self.test_idx, shuffle=False) if len(self.test_idx) else []
