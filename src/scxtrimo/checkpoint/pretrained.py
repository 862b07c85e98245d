"""Pretrained networks: found by name, and put into models of other genes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..config import XTrimoGeneConfig, stored_config
from ..data.vocabulary import GeneVocabulary, align_genes
from .hub import download
from .native import read_model

DEFAULT = "scxtrimo-immune"
WEIGHTS = "weights"  # folder of the package with the networks that come with it


def bundled() -> list[str]:
    """Return the names of the networks that come with the package.

    Returns
    -------
    Names that :meth:`~scxtrimo.model.XTrimoGene.from_pretrained` takes without a connection.

    Examples
    --------
    >>> scxtrimo.checkpoint.bundled()
    ['scxtrimo-immune']
    """
    folder = files("scxtrimo") / WEIGHTS
    if not folder.is_dir():
        return []
    return sorted(place.name for place in folder.iterdir() if (place / "model.json").is_file())


def find_pretrained(
    name: str | os.PathLike, revision: str | None = None, token: str | None = None
) -> Path:
    """Return the directory of a network: one that exists, of this package, or of the hub."""
    if Path(name).is_dir():
        return Path(name)
    if str(name) in bundled():
        return Path(str(files("scxtrimo") / WEIGHTS / str(name)))
    if "/" not in str(name):
        raise FileNotFoundError(
            f"{str(name)!r} is neither a directory nor one of {bundled()}. Models on the Hugging "
            "Face hub are called 'organisation/name'."
        )
    return download(str(name), revision, token)


@dataclass(frozen=True)
class PretrainedNetwork:
    """A trained network with genes of its own."""

    name: str
    config: XTrimoGeneConfig
    vocabulary: GeneVocabulary
    gene_aliases: Mapping[str, str]  # other names of its genes
    tensors: Mapping[str, Tensor]
    provenance: Mapping[str, str]

    @classmethod
    def read(cls, name: str | os.PathLike) -> PretrainedNetwork:
        """Read a network that :meth:`XTrimoGene.save` wrote; nothing in its files is executed."""
        directory = find_pretrained(name)
        tensors, metadata = read_model(directory)
        if metadata.get("model_class") != "XTrimoGene":
            raise ValueError(
                f"pretrained={str(name)!r} is of class {metadata.get('model_class')}, not "
                "XTrimoGene."
            )
        state = metadata["registry"]["field_registries"]["X"]["state_registry"]
        return cls(
            Path(name).name,
            stored_config(XTrimoGeneConfig, metadata["config"], directory),
            GeneVocabulary.from_dict(state["vocabulary"]),
            metadata["gene_aliases"],
            tensors,
            metadata["provenance"],
        )

    def places_of(self, vocabulary: GeneVocabulary) -> np.ndarray:
        """Return where the genes of another vocabulary are in this one, -1 for unknown genes."""
        var = pd.DataFrame({"name": vocabulary.gene_names}, index=list(vocabulary.gene_ids))
        return align_genes(self.vocabulary, var, None, self.gene_aliases).column_to_gene

    def load_into(self, net: nn.Module, places: np.ndarray) -> None:
        """Take over all weights but those of covariates; genes that are not known have zeros."""
        at = torch.from_numpy(places)
        is_known, n_genes = at >= 0, len(self.vocabulary)
        own: dict[str, Any] = net.state_dict()
        for name, target in own.items():
            if name.startswith("covariates.") or name == "bottleneck.covariate_loadings":
                continue
            source = self.tensors[f"net.{name}"].to(target.dtype)
            if source.shape == target.shape and source.shape[:1] != (n_genes,):
                own[name] = source
            else:  # a row for every gene
                own[name] = torch.zeros_like(target)
                own[name][is_known] = source[at[is_known]]
        net.load_state_dict(own)
