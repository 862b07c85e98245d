"""The latent representation of cells."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data import _constants
from torch import Tensor

from ..data.columns import get_column
from ..data.fields import CountsField
from ..latent import Panel
from ..nn.pooling import POOLS, pool_tokens
from ..train.initialization import draw_rows
from ..train.latent_space import fit_latent_space, map_batches
from ._results import make_result
from .batches import BatchesMixin, Depth, Precision, check_precision
from .registration import select_modality

Pool = Literal["all", "max", "mean", "s", "t"]


class LatentMixin(BatchesMixin):
    """``get_latent_representation`` and ``map_query``."""

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        pool: Pool | None = None,
        target_depth: str | float | None = None,
        depth: Depth = "cell",
        out: str | os.PathLike | None = None,
        precision: Precision | None = None,
    ) -> np.ndarray:
        """Return the latent representation of cells.

        Every cell is represented from all of its genes that the model reads, none masked, and
        does not depend on the other cells. With a ``batch_key`` the batches the model was trained
        on are integrated; for unseen batches see :meth:`map_query`.

        Parameters
        ----------
        adata
            Data; by default those of the model. Other data are aligned by gene identifier.
        indices
            Rows (or a boolean mask) of the cells; by default all.
        batch_size
            Cells per forward pass.
        pool
            Return encoded tokens pooled in this way instead, see
            :func:`~scxtrimo.nn.pool_tokens`; published models do so by default (``"all"``).
            ``"s"``, ``"t"`` and ``"all"`` need a model that is aware of the read depth.
        target_depth
            Read depth to represent all cells at, in a model that is aware of it: ``"t4"`` for
            :math:`10^4` counts, ``"f2"`` for twice a cell's own total, ``"a1"`` for ten times it,
            or the total counts as a number. By default that of the training cells, or ``"t4"``
            for published checkpoints. With a depth of your choice only predicted components are
            returned, as what was measured has the cell's own depth.
        depth
            ``"bulk"`` for profiles of many cells: counts are scaled to the median total of
            ``adata`` rather than 10,000, and both depth tokens say the same, as published.
        out
            Path of a zarr store to stream the result to, as ``obsm["X_xtrimo"]`` of an AnnData.
        precision
            ``"32-true"`` or ``"bf16-mixed"``, which is several times faster where the device has
            it, and good to about 1%. By default the latter on a GPU that has it, except for
            published checkpoints.

        Returns
        -------
        float32 array of shape ``(n_cells, n_latent)``, in the order of ``indices``.

        Raises
        ------
        ValueError
            If ``pool``, ``target_depth`` or ``depth`` do not fit the model.

        Examples
        --------
        >>> adata.obsm["X_xtrimo"] = model.get_latent_representation()
        """
        n_special = self.module.net.n_special
        if pool is not None and pool not in POOLS:
            raise ValueError(f"pool={pool!r} is unknown; choose one of {list(POOLS)}.")
        check_precision(precision)
        if pool in ("all", "s", "t") and not self.config_.read_depth_aware:
            raise ValueError(
                f"pool={pool!r} needs the depth tokens of a model that is aware of the read "
                "depth; this one has 'max', 'mean' and its own (leave `pool` out)."
            )
        registered, rows = self._rows(adata, indices)
        space = self.module.latent_space if pool is None else None
        if space is not None:
            panel = self._panel(registered)
        # What was measured was measured at the cell's own depth.
        at_other_depth = target_depth is not None or depth == "bulk"
        n_latent = self.config_.n_latent
        if pool is not None or not self.config_.has_bottleneck:
            n_latent = self.config_.n_hidden * (4 if pool in (None, "all") else 1)
        batches = self._batches(adata, indices, batch_size, "Embedding", target_depth, depth)
        latent = make_result(
            (len(rows), n_latent),
            out,
            "obsm/X_xtrimo",
            registered.obs_names[rows],
            rows_per_chunk=self._batch_size(batch_size),
        )
        for place, batch in batches:
            cells = self._encode(batch, precision)
            if space is not None:
                pooled = space(
                    cells.latent_cz.float(),
                    space.measure(batch),
                    panel,
                    self.module.batch_codes(batch),
                    measured_weight=0.0 if at_other_depth else None,
                )
            else:
                pooled = cells.latent_cz if pool is None else pool_tokens(cells, pool, n_special)
            latent[place] = pooled.float().cpu().numpy()
        return latent.finish()

    @torch.inference_mode()
    def map_query(
        self,
        adata: AnnData | MuData,
        batch_key: str | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return the latent representation of unseen batches, on top of the training cells.

        Nothing is trained. What a batch of the query differs in from the training cells is
        estimated cluster by cluster and taken away, so that labels can be transferred between
        neighbours. A cell type that the training cells lack keeps apart only if it is unlike them.
        Batches should have hundreds of cells, as their differences are averages over these. For
        data with a small part of the genes this is the method to use too.

        Parameters
        ----------
        adata
            Other data, aligned by gene identifier.
        batch_key
            Column of ``adata.obs`` with the batches of the query; by default all are one batch.
        batch_size
            Cells per forward pass.

        Returns
        -------
        float32 array of shape ``(n_cells, n_latent)``.

        Raises
        ------
        ValueError
            If the latent representation is not made of components, or there is no such column.

        Examples
        --------
        >>> query = adata[:200].copy()
        >>> query.obsm["X_xtrimo"] = model.map_query(query)
        """
        if self.module.latent_space is None:
            raise ValueError(
                "map_query needs a model with latent_space='components' and a likelihood; use "
                "`get_latent_representation` with this one."
            )
        if batch_key is not None:
            modality = self.registry[_constants._SETUP_ARGS_KEY]["modality"]
            select_modality(adata, modality, [batch_key])  # its column may be that of the MuData
        registered, rows = self._rows(adata, None)
        codes = np.zeros(len(rows), dtype=np.int64)
        if batch_key is not None:
            codes = pd.factorize(get_column(registered.obs, "adata.obs", batch_key))[0]
            if n_missing := int((codes < 0).sum()):
                raise ValueError(
                    f"adata.obs[{batch_key!r}] lacks the batch of {n_missing:,} cells. Name it, "
                    "for instance 'unknown', or leave these cells out."
                )
        vectors, measured, _ = self._vectors(registered, rows, batch_size, "Mapping")
        space = deepcopy(self.module.latent_space).cpu()
        panel = Panel(*(part.cpu() for part in self._panel(registered)))
        return map_batches(space, vectors, measured, panel, torch.from_numpy(codes)).numpy()

    @torch.no_grad()
    def _fit_latent_space(self, rows: np.ndarray) -> None:
        """Fit the latent space to at most 20,000 training cells."""
        if self.module.latent_space is None:
            return
        rows = draw_rows(rows, self.seed_)
        with torch.random.fork_rng(devices=[]):  # data loaders draw from the global state
            vectors, measured, codes = self._vectors(
                None, np.sort(rows), None, "Fitting the latent space"
            )
        # In a copy: if anything fails, what is there stays whole.
        space = deepcopy(self.module.latent_space).cpu()
        panel = space.panel(self._measured_genes(self.adata).cpu())
        components = measured - panel.center_k
        if space.is_fitted:  # then the data may be others, with fewer genes
            missing = torch.eye(len(panel.center_k)) - panel.coverage_kk
            components = components + space.predict(vectors) @ missing
        fit_latent_space(space, vectors, components, codes, self.seed_)
        self.module.latent_space.load_state_dict(space.state_dict())

    def _vectors(
        self, adata: AnnData | None, rows: np.ndarray, batch_size: int | None, description: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return cell vectors, measured components and batches (0 if there are none), on CPU."""
        space = self.module.latent_space
        assert space is not None
        vectors, measured, codes = [], [], []
        for _, batch in self._batches(adata, rows, batch_size, description):
            vectors.append(self._encode(batch).latent_cz.float().cpu())
            measured.append(space.measure(batch).cpu())
            of_batch = self.module.batch_codes(batch)
            of_batch = torch.zeros_like(batch["cell_ids"]) if of_batch is None else of_batch
            codes.append(of_batch.cpu())
        return torch.cat(vectors), torch.cat(measured), torch.cat(codes)

    def _panel(self, adata: AnnData) -> Panel:
        """Return what the genes of the data mean for the components."""
        self._check_latent_space()
        assert self.module.latent_space is not None
        return self.module.latent_space.panel(self._measured_genes(adata))

    def _check_latent_space(self) -> None:
        space = self.module.latent_space
        if space is not None and self.is_trained_ and not space.is_fitted:
            raise ValueError(
                "The latent space was not fitted, as training was interrupted. Call "
                "`model.train()` again, or with `ckpt_path=` to go on."
            )

    def _measured_genes(self, adata: AnnData) -> Tensor:
        """Return which genes of the vocabulary the data have, bool, shape ``(n_genes,)``."""
        manager = self.get_anndata_manager(adata, required=True)
        assert manager is not None
        state = manager.get_state_registry(REGISTRY_KEYS.X_KEY)
        genes = np.asarray(state[CountsField.COLUMN_TO_GENE_KEY])
        measured = torch.zeros(len(self.vocabulary), dtype=torch.bool)
        measured[genes[genes >= 0]] = True
        return measured.to(self.device)
