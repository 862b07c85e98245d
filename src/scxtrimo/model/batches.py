"""Encoding other people's cells batch by batch: what all results are made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from pydantic import PositiveInt
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .._validation import check
from ..data.columns import codes_of
from ..data.counts import as_rows
from ..data.dataset import RaggedDataset, covariate_keys, prefetch
from ..data.fields import CategoryField
from ..nn.embedding import normalize_counts
from ..nn.encoded import EncodedCells
from ..nn.ragged import sum_per_cell, to_tokens
from ..train.depth import TargetDepth

PROGRESS_SECONDS = 3
Depth = Literal["cell", "bulk"]
Precision = Literal["32-true", "bf16-mixed"]


def default_inference_batch_size(n_hidden: int) -> int:
    """Return the default number of cells per forward pass: fewer for a wide model.

    Examples
    --------
    >>> default_inference_batch_size(64), default_inference_batch_size(768)
    (128, 21)
    """
    return int(np.clip(128 * 128 // n_hidden, 8, 128))


class BatchesMixin(BaseModelClass):
    """Ragged batches of registered cells, and their encoding."""

    _shows_progress = True

    @contextmanager
    def _progress_as_asked(self, trainer_kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Show no progress bars where the trainer is to show none."""
        before = self._shows_progress
        self._shows_progress = bool(trainer_kwargs.get("enable_progress_bar", True)) and before
        try:
            yield
        finally:
            self._shows_progress = before

    def _batches(
        self,
        adata: AnnData | MuData | None,
        indices: Sequence[int] | np.ndarray | None,
        batch_size: int | None,
        description: str,
        target_depth: str | float | None = None,
        depth: Depth = "cell",
    ) -> Iterator[tuple[slice, dict[str, Any]]]:
        """Iterate over ragged batches on the model's device and their places in the result.

        Everything is checked before the first batch is asked for.
        """
        self._check_if_trained(
            message="The model is not trained: its results are those of random weights. Call "
            "`model.train()` first."
        )
        target = self._target_depth(target_depth, depth)
        adata = self._validate_anndata(adata)
        rows = as_rows(indices, adata.n_obs)
        scale = self._bulk_scale(adata) if depth == "bulk" else None
        loader = self._make_data_loader(
            adata,
            indices=rows,
            batch_size=self._batch_size(batch_size),
            pin_memory=self.device.type == "cuda",
        )
        return self._iterate(loader, len(rows), description, target, scale)

    def _iterate(
        self,
        loader: DataLoader,
        n_rows: int,
        description: str,
        target: TargetDepth | None,
        scale: float | None,
    ) -> Iterator[tuple[slice, dict[str, Any]]]:
        self.module.eval()
        start = 0
        on_gpu = self.device.type == "cuda"  # elsewhere memory is not pinned
        batches = prefetch(loader) if on_gpu else loader
        with tqdm(
            total=n_rows,
            desc=description,
            unit="cell",
            delay=PROGRESS_SECONDS,
            disable=not self._shows_progress,
        ) as bar:
            for batch in batches:
                n_cells = len(batch["cell_ids"])
                place = slice(start, start + n_cells)
                batch = {
                    key: value.to(self.device, non_blocking=on_gpu) for key, value in batch.items()
                }
                if scale is not None:
                    batch["scale"] = scale
                    batch["depths"] = bulk_depths(batch, scale)
                elif target is not None:
                    batch["depths"] = target.tokens(batch["library_size"])
                yield place, batch
                start += n_cells
                bar.update(n_cells)

    def _target_depth(self, target_depth: str | float | None, depth: Depth) -> TargetDepth | None:
        """Return the depth to ask for; ``None`` if the model cannot be asked, or for bulk."""
        if depth not in ("cell", "bulk"):
            raise ValueError(f"depth={depth!r} must be 'cell' or 'bulk'.")
        if not self.config_.read_depth_aware:
            if target_depth is not None or depth == "bulk":
                raise ValueError(
                    f"target_depth={target_depth!r} and depth={depth!r} need a model that is "
                    "aware of the read depth: `XTrimoGene(adata, read_depth_aware=True)`."
                )
            return None
        if depth == "bulk":
            if target_depth is not None:
                raise ValueError("Bulk profiles have no target_depth: leave it out.")
            return None
        if target_depth is None:
            return TargetDepth("t", float(self.module.typical_depth))
        return TargetDepth.parse(target_depth)

    def _bulk_scale(self, adata: AnnData) -> float:
        """Return the median total of all profiles of the data."""
        manager = self.get_anndata_manager(adata, required=True)
        return float(np.median(RaggedDataset(manager).library_sizes()))

    def _batch_size(self, batch_size: int | None) -> int:
        if batch_size is None:
            return default_inference_batch_size(self.config_.n_hidden)
        return check("batch_size", batch_size, PositiveInt)

    def _default_precision(self) -> Precision:
        """Return bfloat16 where a model is trained in it; published weights are kept exact."""
        if self.device.type != "cuda" or not self.config_.has_bottleneck:
            return "32-true"
        has_it = torch.cuda.get_device_capability(self.device) >= (8, 0)
        return "bf16-mixed" if has_it else "32-true"

    def _encode(
        self, batch: dict[str, Tensor], precision: Precision | None = None
    ) -> EncodedCells:
        precision = precision or self._default_precision()
        inputs = self.module._get_inference_input(batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            return self.module.inference(**inputs)["cells"]

    def _rows(
        self, adata: AnnData | MuData | None, indices: Sequence[int] | np.ndarray | None
    ) -> tuple[AnnData, np.ndarray]:
        """Return the registered data and the row numbers asked for."""
        registered = self._validate_anndata(adata)
        return registered, as_rows(indices, registered.n_obs)

    def _decoder(self, name: str | None) -> str:
        """Return the name of a decoder; by default the first."""
        known = list(self.module.decoders)
        if name is None:
            return known[0]
        if name not in known:
            raise ValueError(f"decoder={name!r} is unknown; this model has {known}.")
        return name

    def _genes(self, gene_list: Sequence[str] | None) -> np.ndarray:
        if gene_list is None:
            return np.arange(len(self.vocabulary))
        if len(gene_list) == 0:
            raise ValueError("gene_list is empty: name at least one gene.")
        return self.vocabulary.index_of(gene_list)

    def _places_among(self, genes: np.ndarray) -> Tensor:
        """Look up where a token's gene is among ``genes``, which are distinct; else -1.

        Two depth tokens follow the genes; -1, the cell token, finds the last entry.
        """
        places = torch.full((self.module.n_genes + 3,), -1, device=self.device)
        wanted = torch.as_tensor(genes, device=self.device)
        places[wanted] = torch.arange(len(genes), device=self.device)
        return places

    def _batch_code(self, batch: Any) -> int | None:
        if batch is None:
            return None
        if REGISTRY_KEYS.BATCH_KEY not in covariate_keys(self.registry):
            raise ValueError(
                f"transform_batch={batch!r}, but the model was set up without `batch_key`."
            )
        state = self.registry["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"]
        batches = list(state[CategoryField.MAPPING_KEY])
        if not isinstance(batch, str | Real | np.bool_):
            raise ValueError(
                f"transform_batch={batch!r} must name one batch; choose from {batches}."
            )
        code = int(codes_of(pd.Series([batch], dtype=object), batches)[0])
        if code < 0:
            raise ValueError(f"transform_batch={batch!r} is not a batch; choose from {batches}.")
        return code


def check_precision(precision: str | None) -> None:
    """Refuse a precision that there is not."""
    if precision not in (None, "32-true", "bf16-mixed"):
        raise ValueError(f"precision={precision!r} must be '32-true' or 'bf16-mixed'.")


def bulk_depths(batch: dict[str, Tensor], scale: float) -> Tensor:
    """Return T and S of bulk profiles: both log10 of the sum of the normalised values."""
    counts_t, cu_seqlens = batch["counts"], batch["cu_seqlens"]
    library_size_t = to_tokens(batch["library_size"], cu_seqlens, len(counts_t))
    source_c = sum_per_cell(normalize_counts(counts_t, library_size_t, scale), cu_seqlens).log10()
    return torch.stack([source_c, source_c], dim=1)
