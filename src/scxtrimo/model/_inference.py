"""What a trained model says about cells and genes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass
from torch import Tensor
from tqdm.auto import tqdm

from .._logging import logger
from ..data import CategoryField, covariate_keys
from ..module import DECODERS, target_values
from ..nn import EncodedCells
from ..nn.ragged import cells_of, drop_first_token
from ..train import MaskingConfig, mask_batch

INFERENCE_BATCH_SIZE = 128
PROGRESS_FROM_CELLS = 20_000
MAX_QUERIES = 2**15
MAX_RESULT_BYTES = 8 * 2**30
DecoderName = Literal["bottleneck", "cross_attention"]


class InferenceMixin(BaseModelClass):
    """Latent representation, gene embeddings, predicted expression, reconstruction error."""

    def _batches(
        self,
        adata: AnnData | MuData | None,
        indices: Sequence[int] | None,
        batch_size: int | None,
        description: str,
    ) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Iterate over ragged batches on the model's device and their places in the result."""
        self._check_if_trained(
            message="The model is not trained: its results are those of random weights. Call "
            "`model.train()` first."
        )
        adata = self._validate_anndata(adata)
        rows = _as_rows(indices, adata.n_obs)
        loader = self._make_data_loader(
            adata, indices=rows, batch_size=batch_size or INFERENCE_BATCH_SIZE
        )
        self.module.eval()
        start = 0
        with tqdm(
            total=len(rows), desc=description, unit="cell", disable=len(rows) < PROGRESS_FROM_CELLS
        ) as bar:
            for batch in loader:
                n_cells = len(batch["cell_ids"])
                place = slice(start, start + n_cells)
                yield place, {key: value.to(self.device) for key, value in batch.items()}
                start += n_cells
                bar.update(n_cells)

    def _encode(self, batch: dict[str, Tensor]) -> EncodedCells:
        inputs = self.module._get_inference_input(batch)
        return self.module.inference(**inputs)["cells"]

    def _n_cells(self, adata: AnnData | MuData | None, indices: Sequence[int] | None) -> int:
        return len(_as_rows(indices, self._validate_anndata(adata).n_obs))

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return the latent representation of cells.

        Every cell is represented from all of its genes that the model reads, none masked. It does
        not depend on the other cells, and not on the batch covariate.

        Parameters
        ----------
        adata
            Data; by default those of the model. Other data are aligned by gene identifier.
        indices
            Rows (or a boolean mask) of the cells; by default all.
        batch_size
            Cells per forward pass.

        Returns
        -------
        float32 array of shape ``(n_cells, n_latent)``, in the order of ``indices``.

        Examples
        --------
        >>> adata.obsm["X_xtrimo"] = model.get_latent_representation()
        """
        shape = (self._n_cells(adata, indices), self.config_.n_latent)
        latent = np.empty(shape, dtype=np.float32)
        for place, batch in self._batches(adata, indices, batch_size, "Embedding"):
            latent[place] = self._encode(batch).latent_cz.float().cpu().numpy()
        return latent

    @torch.inference_mode()
    def get_normalized_expression(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["observed"] = 1.0,
        transform_batch: str | int | None = None,
        decoder: DecoderName = "bottleneck",
        batch_size: int | None = None,
        return_numpy: bool = False,
    ) -> pd.DataFrame | np.ndarray:
        """Return predicted (denoised) expression.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_latent_representation`.
        gene_list
            Genes of the vocabulary, also ones the data lack; by default all.
        library_size
            Total that each cell is scaled to; ``"observed"`` for its own total counts.
        transform_batch
            Predict as if all cells came from this batch; by default from their own.
        decoder
            ``"bottleneck"`` predicts from the latent representation, ``"cross_attention"`` from
            the encoded genes of the cell (imputation).
        return_numpy
            Return an array instead of a data frame.

        Returns
        -------
        Expression of shape ``(n_cells, n_genes)``, float32, as fraction of the cell's counts
        times ``library_size``.

        Raises
        ------
        ValueError
            If a gene, the batch or the decoder is unknown.

        Examples
        --------
        >>> model.get_normalized_expression(gene_list=["CD3D", "MS4A1"]).shape
        (700, 2)
        """
        if library_size != "observed" and not (
            isinstance(library_size, Real) and library_size > 0
        ):
            raise ValueError(f"library_size={library_size!r} must be positive or 'observed'.")
        self.module.decoder(decoder)  # an unknown one raises here
        genes = self._genes(gene_list)
        genes_t = torch.as_tensor(genes, device=self.device)
        batch_code = self._batch_code(transform_batch)
        registered = self._validate_anndata(adata)
        rows = _as_rows(indices, registered.n_obs)
        result = np.empty((len(rows), len(genes)), dtype=np.float32)
        for place, batch in self._batches(adata, indices, batch_size, "Predicting"):
            if batch_code is not None:
                batch["categories"][:, 0] = batch_code
            fraction_cg = self._predict_fractions(self._encode(batch), genes_t, decoder)
            scale = batch["library_size"][:, None] if library_size == "observed" else library_size
            result[place] = (fraction_cg * scale).float().cpu().numpy()
        if return_numpy:
            return result
        names = np.asarray(self.vocabulary.gene_ids)[genes]
        return pd.DataFrame(result, index=registered.obs_names[rows], columns=names)

    def _predict_fractions(
        self, cells: EncodedCells, genes: Tensor, decoder: DecoderName
    ) -> Tensor:
        """Predicted share of a cell's counts, shape ``(n_cells, n_genes)``."""
        net = self.module.net
        if decoder == "bottleneck":
            return net.bottleneck.log_rates(cells, net.gene_embeddings)[:, genes].exp()
        n_cells = cells.latent_cz.shape[0]
        ends = torch.arange(n_cells + 1, device=genes.device, dtype=torch.int32)
        # Queries are independent: some genes at a time, or memory would be cells x genes x width.
        logged = [
            self.module.decoder(decoder)(
                cells, net.gene_embeddings, part.repeat(n_cells), ends * len(part)
            ).view(n_cells, -1)
            for part in genes.split(max(1, MAX_QUERIES // n_cells))
        ]
        return torch.expm1(torch.cat(logged, dim=1).clamp(min=0)) / 1e4

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

    @torch.inference_mode()
    def get_contextual_gene_embeddings(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        gene_list: Sequence[str] | None = None,
        average: bool = True,
        batch_size: int | None = None,
    ) -> pd.DataFrame | np.ndarray:
        """Return gene embeddings in the context of cells: the encoder's output at each gene.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_latent_representation`.
        gene_list
            Genes; by default all.
        average
            Average over the cells that express a gene, instead of one embedding per cell.

        Returns
        -------
        If averaged, a data frame of shape ``(n_genes, n_hidden)``; else a float32 array of shape
        ``(n_cells, n_genes, n_hidden)``. NaN where a gene is not expressed or not among the genes
        the encoder reads (``model.input_genes``).

        Raises
        ------
        ValueError
            If a gene is unknown, or the array would take more than 8 GiB.

        Examples
        --------
        >>> model.get_contextual_gene_embeddings(gene_list=["CD3D"]).shape
        (1, 32)
        """
        genes = self._genes(gene_list)
        names = np.asarray(self.vocabulary.gene_ids)[genes]
        n_cells, n_hidden = self._n_cells(adata, indices), self.config_.n_hidden
        n_bytes = 4 * n_cells * len(genes) * n_hidden
        if not average and n_bytes > MAX_RESULT_BYTES:
            raise ValueError(
                f"{n_cells:,} cells x {len(genes):,} genes x {n_hidden} dimensions would take "
                f"{n_bytes / 2**30:.1f} GiB. Name fewer genes or cells (`gene_list`, `indices`), "
                "or average over cells (`average=True`)."
            )
        place_of_gene = torch.full((len(self.vocabulary),), -1, device=self.device)
        place_of_gene[torch.as_tensor(genes, device=self.device)] = torch.arange(
            len(genes), device=self.device
        )
        sums = torch.zeros(len(genes), n_hidden, dtype=torch.float64, device=self.device)
        counts = torch.zeros(len(genes), dtype=torch.int64, device=self.device)
        per_cell = (
            None if average else np.full((n_cells, len(genes), n_hidden), np.nan, np.float32)
        )
        for place, batch in self._batches(adata, indices, batch_size, "Embedding genes"):
            inputs = self.module._get_inference_input(batch)
            cells = self.module.inference(**inputs)["cells"]
            tokens, _ = drop_first_token(cells.tokens_td, cells.cu_seqlens)
            gene = place_of_gene[inputs["gene_ids"]]
            wanted = gene >= 0
            if per_cell is None:
                sums.index_add_(0, gene[wanted], tokens[wanted].double())
                counts.index_add_(0, gene[wanted], torch.ones_like(gene[wanted]))
            else:
                cell = cells_of(inputs["cu_seqlens"], len(gene))[wanted].cpu().numpy()
                per_cell[place][cell, gene[wanted].cpu().numpy()] = tokens[wanted].cpu().numpy()
        if per_cell is not None:
            return per_cell
        mean = torch.where(counts[:, None] > 0, sums / counts[:, None], torch.nan)
        return pd.DataFrame(mean.float().cpu().numpy(), index=names)

    @torch.inference_mode()
    def get_reconstruction_error(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        mask_rate: float = 0.3,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Hide genes from the encoder, predict them, and compare with what was there.

        Parameters
        ----------
        adata, batch_size
            See :meth:`get_latent_representation`.
        indices
            Cells; by default the validation cells of the model's own data.
        mask_rate
            Fraction of a cell's expressed genes that is hidden. As many unexpressed genes are
            asked for beside them.

        Returns
        -------
        Mean squared error of log-normalised expression (``log1p`` of counts per 10,000) of both
        decoders and of two trivial predictions, over expressed, unexpressed and all masked genes,
        with the number of genes compared.

        Examples
        --------
        >>> list(model.get_reconstruction_error().index)
        ['bottleneck', 'cross_attention', 'gene mean', 'zero']
        """
        if adata is None and indices is None:
            if self.validation_indices is not None and len(self.validation_indices):
                indices = self.validation_indices
            else:
                logger.info(
                    "There are no validation cells: the error is that of all cells, including "
                    "those the model was trained on."
                )
        masking = MaskingConfig(mask_rate, mask_rate, max_targets=2**30)
        net = self.module.net
        errors: dict[str, list[Tensor]] = {}
        expressed: list[Tensor] = []
        for _, batch in self._batches(adata, indices, batch_size, "Reconstructing"):
            batch = mask_batch(batch, masking, self.module.n_genes, self.seed_, epoch=-1)
            cells = self._encode(batch)
            asked, cu_asked = batch["target_gene_ids"], batch["target_cu_seqlens"]
            truth = target_values(batch)
            predictions = {
                name: self.module.decoder(name)(cells, net.gene_embeddings, asked, cu_asked)
                for name in DECODERS
            } | {
                "gene mean": self.module.mean_expression[asked],
                "zero": torch.zeros_like(truth),
            }
            for name, predicted in predictions.items():
                errors.setdefault(name, []).append((predicted.float() - truth).square().cpu())
            expressed.append((batch["target_counts"] > 0).cpu())
        is_expressed = torch.cat(expressed)
        table = {}
        for name, chunks in errors.items():
            error = torch.cat(chunks)
            table[name] = {
                "mse": error.mean().item(),
                "mse_expressed": error[is_expressed].mean().item(),
                "mse_unexpressed": error[~is_expressed].mean().item(),
                "n_genes": len(error),
            }
        return pd.DataFrame.from_dict(table, orient="index")

    def _genes(self, gene_list: Sequence[str] | None) -> np.ndarray:
        if gene_list is None:
            return np.arange(len(self.vocabulary))
        return self.vocabulary.index_of(gene_list)

    def _batch_code(self, batch: Any) -> int | None:
        if batch is None:
            return None
        if REGISTRY_KEYS.BATCH_KEY not in covariate_keys(self.registry):
            raise ValueError(
                f"transform_batch={batch!r}, but the model was set up without `batch_key`."
            )
        state = self.registry["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"]
        batches = list(state[CategoryField.MAPPING_KEY])
        if batch not in batches:
            raise ValueError(f"transform_batch={batch!r} is not a batch; choose from {batches}.")
        return batches.index(batch)


def _as_rows(indices: Sequence[int] | np.ndarray | None, n_cells: int) -> np.ndarray:
    """Return row numbers, from row numbers or a boolean mask."""
    if indices is None:
        return np.arange(n_cells)
    rows = np.asarray(indices)
    if rows.dtype == bool:
        if len(rows) != n_cells:
            raise ValueError(f"indices is a mask of {len(rows)} cells, the data have {n_cells}.")
        return np.flatnonzero(rows)
    rows = rows.astype(np.int64).ravel()
    if len(rows) == 0:
        raise ValueError("indices is empty: name at least one cell.")
    lowest, highest = int(np.min(rows)), int(np.max(rows))
    if lowest < 0 or highest >= n_cells:
        raise ValueError(
            f"indices must lie between 0 and {n_cells - 1}, got {lowest} to {highest}."
        )
    return rows
