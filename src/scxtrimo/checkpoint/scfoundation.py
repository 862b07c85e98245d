"""Reading the published checkpoints of xTrimoGene (scFoundation), and writing their format.

The weights may not be redistributed, so users provide the file. Reading executes none of it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import replacing
from ..config import PUBLISHED_FIELDS, XTrimoGeneConfig
from ..nn.xtrimogene import XTrimoGeneNet

LICENCE = (
    "The weights of the published checkpoints are licensed by their authors for non-commercial "
    "research; they may not be redistributed, nor may models fine-tuned from them without asking."
)

# Published names of sizes, and ours.
SIZES = {"bin_num": "n_bins", "bin_alpha": "bin_alpha"}
ENCODER = {
    "hidden_dim": "n_hidden",
    "depth": "n_layers",
    "heads": "n_heads",
    "norm_first": "norm_first",
}
DECODER = {
    "hidden_dim": "n_decoder_hidden",
    "depth": "n_decoder_layers",
    "heads": "n_decoder_heads",
    "dim_head": "decoder_head_width",
}
PARTS = {"encoder": ("transformer", ENCODER), "decoder": ("performer", DECODER)}

# Our names of modules and tensors, and the published ones of tensors: * is the number of a layer,
# ? is q, k and v, and {} is weight or bias.
NAMES = {
    "embedding.gene": "pos_emb.{}",
    "embedding.value.bins": "token_emb.emb.{}",
    "embedding.value.to_bins": "token_emb.mlp.{}",
    "embedding.value.mix_bins": "token_emb.mlp2.{}",
    "encoder.layers.*.attention.qkv": "encoder.transformer_encoder.*.self_attn.in_proj_{}",
    "encoder.layers.*.attention.out": "encoder.transformer_encoder.*.self_attn.out_proj.{}",
    "encoder.layers.*.feed_forward.inner": "encoder.transformer_encoder.*.linear1.{}",
    "encoder.layers.*.feed_forward.outer": "encoder.transformer_encoder.*.linear2.{}",
    "encoder.layers.*.attention_norm": "encoder.transformer_encoder.*.norm1.{}",
    "encoder.layers.*.feed_forward_norm": "encoder.transformer_encoder.*.norm2.{}",
    "encoder.norm": "encoder.norm.{}",
    "imputation.mask": "token_emb.emb_mask.weight",
    "imputation.to_hidden": "decoder_embed.{}",
    "imputation.performer.norm": "decoder.norm.{}",
    "imputation.norm": "norm.{}",
    "imputation.to_value": "to_final.{}",
}
PERFORMER_LAYER = {
    "attention.qkv": "0.fn.to_?.{}",
    "attention.features": "0.fn.fast_attention.projection_matrix",
    "attention.out": "0.fn.to_out.{}",
    "feed_forward.inner": "1.fn.fn.w1.{}",
    "feed_forward.outer": "1.fn.fn.w2.{}",
    "attention_norm": "0.norm.{}",
    "feed_forward_norm": "1.norm.{}",
}
for _ours, _theirs in PERFORMER_LAYER.items():
    NAMES[f"imputation.performer.layers.*.{_ours}"] = f"decoder.performer.net.layers.*.{_theirs}"

NOT_NEEDED = {"token_emb.emb_pad.weight", "decoder.performer.calls_since_last_redraw"}
"""Tensors that are not used: the embedding of padding and a counter of feature redraws."""


@dataclass(frozen=True)
class PublishedCheckpoint:
    """Content of a published checkpoint.

    Parameters
    ----------
    path, sha256, version
        The file, its hash, and which of its models this is.
    n_genes, config
        Size of the vocabulary, and the configuration as in scxtrimo.
    tensors, provenance
        Weights under their published names; their source, see :func:`write_scfoundation`.

    Examples
    --------
    >>> checkpoint = read_scfoundation("models.ckpt")  # doctest: +SKIP
    >>> checkpoint.load_into(model.module.net)  # doctest: +SKIP
    """

    path: Path
    sha256: str
    version: str
    n_genes: int
    config: XTrimoGeneConfig
    tensors: dict[str, Tensor] = field(repr=False)
    provenance: dict[str, str] | None = None

    def load_into(self, net: XTrimoGeneNet) -> None:
        """Copy the weights into a network of the same configuration.

        Parameters
        ----------
        net
            The network.
        """
        stored, names = self.tensors, _names(net)
        wanted = {name for parts in names.values() for name in parts}
        missing = sorted(wanted - stored.keys())
        unexpected = sorted(stored.keys() - wanted - NOT_NEEDED)
        shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
        n_positions, n_hidden = shapes["embedding.gene.weight"]
        # Published: the mask is a matrix of one row, and padding has a position of its own.
        shapes["imputation.mask"] = torch.Size([1, n_hidden])
        shapes["embedding.gene.weight"] = torch.Size([n_positions + 1, n_hidden])
        tensors, wrong = {}, []
        for ours, parts in names.items():
            if stored.keys() >= set(parts):
                tensors[ours] = torch.cat([stored[part] for part in parts])
                found, expected = tuple(tensors[ours].shape), tuple(shapes[ours])
                if found != expected:
                    wrong.append(f"{parts[0]} {found} (expected {expected})")
        if missing or unexpected or wrong:
            raise ValueError(
                f"{self.path} does not fit its own configuration. Missing tensors: {missing}; "
                f"unexpected: {unexpected}; of another shape: {wrong}."
            )
        tensors["imputation.mask"] = tensors["imputation.mask"][0]
        tensors["embedding.gene.weight"] = tensors["embedding.gene.weight"][:-1]
        net.load_state_dict(tensors)


def read_scfoundation(path: str | os.PathLike, version: str = "cell") -> PublishedCheckpoint:
    """Read a published checkpoint; files that could run code are refused.

    Parameters
    ----------
    path
        The file, ``models.ckpt``.
    version
        ``"cell"`` or ``"gene"``, fine-tuned for cell and gene embeddings, or ``"rde"``, which
        enhances the read depth.

    Returns
    -------
    Configuration and weights.

    Examples
    --------
    >>> scxtrimo.checkpoint.read_scfoundation("nope.ckpt")
    Traceback (most recent call last):
    FileNotFoundError: nope.ckpt does not exist.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} is truncated, or holds something else than tensors and plain values, which "
            f"could run code and is not loaded ({type(error).__name__}). Download it again."
        ) from error
    if not isinstance(content, dict) or version not in content:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} has no version {version!r}; it holds {found}.")
    try:
        sizes = content[version]["config"]["model_config"]["mae_autobin"]
        stored = content[version]["state_dict"]
        config, n_genes = _config(sizes), sizes["seq_len"] - 2
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a published checkpoint: its configuration lacks {error}."
        ) from error
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
    provenance = content[version].get("provenance")
    return PublishedCheckpoint(Path(path), sha256, version, n_genes, config, tensors, provenance)


