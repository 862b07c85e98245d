"""Splits cells into training and validation, and serves them in ragged batches."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from scvi.data import AnnDataManager
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader

from ..data.counts import as_rows
from ..data.dataset import PrefetchLoader, RaggedDataset
from .sampler import EpochShuffler, TokenBudgetShuffler


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
    tokens_per_batch
        Expressed genes per batch, instead of cells; see :class:`TokenBudgetShuffler`.
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
        tokens_per_batch: int | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("external_indexing") is not None:
            kwargs["external_indexing"] = as_sets(
                kwargs["external_indexing"], adata_manager.adata.n_obs
            )
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
                f"None of the {adata_manager.adata.n_obs:,} cells is left to train on: raise "
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
        self.val_idx = np.sort(rows[: self.n_val])
        self.train_idx = np.sort(rows[self.n_val : self.n_val + self.n_train])
        self.test_idx = np.sort(rows[self.n_val + self.n_train :])

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
        return TokenBudgetShuffler(
            rows, self.n_tokens[rows], self.tokens_per_batch, self.seed, shuffle
        )

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
        """Return validation batches; none if there are no validation cells."""
        return self._loader(self.val_idx, shuffle=False) if len(self.val_idx) else []

    def test_dataloader(self) -> DataLoader | list:
        """Return the batches of cells in neither set."""
        return self._loader(self.test_idx, shuffle=False) if len(self.test_idx) else []


def as_sets(external_indexing: Any, n_cells: int) -> list[np.ndarray]:
    """Return row numbers of training, validation and test cells, from rows or masks.

    Cells that are in none of the sets are test cells, unless test cells are named.
    """
    if not isinstance(external_indexing, list | tuple) or not 1 <= len(external_indexing) <= 3:
        raise ValueError(
            "external_indexing must be a list of up to three sets of cells: to train on, to "
            f"validate on, and neither; got {type(external_indexing).__name__}."
        )
    sets = [_rows_of(part, n_cells) for part in [*external_indexing, None, None][:3]]
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
    if values.size == 0 or (values.dtype == bool and not values.any()):
        return np.empty(0, dtype=np.int64)
    return as_rows(part, n_cells)
