"""xTrimoGene for AnnData: the class that users call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from anndata import AnnData
from mudata import MuData
from scvi.model._utils import parse_device_args

from .._logging import logger
from ..checkpoint.scfoundation import LICENCE, read_scfoundation, write_scfoundation
from ..data.gene_table import GeneAliases, hash_genes, read_gene_index
from .base import XTrimoGeneBase
from .registration import registry_of_genes


class XTrimoGene(XTrimoGeneBase):
    """Transformer over the expressed genes of a cell :cite:p:`Gong2023`.

    It starts from a network that was trained on human blood and immune cells and comes with the
    package, if that knows the genes of the data, and else from scratch. The latent representation
    consists of principal components of the data, partly as measured and partly as predicted by
    the network.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    size
        ``"auto"``, or one of :data:`scxtrimo.model.SIZES`: ``"tiny"``, ``"small"``, ``"base"``,
        ``"large"``, ``"huge"``.
    config
        All hyper-parameters at once, instead of ``size``.
    registry
        Registry of a saved model, instead of ``adata``.
    pretrained
        Network to start from: name or directory, as for :meth:`from_pretrained`; ``None`` for
        none. By default ``"scxtrimo-immune"``, unless the size or other hyper-parameters are
        given, the data call for a larger network or it knows fewer than 500 of their genes.
    seed
        Seed of weights, split, masks and order of the cells; by default ``scvi.settings.seed``,
        or 0. On a CPU equal seeds give equal models, bit for bit.
    **hyperparameters
        Fields of :class:`~scxtrimo.model.XTrimoGeneConfig` that differ from those of ``size``.

    Examples
    --------
    >>> import scxtrimo
    >>> adata = scxtrimo.datasets.pbmc68k()
    >>> scxtrimo.model.XTrimoGene.setup_anndata(adata)
    >>> model = scxtrimo.model.XTrimoGene(adata, size="tiny")
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> adata.obsm["X_xtrimo"] = model.get_latent_representation()
    >>> adata.obsm["X_xtrimo"].shape
    (700, 32)
    """

    @classmethod
    def from_scfoundation(
        cls,
        checkpoint: str | os.PathLike,
        gene_index: str | os.PathLike | Sequence[str],
        version: Literal["cell", "gene", "rde"] = "cell",
        adata: AnnData | MuData | None = None,
        *,
        layer: str | None = None,
        gene_id_key: str | None = None,
        gene_aliases: GeneAliases = None,
        min_gene_overlap: float | None = None,
        modality: str | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        seed: int = 0,
    ) -> Any:
        """Make a model from a published checkpoint :cite:p:`Hao2024`, which you bring.

        The weights are licensed by their authors for non-commercial research and may not be
        redistributed. Results are those of the published code to within rounding.

        Parameters
        ----------
        checkpoint
            ``models.ckpt``; nothing in it is executed.
        gene_index
            Its genes in their order: symbols, a text file with one per line, or a table with the
            column ``gene_name``.
        version
            ``"cell"`` for cell embeddings, ``"rde"`` for these after training on changed read
            depths, ``"gene"`` for gene embeddings and expression.
        adata
            Raw counts to attach, needed for fine-tuning, with any genes in any order.
        layer, gene_id_key, modality
            See :meth:`setup_anndata`.
        gene_aliases, min_gene_overlap
            See :meth:`prepare_query_anndata`; the model keeps them.
        accelerator, device
            Where to put the model; see :meth:`load`.
        seed
            Seed of a fine-tuning.

        Returns
        -------
        The model, ready for inference; :meth:`train` fine-tunes it with the published objective.

        Raises
        ------
        FileNotFoundError
            If a file does not exist.
        ValueError
            If the checkpoint or the gene index is not as published.

        Examples
        --------
        >>> model = scxtrimo.model.XTrimoGene.from_scfoundation(
        ...     "models.ckpt", gene_index="OS_scRNA_gene_index.19264.tsv", adata=adata
        ... )  # doctest: +SKIP
        >>> adata.obsm["X_scfoundation"] = model.get_latent_representation()  # doctest: +SKIP
        """
        published = read_scfoundation(checkpoint, version)
        genes = read_gene_index(gene_index, published.n_genes)
        setup_args = {
            "layer": layer,
            "batch_key": None,
            "labels_key": None,
            "categorical_covariate_keys": None,
            "gene_id_key": gene_id_key,
            "modality": modality,
        }
        target = parse_device_args(accelerator, device, "torch", validate_single_device=True)[2]
        model = cls(
            registry=registry_of_genes(cls, genes, setup_args), config=published.config, seed=seed
        )
        published.load_into(model.module.net)
        model.size_ = f"scFoundation {version}"
        model.is_trained_ = True
        own = {"source": "scFoundation", "licence": LICENCE}
        model.provenance_ = (published.provenance or own) | {
            "file": published.path.name,
            "sha256": published.sha256,
            "version": version,
            "gene_index_sha256": hash_genes(genes),
        }
        model.to_device(target)
        model.module.eval()
        licence = model.provenance_.get("licence", "Weights written by scxtrimo.")
        logger.info(f"{published.path.name}, version {version!r}. {licence}")
        model._remember_names(gene_aliases, min_gene_overlap)
        if adata is not None:
            if gene_id_key is not None:
                model.prepare_query_anndata(adata, gene_id_key=gene_id_key)  # a wrong one raises
            model._attach(adata)
        return model

    def to_scfoundation(
        self,
        checkpoint: str | os.PathLike,
        gene_index: str | os.PathLike,
        overwrite: bool = False,
    ) -> None:
        """Write a model of the published architecture in the format of the published checkpoints.

        Only :meth:`save` keeps everything.

        Parameters
        ----------
        checkpoint
            File for the weights, as ``version="cell"``.
        gene_index
            File for the genes in their order, with the columns ``gene_name`` and ``index``.
        overwrite
            Replace files that exist.

        Raises
        ------
        FileExistsError
            If a file exists and is not to be replaced.

        Examples
        --------
        >>> published = scxtrimo.model.XTrimoGene(adata, size="published-tiny")
        >>> published.to_scfoundation("mine.ckpt", "genes.tsv")
        >>> same = scxtrimo.model.XTrimoGene.from_scfoundation("mine.ckpt", "genes.tsv")
        """
        there = [str(path) for path in (checkpoint, gene_index) if Path(path).exists()]
        if there and not overwrite:
            raise FileExistsError(f"{', '.join(there)} exist: another name, or `overwrite=True`.")
        write_scfoundation(checkpoint, self.module.net, self.config_, self.provenance)
        genes = pd.Series(range(len(self.vocabulary.gene_ids)), self.vocabulary.gene_ids)
        genes.to_csv(gene_index, sep="\t", index_label="gene_name", header=["index"])
        if licence := self.provenance.get("licence"):
            logger.info(f"{checkpoint}: {licence}")