def write_scfoundation(
    path: str | os.PathLike,
    net: XTrimoGeneNet,
    config: XTrimoGeneConfig,
    provenance: dict[str, str] | None = None,
) -> None:
    """Write a network of the published architecture in the format of the published checkpoints.

    Parameters
    ----------
    path
        The file to write, with the single version ``cell``.
    net, config
        Network and its configuration.
    provenance
        Source of the weights, stored with them.

    Examples
    --------
    >>> published = scxtrimo.model.XTrimoGene(adata, size="published-tiny")
    >>> write_scfoundation("models.ckpt", published.module.net, published.config)
    >>> read_scfoundation("models.ckpt").n_genes
    765
    """
    wrong = [
        f"{name}={getattr(config, name)!r} (published: {value!r})"
        for name, value in PUBLISHED_FIELDS.items()
        if getattr(config, name) != value
    ]
    if wrong:
        raise ValueError(
            f"Only the published architecture has a published format, but {', '.join(wrong)}. "
            "Train with `size='published-3m'` or another of the published sizes."
        )
    state = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    names = _names(net)
    if unknown := sorted(state.keys() - names.keys()):
        raise ValueError(f"The published format has no place for {unknown}.")
    empty = torch.zeros_like(state["embedding.gene.weight"][:1])
    state["imputation.mask"] = state["imputation.mask"][None]
    state["embedding.gene.weight"] = torch.cat([state["embedding.gene.weight"], empty])
    stored = {"model.token_emb.emb_pad.weight": empty.clone()}
    for ours, parts in names.items():
        pieces = state[ours].chunk(len(parts))
        stored |= {
            f"model.{part}": piece.clone() for part, piece in zip(parts, pieces, strict=True)
        }
    sizes: dict[str, Any] = {"seq_len": len(state["embedding.gene.weight"]) - 1}
    sizes |= {theirs: getattr(config, ours) for theirs, ours in SIZES.items()}
    for part, (kind, fields) in PARTS.items():
        own = {theirs: getattr(config, ours) for theirs, ours in fields.items()}
        sizes[part] = {"module_type": kind} | own
    content = {
        "config": {"model_config": {"mae_autobin": sizes}},
        "state_dict": stored,
        "provenance": {"source": "scxtrimo"} | (provenance or {}),
    }
    with replacing(Path(path)) as partial:
        torch.save({"cell": content}, partial)


def _config(sizes: dict[str, Any]) -> XTrimoGeneConfig:
    """Return the configuration of published sizes, see :func:`write_scfoundation`."""
    ours = {ours: sizes[theirs] for theirs, ours in SIZES.items()}
    for part, (kind, names) in PARTS.items():
        found = sizes[part].get("module_type", kind)
        if found != kind:
            raise ValueError(
                f"The checkpoint has a part of type {found!r}; only {kind!r} is supported there."
            )
        ours |= {our: sizes[part][theirs] for theirs, our in names.items()}
    return XTrimoGeneConfig(**ours, pca_initialization=False, **PUBLISHED_FIELDS)


def _names(net: XTrimoGeneNet) -> dict[str, list[str]]:
    """Return our name of every tensor that can be published, and the names of its parts."""
    names = {}
    for ours in net.state_dict():
        number = "".join(re.findall(r"layers\.(\d+)", ours))
        module, _, kind = ours.replace(f"layers.{number}.", "layers.*.").rpartition(".")
        if theirs := NAMES.get(f"{module}.{kind}", NAMES.get(module)):
            theirs = theirs.replace("*", number).format(kind)
            parts = "qkv" if "?" in theirs else "?"
            names[ours] = [theirs.replace("?", part) for part in parts]
    return names
