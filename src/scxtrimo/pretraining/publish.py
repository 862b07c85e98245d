"""A pretrained model as others use it: small, with other names of its genes, and its origin."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch

from .. import __version__
from ..checkpoint.native import write_model
from ..data.gene_table import GeneAliases
from ..model.xtrimogene import XTrimoGene
from .config import PretrainConfig
from .run import HEADER, MODEL


def release(
    run: str | os.PathLike,
    out: str | os.PathLike,
    *,
    gene_aliases: GeneAliases = None,
    min_gene_overlap: float = 0.02,
    terms: str = "CC BY 4.0",
    overwrite: bool = False,
) -> XTrimoGene:
    """Write the model of a complete pretraining run in half precision, for others to start from.

    Parameters
    ----------
    run, out
        Directory of the run (``out`` of its configuration); directory to write to, whose name is
        that of the model.
    gene_aliases, min_gene_overlap
        Other names of its genes, by which they are found in the data of others, and the smallest
        part of them that data must have; see
        :meth:`~scxtrimo.model.XTrimoGene.prepare_query_anndata`.
    terms
        Terms under which the weights may be used.
    overwrite
        Replace a model that is there.

    Returns
    -------
    The model, whose ``provenance`` says what it was trained on, how, and by which version.

    Raises
    ------
    FileNotFoundError
        If the run is not complete.

    Examples
    --------
    >>> data = scxtrimo.DataConfig("cells.zarr")
    >>> record = scxtrimo.RecordConfig(progress_bar=False)
    >>> config = scxtrimo.PretrainConfig(data, out="run", size="tiny", epochs=1, record=record)
    >>> model = scxtrimo.pretrain(config)
    >>> released = scxtrimo.pretraining.release("run", "my-blood")
    >>> scxtrimo.model.XTrimoGene(adata, pretrained="my-blood").size_
    'my-blood'
    """
    run, out = Path(run), Path(out)
    model = XTrimoGene.load(run / MODEL, adata=False)
    config = PretrainConfig.from_yaml(run / "config.yaml")
    header = json.loads((run / HEADER).read_text(encoding="utf-8"))
    recipe = json.dumps(header["config"], sort_keys=True)
    model.provenance_ |= {
        "name": out.name,
        "terms": terms,
        "seed": str(config.seed),
        "scxtrimo": __version__,
        "recipe_sha256": hashlib.sha256(recipe.encode()).hexdigest(),
        "store_sha256": header["store"],
    }
    model._remember_names(gene_aliases, min_gene_overlap)
    own = set(model.vocabulary.gene_ids)
    model.gene_aliases_ = {k: v for k, v in model.gene_aliases_.items() if k not in own}
    tensors = {
        name: tensor.half() if tensor.dtype == torch.float32 else tensor
        for name, tensor in model.module.state_dict().items()
    }
    if wrong := sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all()):
        raise ValueError(f"{wrong} have values that are too large for half precision.")
    metadata = model._metadata() | {"has_adata": False, "obs_names_sha256": None, "history": {}}
    write_model(out, tensors, metadata, overwrite=overwrite)
    return XTrimoGene.load(out, adata=False)
