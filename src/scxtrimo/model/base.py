"""What a trained model gives: latent representation, expression, genes, attention."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from functools import wraps
from inspect import signature
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeVar

import anndata
import numpy as np
import pandas as pd
import torch
import zarr
from anndata import AnnData
from mudata import MuData
from pydantic import PositiveFloat, PositiveInt
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import _constants
from torch import Tensor
from tqdm.auto import tqdm

from .._logging import logger
from .._validation import check
from ..data.columns import codes_of, get_column
from ..data.counts import as_rows
from ..data.dataset import (
    RaggedDataset,
    covariate_keys,
    prefetch,
    state_of,
    threads_for,
    torch_threads,
)
from ..data.fields import CategoryField, CountsField
from ..data.vocabulary import preview
from ..latent import (
    CALIBRATION_CELLS,
    MASKED_CELLS,
    MIN_HELD_OUT,
    Explained,
    Halves,
    LatentSpace,
    Panel,
    calibrate_baseline,
    calibrate_values,
    draw_rows,
    explained,
    fit_clusters,
    fit_prediction,
    map_batches,
    measured_weights,
    read_counts,
    regress,
    trust_in_components,
)
from ..nn.layers import normalize_counts
from ..nn.masking import Masking, mask_batch, split_counts
from ..nn.performer import PerformerDecoder
from ..nn.ragged import EncodedCells, RaggedBatch, cells_of, sum_per_cell, to_tokens
from ..nn.ranges import OpenInterval
from ..nn.xtrimogene import POOLS, CrossAttentionDecoder, Pool, pool_tokens, target_values
from .depth import TargetDepth
from .registration import select_modality
from .training import TrainedModel

MAX_RESULT_BYTES = 8 * 2**30
GENES_PER_BATCH = 2**17
MAX_HALVED = 2000  # cells whose counts are split in halves
CALIBRATION_MASKS = Masking(max_targets=256)
PROGRESS_SECONDS = 3
DecoderName = Literal["bottleneck", "cross_attention", "performer"]
Depth = Literal["cell", "bulk"]
Precision = Literal["32-true", "bf16-mixed"]


Method = TypeVar("Method", bound=Callable[..., Any])


def keywords_after_indices(former: str = "") -> Callable[[Method], Method]:
    """Take keywords by position for one release, with a warning; ``former`` were the first."""

    def decorate(method: Method) -> Method:
        parameters = signature(method).parameters.values()
        names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        names = sorted(names, key=lambda name: (former.split() + names).index(name))
        n_positional = len(parameters) - len(names)

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if extra := dict(zip(names, args[n_positional:], strict=False)):
                warnings.warn(
                    f"{method.__name__}: give {', '.join(extra)} by name; by position they are "
                    "deprecated.",
                    FutureWarning,
                    stacklevel=2,
                )
            return method(*args[:n_positional], **extra, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


class XTrimoGeneBase(TrainedModel):
    """What :class:`~scxtrimo.model.XTrimoGene` shares with the models derived from it."""

    @keywords_after_indices()
    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        *,
        batch_size: int | None = None,
        pool: Pool | None = None,
        target_depth: str | float | None = None,
        depth: Depth = "cell",
        out: str | os.PathLike | None = None,
        precision: Precision | None = None,
    ) -> np.ndarray:
        """Return the latent representation of cells.

        A cell is represented from all genes that the model reads, and does not depend on other
        cells. With a ``batch_key`` the batches of the training are integrated; for others see
        :meth:`map_query`.

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
            for published checkpoints. Components are then all predicted.
        depth
            ``"bulk"`` for profiles of many cells: counts are scaled to the median total of
            ``adata`` rather than 10,000, and both depth tokens say the same, as published.
        out
            Path of a zarr store to stream the result to, as ``obsm["X_xtrimo"]`` of an AnnData.
        precision
            ``"32-true"``, or ``"bf16-mixed"``, which is faster and good to about 1%: the default
            on a GPU that has it, except for published checkpoints.

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
        if pool is not None and pool not in POOLS:
            raise ValueError(f"pool={pool!r} is unknown; choose one of {list(POOLS)}.")
        check_precision(precision)
        if pool in ("all", "s", "t") and not self.module.net.n_special >= 2:
            raise ValueError(
                f"pool={pool!r} needs the encoded depth tokens of a model that is aware of the "
                "read depth; this one has 'max', 'mean' and its own (leave `pool` out)."
            )
        registered, rows = self._rows(adata, indices)
        space = self.module.latent_space if pool is None else None
        if space is not None:
            panel = self._panel(registered)
        # What was measured was measured at the cell's own depth.
        at_other_depth = target_depth is not None or depth == "bulk"
        n_latent = self.config_.n_latent if space is None else len(space.measured_weight)
        if pool is not None or not self.config_.has_bottleneck:
            n_latent = self.config_.n_hidden * (4 if pool in (None, "all") else 1)

        def represent(batch: RaggedBatch) -> Tensor:
            cells = self._encode(batch, precision)
            if pool is not None:
                return pool_tokens(cells, pool, self.module.net.n_special)
            if space is None:
                return cells.latent_cz
            return space(
                self.module.predictors(cells),
                space.measure(batch),
                panel,
                self.module.batch_codes(batch),
                measured_weight=0.0 if at_other_depth else None,
            )

        batches = self._batches(adata, indices, batch_size, "Embedding", target_depth, depth)
        return collect(
            ((place, represent(batch)) for place, batch in batches),
            (len(rows), n_latent),
            out,
            "obsm/X_xtrimo",
            registered.obs_names[rows],
            rows_per_chunk=self._batch_size(batch_size),
        )

    @torch.inference_mode()
    def map_query(
        self,
        adata: AnnData | MuData,
        batch_key: str | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return the latent representation of unseen batches, on top of the training cells.

        Nothing is trained. What a batch differs in from the training cells is estimated cluster by
        cluster and taken away, so that labels can be transferred between neighbours. Batches
        should have hundreds of cells, as their differences are averages over these.

        Parameters
        ----------
        adata
            Other data, aligned by gene identifier; they may have a small part of the genes.
        batch_key
            Column of ``adata.obs`` with the batches of the query; by default all are one batch.
        batch_size
            Cells per forward pass.

        Returns
        -------
        float32 array of shape ``(n_cells, n_latent)``.

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
        known, measured, _ = self._read_components(registered, rows, batch_size, "Mapping")
        space = deepcopy(self.module.latent_space).cpu()
        panel = Panel(*(part.cpu() for part in self._panel(registered)))
        return map_batches(space, known, measured, panel, torch.from_numpy(codes)).numpy()

    @torch.no_grad()
    def _finish_training(self, rows: np.ndarray, held_out: np.ndarray) -> Explained | None:
        """Fit the latent space to at most 20,000 training cells."""
        if self.module.latent_space is None:
            return None
        rows = draw_rows(rows, self.seed_)
        # In a copy: if anything fails, what is there stays whole.
        space = deepcopy(self.module.latent_space).cpu()
        was_fitted = space.is_fitted
        halves: tuple[Halves, Halves] | None = None
        with torch.random.fork_rng(devices=[]):  # data loaders draw from the global state
            known, measured, codes = self._read_components(
                None, np.sort(rows), None, "Fitting the latent space"
            )
            if not was_fitted and len(held_out) >= MIN_HELD_OUT:
                halves = self._halves(rows, 1), self._halves(held_out)
        panel = space.panel(self._measured_genes(self.adata).cpu())
        components = measured - panel.center_k
        if was_fitted:  # then the data may be others, with fewer genes
            missing = torch.eye(len(panel.center_k)) - panel.coverage_kk
            components = components + space.predict(known) @ missing
        elif space.finds_weights:
            if halves is not None:
                space.set(measured_weight=self._measured_weights(*halves))
            space.measured_weight *= trust_in_components(len(rows))
        fit_prediction(space, known, components, codes, self.pretrained_ is not None)
        fit_clusters(space, known, components, codes, self.seed_)
        self.module.latent_space.load_state_dict(space.state_dict())
        if not was_fitted and self.pretrained_ is not None:
            self._calibrate_decoders(rows)
        if halves is None:
            return None
        explained = self._explained(space, *halves)
        logger.info(
            f"From one half of the counts of held-out cells the representation predicts "
            f"{explained.representation:.2%} of the variance of the other half, "
            f"{space.loadings.shape[1]} principal components {explained.components:.2%}."
        )
        return explained

    def _calibrate_decoders(self, rows: np.ndarray) -> None:
        """Let pretrained decoders predict the level of genes in the training cells."""
        assert self.adata_manager is not None
        rows = np.sort(draw_rows(rows, self.seed_, CALIBRATION_CELLS))
        totals = read_counts(self.adata_manager, rows, self.module.n_genes).sum(0)
        totals_g = torch.from_numpy(np.asarray(totals, dtype=np.float32).ravel()) + 0.5
        batches = self._batches(None, rows, None, "Calibrating")
        vectors = torch.cat([self._encode(batch).latent_cz.float() for _, batch in batches])
        net, rates_g = self.module.net, (totals_g / totals_g.sum()).to(vectors)
        calibrate_baseline(net.bottleneck, net.positions, vectors, rates_g)
        if isinstance(net.imputation, CrossAttentionDecoder):
            rows = np.sort(draw_rows(rows, self.seed_, MASKED_CELLS))
            contexts, values = [], []
            for _, batch in self._batches(None, rows, None, "Calibrating"):
                batch = mask_batch(batch, CALIBRATION_MASKS, self.module.n_genes, self.seed_, 0)
                query = batch["target_gene_ids"], batch["target_cu_seqlens"]
                contexts.append(net.imputation.embed(self._encode(batch), net.positions, *query))
                values.append(target_values(batch))
            calibrate_values(net.imputation.to_value, torch.cat(contexts), torch.cat(values))

    def _measured_weights(self, known: Halves, unseen: Halves) -> Tensor:
        """Find out, with halves of the counts of held-out cells, how far to trust components."""
        assert self.module.latent_space is not None
        n_batches = len(self.module.latent_space.batch_offset)
        is_pretrained = self.pretrained_ is not None
        coefficients, _ = regress(
            known.known[0], known.measured[0], known.batches, n_batches, is_pretrained
        )
        surprises = [
            of_half - told.double() @ coefficients[:, : told.shape[1]].T
            for told, of_half in zip(unseen.known, unseen.measured, strict=True)
        ]
        for batch in unseen.batches.unique():  # which may be shifted as a whole
            of_batch = unseen.batches == batch
            for surprise in surprises:
                surprise[of_batch] -= surprise[of_batch].mean(0)
        first, second = surprises
        return measured_weights(first, second, is_pretrained)

    def _explained(self, space: LatentSpace, known: Halves, unseen: Halves) -> Explained:
        """Return what the representation and the measured components of one half say of another.

        Both are told the batch.
        """
        panel = space.panel()
        told: list[list[np.ndarray]] = [[], [], []]
        for halves in (known, unseen):
            measured = halves.measured[0]
            predicted, surprise = space.compare(halves.known[0], measured, panel)
            batch = halves.batches[:, None] == torch.arange(len(space.batch_offset))
            mixed = predicted + space.measured_weight * surprise
            for way, x in enumerate((mixed, measured, predicted)):
                x = torch.cat([x, batch.to(x) * x.std()], dim=1)
                told[way].append(x.double().numpy())
        return Explained(
            *(
                explained(of_known, known.expression, of_unseen, unseen.expression)
                for of_known, of_unseen in told
            )
        )

    def _halves(self, rows: np.ndarray, n_encoded: int = 2) -> Halves:
        """Split the counts of cells in halves, and return what the model makes of one or both."""
        space = self.module.latent_space
        assert space is not None
        known, measured, codes = [[], []], [[], []], []  # type: ignore[var-annotated]
        expression = []
        rows = draw_rows(rows, self.seed_, MAX_HALVED)
        for _, batch in self._batches(None, rows, None, "Comparing halves"):
            halves = split_counts(batch, self.module.n_genes, self.seed_)
            for half, of_half in enumerate(halves[:n_encoded]):
                known[half].append(self.module.predictors(self._encode(of_half)).cpu())
                measured[half].append(space.measure(of_half).cpu())
            parts = [part.cpu().numpy() for part in space.scaled(halves[1])]
            shape = (len(parts[2]) - 1, self.module.n_genes)
            expression.append(sparse.csr_matrix(tuple(parts), shape=shape))
            of_batch = self.module.batch_codes(batch)
            of_batch = torch.zeros_like(batch["cell_ids"]) if of_batch is None else of_batch
            codes.append(of_batch.cpu())
        return Halves(
            [torch.cat(part) for part in known if part],
            [torch.cat(part) for part in measured if part],
            sparse.vstack(expression, format="csr")[:, (space.inverse_std > 0).cpu().numpy()],
            torch.cat(codes),
        )

    def _read_components(
        self, adata: AnnData | None, rows: np.ndarray, batch_size: int | None, description: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what components are predicted from, these as measured, and batches (or 0)."""
        space = self.module.latent_space
        assert space is not None
        known, measured, codes = [], [], []
        for _, batch in self._batches(adata, rows, batch_size, description):
            known.append(self.module.predictors(self._encode(batch)).cpu())
            measured.append(space.measure(batch).cpu())
            of_batch = self.module.batch_codes(batch)
            of_batch = torch.zeros_like(batch["cell_ids"]) if of_batch is None else of_batch
            codes.append(of_batch.cpu())
        return torch.cat(known), torch.cat(measured), torch.cat(codes)

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
        manager = self._manager_of(adata)
        state = state_of(manager, REGISTRY_KEYS.X_KEY)
        genes = np.asarray(state[CountsField.COLUMN_TO_GENE_KEY])
        measured = torch.zeros(self.module.n_genes, dtype=torch.bool)
        measured[genes[genes >= 0]] = True
        return measured.to(self.device)

    @keywords_after_indices("gene_list library_size transform_batch")
    @torch.inference_mode()
    def get_normalized_expression(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        *,
        transform_batch: str | int | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["observed"] = 1.0,
        decoder: DecoderName | None = None,
        batch_size: int | None = None,
        return_numpy: bool = False,
        log1p: bool = False,
        target_depth: str | float | None = None,
        depth: Depth = "cell",
        out: str | os.PathLike | None = None,
        precision: Precision | None = None,
    ) -> pd.DataFrame | np.ndarray:
        """Return predicted (denoised) expression.

        Parameters
        ----------
        adata, indices, batch_size, target_depth, depth, precision
            See :meth:`get_latent_representation`.
        gene_list
            Genes of the vocabulary, also ones the data lack; by default all.
        library_size
            Total that each cell is scaled to; ``"observed"`` for its own total counts.
        transform_batch
            Predict as if all cells came from this batch; by default from their own.
        decoder
            ``"bottleneck"``, the default where there is one, predicts from the latent
            representation, ``"cross_attention"`` or ``"performer"`` from the encoded genes.
        return_numpy
            Return an array instead of a data frame.
        log1p
            Return ``log1p`` of counts per 10,000 (bulk: per median total of the data), as the
            imputation decoders predict it: values may be negative.
        out
            Path of a zarr store to stream the result to, as ``X`` of an AnnData.

        Returns
        -------
        Expression of shape ``(n_cells, n_genes)``, float32, as fraction of the cell's counts
        times ``library_size``, or as ``log1p`` says.

        Examples
        --------
        >>> model.get_normalized_expression(gene_list=["CD3D", "MS4A1"]).shape
        (700, 2)
        """
        if not (isinstance(library_size, str) and library_size == "observed"):
            if not isinstance(library_size, Real):
                raise ValueError(
                    f"library_size={library_size!r} must be one positive number or 'observed'."
                )
            library_size = check("library_size", library_size, PositiveFloat)
        if log1p and library_size != 1.0:
            raise ValueError("log1p=True is on a scale of its own: leave `library_size` out.")
        check_precision(precision)
        decoder_name = self._decoder(decoder)
        genes = self._genes(gene_list)
        genes_t = torch.as_tensor(genes, device=self.device)
        names = np.asarray(self.vocabulary.gene_ids)[genes]
        if transform_batch is not None and decoder_name != "bottleneck":
            raise ValueError(
                f"transform_batch={transform_batch!r} needs the bottleneck decoder: no other is "
                "conditioned on the batch."
            )
        batch_code = self._batch_code(transform_batch)
        registered, rows = self._rows(adata, indices)
        obs_names = registered.obs_names[rows]

        def predict(batch: RaggedBatch) -> Tensor:
            if batch_code is not None:
                batch["categories"][:, 0] = batch_code
            predicted = self._predict(self._encode(batch, precision), genes_t, decoder_name)
            if log1p:
                return predicted
            total = batch["library_size"][:, None] if library_size == "observed" else library_size
            return torch.expm1(predicted.clamp(min=0)) / batch.get("scale", 1e4) * total

        batches = self._batches(adata, indices, batch_size, "Predicting", target_depth, depth)
        predicted = collect(
            ((place, predict(batch)) for place, batch in batches),
            (len(rows), len(genes)),
            out,
            "X",
            obs_names,
            names,
            self._batch_size(batch_size),
        )
        if return_numpy or out is not None:
            return predicted
        return pd.DataFrame(predicted, index=obs_names, columns=names)

    def _predict(self, cells: EncodedCells, genes: Tensor, name: str) -> Tensor:
        """Predicted log-normalised expression, float32, shape ``(n_cells, n_genes)``."""
        decoder = self.module.net.decoders[name]
        n_cells = cells.latent_cz.shape[0]
        if name == "bottleneck":
            rates = self.module.net.bottleneck.log_rates(cells, self.module.net.positions)
            return torch.log1p(1e4 * rates[:, genes].exp())
        n_at_a_time = decoder.max_queries // n_cells if decoder.max_queries else len(genes)
        ends = torch.arange(n_cells + 1, device=genes.device, dtype=torch.int32)
        parts = [
            decoder(cells, self.module.net.positions, part.repeat(n_cells), ends * len(part))
            for part in genes.split(max(1, n_at_a_time))
        ]
        return torch.cat([part.float().view(n_cells, -1) for part in parts], dim=1)

    def denoise(
        self,
        adata: AnnData | MuData | None = None,
        target_depth: str | float | None = None,
        layer_added: str = "denoised",
        decoder: DecoderName | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Write predicted expression to a layer, at another read depth if the model knows depths.

        A layer of more than 8 GiB is refused; stream it with :meth:`get_normalized_expression`.

        Parameters
        ----------
        adata, batch_size
            See :meth:`get_latent_representation`.
        target_depth
            Read depth to predict, for instance ``"f10"`` for ten times the counts of the cell; see
            :meth:`get_latent_representation`.
        layer_added
            Layer to write: ``log1p`` of counts per 10,000, float32, not negative. Genes the model
            does not know are NaN.
        decoder
            See :meth:`get_normalized_expression`. By default the imputation decoder in a model
            that is aware of the read depth, else the bottleneck decoder.

        Examples
        --------
        >>> model.denoise(adata)
        >>> adata.layers["denoised"].shape == adata.shape
        True
        """
        registered, rows = self._rows(adata, None)
        manager = self._manager_of(registered)
        if manager.data_registry[REGISTRY_KEYS.X_KEY].get("attr_key") == layer_added:
            raise ValueError(f"layer_added={layer_added!r} holds the counts; choose another name.")
        genes = np.asarray(state_of(manager, REGISTRY_KEYS.X_KEY)[CountsField.COLUMN_TO_GENE_KEY])
        known = np.flatnonzero(genes >= 0)
        if decoder is None and self.config_.read_depth_aware:
            decoder = list(self.module.net.decoders)[-1]  # the imputation decoder, if there is one
        layer = collect((), registered.shape, None, "X", registered.obs_names)
        layer[:, genes < 0] = np.nan
        predicted = self.get_normalized_expression(
            adata,
            gene_list=np.asarray(self.vocabulary.gene_ids)[genes[known]].tolist(),
            decoder=decoder,
            batch_size=batch_size,
            return_numpy=True,
            log1p=True,
            target_depth=target_depth,
        )
        layer[:, known] = np.maximum(predicted, 0, out=predicted)
        registered.layers[layer_added] = layer

    def get_gene_embeddings(self, gene_list: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the gene embeddings of the vocabulary, the same for all cells.

        Parameters
        ----------
        gene_list
            Genes; by default all.

        Returns
        -------
        Data frame of shape ``(n_genes, n_hidden)``, genes as index.

        Examples
        --------
        >>> model.get_gene_embeddings(["CD3D", "CD3E", "MS4A1"]).T.corr().shape
        (3, 3)
        """
        genes = self._genes(gene_list)
        weights = self.module.net.gene_embeddings.detach().float().cpu().numpy()[genes]
        return pd.DataFrame(weights, index=np.asarray(self.vocabulary.gene_ids)[genes])

    @keywords_after_indices()
    @torch.inference_mode()
    def get_contextual_gene_embeddings(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        *,
        gene_list: Sequence[str] | None = None,
        average: bool = True,
        batch_size: int | None = None,
        source: Literal["encoder", "decoder"] | None = None,
        target_depth: str | float | None = None,
        depth: Depth = "cell",
        out: str | os.PathLike | None = None,
    ) -> pd.DataFrame | np.ndarray:
        """Return gene embeddings in the context of cells.

        Parameters
        ----------
        adata, indices, batch_size, target_depth, depth
            See :meth:`get_latent_representation`.
        gene_list
            Genes; by default all.
        average
            Average over the cells, instead of one embedding per cell.
        source
            ``"encoder"``: the encoder's output at the genes a cell expresses. ``"decoder"``: the
            output of the imputation decoder at all genes: the published gene embedding, and the
            default, of a Performer and with inducing tokens, whose encoder has none.
        out
            Path of a zarr store to stream the embeddings of single cells to, as
            ``obsm["gene_embeddings"]`` of an AnnData; its ``uns["genes"]`` names the genes.

        Returns
        -------
        If averaged, a data frame of shape ``(n_genes, n_hidden)``; else a float32 array of shape
        ``(n_cells, n_genes, n_hidden)``. From a decoder it is ``n_decoder_hidden`` wide. From the
        encoder, NaN where a gene is not expressed or not among those it reads
        (``model.input_genes``).

        Examples
        --------
        >>> model.get_contextual_gene_embeddings(gene_list=["CD3D"]).shape
        (1, 32)
        """
        config = self.config_
        at_all_genes = isinstance(self.module.net.imputation, PerformerDecoder)
        choices = ["decoder"] if config.has_imputation else []
        if config.n_inducing is None:
            choices.insert(0 if not at_all_genes else 1, "encoder")
        if not choices:
            self._check_context_decoder("get_contextual_gene_embeddings")
        source = source or choices[0]  # type: ignore[assignment]
        if source not in choices:
            raise ValueError(f"source={source!r}: this model has {' and '.join(choices)} only.")
        if average and out is not None:
            raise ValueError("out= is for embeddings of single cells: `average=False`.")
        asked = self._genes(gene_list)
        names = np.asarray(self.vocabulary.gene_ids)[asked]
        genes, place_of_asked = np.unique(asked, return_inverse=True)
        registered, rows = self._rows(adata, indices)
        n_hidden = config.n_decoder_hidden if source == "decoder" else config.n_hidden
        if batch_size is None:
            batch_size = int(np.clip(GENES_PER_BATCH // len(genes), 1, self._batch_size(None)))
        batches = self._batches(adata, indices, batch_size, "Embedding genes", target_depth, depth)
        embed = self._decoded_genes if source == "decoder" else self._encoded_genes
        parts = ((place, embed(batch, genes)) for place, batch in batches)
        if average:
            mean = _mean(parts, len(genes), n_hidden)
            return pd.DataFrame(mean[place_of_asked], index=names)

        def of_cells(place: slice, cell: Tensor, gene: Tensor, embeddings: Tensor) -> Tensor:
            chunk = torch.full((place.stop - place.start, len(genes), n_hidden), torch.nan)
            chunk[cell.cpu(), gene.cpu()] = embeddings.float().cpu()
            return chunk[:, place_of_asked]

        return collect(
            ((place, of_cells(place, *part)) for place, part in parts),
            (len(rows), len(asked), n_hidden),
            out,
            "obsm/gene_embeddings",
            registered.obs_names[rows],
            rows_per_chunk=batch_size,
            uns={"genes": names},
        )

    def _encoded_genes(
        self, batch: RaggedBatch, genes: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return cell, position in ``genes`` and embedding of every gene that is expressed."""
        cells = self._encode(batch)
        gene = self._places_among(genes)[cells.gene_ids_t]
        wanted = gene >= 0
        cell = cells_of(cells.cu_seqlens, len(gene))
        return cell[wanted], gene[wanted], cells.tokens_td[wanted]

    def _decoded_genes(
        self, batch: RaggedBatch, genes: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return cell, position in ``genes`` and embedding of every gene."""
        cells = self._encode(batch)
        n_cells, n_genes = len(batch["cell_ids"]), len(genes)
        wanted = torch.as_tensor(genes, device=self.device)
        ends = n_genes * torch.arange(n_cells + 1, device=self.device, dtype=torch.int32)
        decoder: Any = self.module.net.imputation
        embedded = decoder.embed(cells, self.module.net.positions, wanted.repeat(n_cells), ends)
        gene = torch.arange(n_genes, device=self.device).repeat(n_cells)
        return (
            cells_of(ends, len(gene)),
            gene,
            torch.cat([*embedded]) if isinstance(decoder, PerformerDecoder) else embedded,
        )

    def _check_context_decoder(self, method: str) -> None:
        """Make sure that there is a decoder to tell what a cell means for its genes."""
        if not self.config_.has_imputation:
            raise ValueError(
                f"{method} of a model with inducing tokens needs an imputation decoder: make it "
                "with another `objective`, or with `n_inducing=None`."
            )

    @keywords_after_indices()
    def get_reconstruction_error(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        *,
        mask_rate: float = 0.3,
        batch_size: int | None = None,
        hidden: Literal["genes", "counts"] = "genes",
    ) -> pd.DataFrame:
        """Hide genes or counts from the encoder, predict them, and compare with what was there.

        Parameters
        ----------
        adata, batch_size
            See :meth:`get_latent_representation`.
        indices
            Cells; by default the validation cells of the model's own data.
        mask_rate
            Fraction of the expressed genes that is hidden, with as many unexpressed ones.
        hidden
            ``"genes"``, or ``"counts"``: the counts of the validation cells of the model's own
            data are dealt out to two halves, molecule by molecule, and the scaled expression in
            one half is predicted from the other by a linear map fitted to training cells.

        Returns
        -------
        Mean squared error of log-normalised expression (``log1p`` of counts per 10,000) of all
        decoders and two trivial predictions, over expressed, unexpressed and all masked genes.
        With ``hidden="counts"``, the part of the variance that is predicted from the latent
        representation, and from as many principal components: whether the network was worth it,
        without any labels.

        Examples
        --------
        >>> list(model.get_reconstruction_error().index)
        ['bottleneck', 'cross_attention', 'gene mean', 'zero']
        """
        if hidden not in ("genes", "counts"):
            raise ValueError(f"hidden={hidden!r} must be 'genes' or 'counts'.")
        if hidden == "counts":
            return self._split_half_table(adata is None and indices is None)
        rows = self._held_out_rows(adata, indices)
        predictions = self._predict_hidden(adata, rows, mask_rate, batch_size)
        measured = predictions.pop("measured")
        is_expressed = measured > 0
        table = {}
        for name in (*list(predictions)[2:], "zero"):
            error = (predictions.get(name, torch.zeros(1)) - measured).square()
            table[name] = {
                "mse": error.mean().item(),
                "mse_expressed": error[is_expressed].mean().item(),
                "mse_unexpressed": error[~is_expressed].mean().item(),
                "n_genes": len(error),
            }
        return pd.DataFrame.from_dict(table, orient="index")

    @torch.no_grad()
    def _split_half_table(self, of_own_cells: bool) -> pd.DataFrame:
        """Return the part of the variance of a half that is predicted, by method."""
        space, trained, held_out = (
            self.module.latent_space,
            self.train_indices,
            self.validation_indices,
        )
        if space is None or not of_own_cells or trained is None or held_out is None:
            raise ValueError(
                "hidden='counts' compares the validation cells of the model's own data, and needs "
                "latent_space='components': leave `adata` and `indices` out."
            )
        if len(held_out) < MIN_HELD_OUT:
            raise ValueError(
                f"hidden='counts' needs {MIN_HELD_OUT} validation cells, there are "
                f"{len(held_out)}: lower `train_size` in training."
            )
        space = deepcopy(space).cpu()
        scores = self._explained(space, self._halves(trained, 1), self._halves(held_out, 1))
        return pd.DataFrame(
            {"explained": scores[:2], "n_cells": len(held_out)},
            ["latent representation", f"{space.loadings.shape[1]} principal components"],
        )

    @keywords_after_indices()
    @torch.inference_mode()
    def get_masked_predictions(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        *,
        mask_rate: float = 0.3,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Hide genes from the encoder and return what is predicted in their place.

        Parameters
        ----------
        adata, indices, mask_rate, batch_size
            See :meth:`get_reconstruction_error`, which is made from these predictions.

        Returns
        -------
        Data frame with a row for every masked gene of every cell: ``cell`` (its name), ``gene``,
        ``measured`` log-normalised expression, what each decoder predicts, and ``gene mean``, that
        of the training cells, where it is known.

        Examples
        --------
        >>> list(model.get_masked_predictions(indices=[0, 1]))
        ['cell', 'gene', 'measured', 'bottleneck', 'cross_attention', 'gene mean']
        """
        rows = self._held_out_rows(adata, indices)
        registered, numbers = self._rows(adata, rows)
        predictions = self._predict_hidden(adata, rows, mask_rate, batch_size)
        columns = {name: values.numpy() for name, values in predictions.items()}
        columns["cell"] = np.asarray(registered.obs_names[numbers])[columns["cell"]]
        columns["gene"] = np.asarray(self.vocabulary.gene_ids)[columns["gene"]]
        return pd.DataFrame(columns)

    @torch.inference_mode()
    def _predict_hidden(
        self,
        adata: AnnData | MuData | None,
        rows: Sequence[int] | np.ndarray | None,
        mask_rate: float,
        batch_size: int | None,
    ) -> dict[str, Tensor]:
        """Return numbers of cells and genes that were hidden, measured values and predictions."""
        mask_rate = check("mask_rate", mask_rate, OpenInterval)
        masking = Masking(mask_rate, mask_rate, max_targets=None)
        target, net = "f1" if self.config_.read_depth_aware else None, self.module.net
        parts: dict[str, list[Tensor]] = {}
        batches = self._batches(adata, rows, batch_size, "Predicting hidden genes", target)
        for place, batch in batches:
            batch = mask_batch(batch, masking, self.module.n_genes, self.seed_, epoch=-1)
            encoded = self._encode(batch)
            genes, cu_genes = batch["target_gene_ids"], batch["target_cu_seqlens"]
            cells = place.start + cells_of(cu_genes, len(genes))
            values = {"cell": cells, "gene": genes, "measured": target_values(batch)}
            for name, decoder in net.decoders.items():
                values[name] = decoder(encoded, net.positions, genes, cu_genes).float()
            if self.module.mean_expression.any():  # published weights come without
                values["gene mean"] = self.module.mean_expression[genes]
            for name, value in values.items():
                parts.setdefault(name, []).append(value.cpu())
        return {name: torch.cat(chunks) for name, chunks in parts.items()}

    def _held_out_rows(
        self, adata: AnnData | MuData | None, indices: Sequence[int] | None
    ) -> Sequence[int] | np.ndarray | None:
        """Return the rows asked for, the validation cells of the model's own data by default."""
        if adata is not None or indices is not None:
            return indices
        if self.validation_indices is not None and len(self.validation_indices):
            return self.validation_indices
        if self.validation_indices_ is not None and len(self.validation_indices_):
            logger.warning(
                "The present data have none of the cells that were held out from training: all "
                "cells are taken, including those the model was trained on."
            )
        else:
            logger.info(
                "There are no validation cells: all cells are taken, including those the model "
                "was trained on."
            )
        return None

    @keywords_after_indices()
    @torch.inference_mode()
    def get_attention(
        self,
        gene_list: Sequence[str],
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        *,
        layer: int = -1,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Return how much the encoder attends from gene to gene.

        This is no causal or regulatory relation: another training finds other weights that predict
        as well.

        Parameters
        ----------
        gene_list
            Genes, best ones that the encoder reads (``model.input_genes``).
        adata, indices, batch_size
            See :meth:`get_latent_representation`.
        layer
            Layer of the encoder, from 0, or, with inducing tokens, of the imputation decoder; -1
            is the last one.

        Returns
        -------
        Data frame of shape ``(n_genes, n_genes)``: attention from the gene of the row to that of
        the column, averaged over heads and cells in which both are read; NaN if there is none. In
        a cell the attention of a gene to all tokens, special ones included, sums to 1. With
        inducing tokens it is that of the decoder to the tokens times that of these to the genes.

        Examples
        --------
        >>> model.get_attention(["CD3D", "CD3E", "NKG7"]).round(2).shape
        (3, 3)
        """
        config, part = self.config_, "encoder"
        n_layers = config.n_layers
        if config.n_inducing is not None:
            part, n_layers = "decoder", config.n_decoder_layers
            self._check_context_decoder("get_attention")
        if not -n_layers <= layer < n_layers:
            raise ValueError(
                f"layer={layer} is not in the {part}, which has the layers 0 to {n_layers - 1}; "
                "-1 is the last one."
            )
        asked = self._genes(gene_list)
        genes, place_of_asked = np.unique(asked, return_inverse=True)
        names = np.asarray(self.vocabulary.gene_ids)
        unread = genes[~self.module.is_read.cpu().numpy()[genes]]
        if len(unread):
            logger.info(
                f"The encoder does not read {len(unread)} of {len(genes)} genes: "
                f"{preview(names[unread])}. Their attention is NaN; see `model.input_genes`."
            )
        places = self._places_among(genes)
        is_asked = places[: self.module.n_genes] >= 0
        sums = np.zeros((len(genes), len(genes)))
        n_cells = np.zeros((len(genes), len(genes)), dtype=np.int64)
        for _, batch in self._batches(adata, indices, batch_size, "Reading attention"):
            for ids, weights in self.module.gene_attention(batch, is_asked, layer):
                at = np.ix_(*2 * (places[ids].cpu().numpy(),))
                sums[at] += weights.cpu().numpy()
                n_cells[at] += 1
        mean = np.divide(sums, n_cells, out=np.full_like(sums, np.nan), where=n_cells > 0)
        mean = mean[np.ix_(place_of_asked, place_of_asked)].astype(np.float32)
        return pd.DataFrame(mean, index=names[asked], columns=names[asked])

    def _batches(
        self,
        adata: AnnData | MuData | None,
        indices: Sequence[int] | np.ndarray | None,
        batch_size: int | None,
        description: str,
        target_depth: str | float | None = None,
        depth: Depth = "cell",
    ) -> Iterator[tuple[slice, RaggedBatch]]:
        """Check all arguments, then iterate over batches on the device and where they belong."""
        self._check_if_trained(
            message="The model is not trained: its results are those of random weights. Call "
            "`model.train()` first."
        )
        target = self._target_depth(target_depth, depth)
        adata = self._validate_anndata(adata)
        rows = as_rows(indices, adata.n_obs)
        scale = None
        if depth == "bulk":
            manager = self._manager_of(adata)
            scale = float(np.median(RaggedDataset(manager).library_sizes()))
        on_gpu = self.device.type == "cuda"  # elsewhere memory is not pinned
        loader = self._make_data_loader(
            adata, indices=rows, batch_size=self._batch_size(batch_size), pin_memory=on_gpu
        )

        def iterate() -> Iterator[tuple[slice, RaggedBatch]]:
            self.module.eval()
            start = 0
            with (
                torch_threads(threads_for(self.config_.n_hidden)),
                tqdm(
                    total=len(rows),
                    desc=description,
                    unit="cell",
                    delay=PROGRESS_SECONDS,
                    disable=not self._shows_progress,
                ) as bar,
            ):
                for loaded in prefetch(loader) if on_gpu else loader:
                    batch: Any = {
                        key: value.to(self.device, non_blocking=on_gpu)
                        for key, value in loaded.items()
                    }
                    if scale is not None:
                        batch |= {"scale": scale, "depths": bulk_depths(batch, scale)}
                    elif target is not None:
                        batch["depths"] = target.tokens(batch["library_size"])
                    n_cells = len(batch["cell_ids"])
                    yield slice(start, start + n_cells), batch
                    start += n_cells
                    bar.update(n_cells)

        return iterate()

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

    def _batch_size(self, batch_size: int | None) -> int:
        if batch_size is None:
            return int(np.clip(128 * 128 // self.config_.n_hidden, 8, 128))
        return check("batch_size", batch_size, PositiveInt)

    def _encode(self, batch: RaggedBatch, precision: Precision | None = None) -> EncodedCells:
        """Encode, by default in bfloat16 where models are trained in it; not published weights."""
        if precision is None and self.device.type == "cuda" and self.config_.has_bottleneck:
            has_it = torch.cuda.get_device_capability(self.device) >= (8, 0)
            precision = "bf16-mixed" if has_it else "32-true"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            return self.module.encode(batch)

    def _rows(
        self, adata: AnnData | MuData | None, indices: Sequence[int] | np.ndarray | None
    ) -> tuple[AnnData, np.ndarray]:
        """Return the registered data and the row numbers asked for."""
        registered = self._validate_anndata(adata)
        return registered, as_rows(indices, registered.n_obs)

    def _decoder(self, name: str | None) -> str:
        """Return the name of a decoder; by default the first."""
        known = list(self.module.net.decoders)
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
        """Return for every gene where it is among ``genes``, which are distinct, or -1."""
        # Two depth tokens follow the genes; -1, the cell token, finds the last entry.
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


def bulk_depths(batch: RaggedBatch, scale: float) -> Tensor:
    """Return T and S of bulk profiles: both log10 of the sum of the normalised values."""
    counts_t, cu_seqlens = batch["counts"], batch["cu_seqlens"]
    library_size_t = to_tokens(batch["library_size"], cu_seqlens, len(counts_t))
    source_c = sum_per_cell(normalize_counts(counts_t, library_size_t, scale), cu_seqlens).log10()
    return torch.stack([source_c, source_c], dim=1)


def _mean(
    parts: Iterator[tuple[slice, tuple[Tensor, Tensor, Tensor]]], n_genes: int, n_hidden: int
) -> np.ndarray:
    """Average embeddings over cells; NaN for a gene that no cell has."""
    sums = torch.zeros(n_genes, n_hidden, dtype=torch.float64)
    counts = torch.zeros(n_genes, dtype=torch.int64)
    for _, (_, gene, embeddings) in parts:
        gene = gene.cpu()
        sums.index_add_(0, gene, embeddings.cpu().double())
        counts.index_add_(0, gene, torch.ones_like(gene))
    mean = torch.where(counts[:, None] > 0, sums / counts[:, None], torch.nan)
    return mean.float().numpy()


def collect(
    parts: Iterable[tuple[slice, Tensor]],
    shape: tuple[int, ...],
    out: str | os.PathLike | None,
    place: str,
    obs_names: pd.Index,
    var_names: np.ndarray | None = None,
    rows_per_chunk: int = 128,
    uns: dict[str, np.ndarray] | None = None,
) -> Any:
    """Return results as one float32 array: in memory, or at ``place`` in a store of an AnnData."""
    if out is None:
        n_bytes = 4 * int(np.prod(shape))
        if n_bytes > MAX_RESULT_BYTES:
            raise ValueError(
                f"The result of shape {shape} would take {n_bytes / 2**30:.1f} GiB. Name fewer "
                'genes or cells (`gene_list`, `indices`), or stream it to disk: `out="out.zarr"`.'
            )
        return _fill(np.empty(shape, dtype=np.float32), parts)
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists. Choose another path or remove it first.")
    partial = out.with_name(out.name + ".partial")
    group = zarr.open_group(str(partial), mode="w", zarr_format=2)
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    var = pd.DataFrame(index=pd.Index([] if var_names is None else var_names, dtype=object))
    tables = {"obs": pd.DataFrame(index=obs_names), "var": var}
    maps: dict[str, dict] = dict.fromkeys(("obsm", "varm", "obsp", "varp", "layers"), {})
    texts = {key: np.asarray(value, dtype=object) for key, value in (uns or {}).items()}
    for name, element in (tables | maps | {"uns": texts}).items():
        anndata.io.write_elem(group, name, element)
    array = group.create_array(
        place,
        shape=shape,
        chunks=(min(rows_per_chunk, shape[0]), *shape[1:]),
        dtype="float32",
        fill_value=np.nan,
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    _fill(array, parts)
    os.replace(partial, out)  # it gets its name only now that it is complete
    return zarr.open_group(str(out), mode="r")[place]


def _fill(array: Any, parts: Iterable[tuple[slice, Tensor]]) -> Any:
    for rows, values in parts:
        array[rows] = values.float().cpu().numpy()
    return array
