"""The published procedures, to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from scxtrimo.checkpoint.scfoundation import write_scfoundation
from scxtrimo.config import XTrimoGeneConfig
from scxtrimo.nn.layers import normalize_counts
from scxtrimo.nn.performer import EPSILON
from scxtrimo.nn.ragged import cells_of, to_tokens
from scxtrimo.nn.xtrimogene import XTrimoGeneModule, XTrimoGeneNet, target_values


def random_checkpoint(path: Path, config: XTrimoGeneConfig, n_genes: int) -> None:
    """Write random weights in the published format."""
    write_scfoundation(path, XTrimoGeneModule(n_genes, (), config).net, config)


ENCODER_NAMES = {
    "attention.qkv.": "self_attn.in_proj_",
    "attention.out.": "self_attn.out_proj.",
    "feed_forward.inner.": "linear1.",
    "feed_forward.outer.": "linear2.",
    "attention_norm.": "norm1.",
    "feed_forward_norm.": "norm2.",
}


def in_torch(name: str) -> str:
    """Return the name of a parameter of our encoder in torch's."""
    for ours, theirs in ENCODER_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def torch_encoder(net: XTrimoGeneNet, config: XTrimoGeneConfig) -> nn.TransformerEncoder:
    """Return torch's own encoder with the weights of ours."""
    width = config.n_hidden
    layer = nn.TransformerEncoderLayer(
        width, config.n_heads, 4 * width, 0.0, "relu", batch_first=True
    )
    encoder = nn.TransformerEncoder(
        layer, config.n_layers, nn.LayerNorm(width), enable_nested_tensor=False
    )
    encoder.load_state_dict({in_torch(k): v for k, v in net.encoder.state_dict().items()})
    return encoder


class OneByOne:
    """The published procedure: one cell after the other through torch's own encoder.

    As in the published `get_embedding.py`, but for its preprocessing with pandas and lists, which
    would only make it slower.

    Parameters
    ----------
    net, config
        The network and its size.
    with_mask
        Pass the padding mask, as published, although a single cell has no padding.
    """

    def __init__(
        self, net: XTrimoGeneNet, config: XTrimoGeneConfig, with_mask: bool = True
    ) -> None:
        self.with_mask = with_mask
        self.encoder = torch_encoder(net, config).eval()
        self.embedding = net.embedding

    batch_size = 1

    def encode(self, tokens: list[Tensor]) -> list[Tensor]:
        """Encode the tokens of some cells."""
        encoded = []
        for x in tokens:
            is_padding = torch.zeros(1, len(x), dtype=torch.bool) if self.with_mask else None
            encoded.append(self.encoder(x[None], src_key_padding_mask=is_padding)[0])
        return encoded

    @torch.inference_mode()
    def embed(self, adata: AnnData) -> np.ndarray:
        """Embed cells whose columns are those of the vocabulary."""
        pooled = []
        for start in range(0, adata.n_obs, self.batch_size):
            tokens = [self.tokens(row) for row in adata.X[start : start + self.batch_size]]
            for h in self.encode(tokens):
                parts = [h[-1], h[-2], h[:-2].amax(0), h[:-2].mean(0)]
                pooled.append(torch.cat(parts).numpy())
        return np.stack(pooled)

    def tokens(self, row: sparse.csr_matrix) -> Tensor:
        """Normalise all genes of a cell, gather those that are not zero, and embed them."""
        counts = torch.from_numpy(row.toarray()[0])
        total = counts.sum()
        values = torch.cat([torch.log1p(counts / total * 1e4), torch.tensor([4.0, total.log10()])])
        positions = values.nonzero()[:, 0]
        value, gene = self.embedding.value, self.embedding.gene
        return value.embed_each(values[positions]) + gene(positions)


class NaiveTraining:
    """The published training step: all genes of all cells at once, everything kept for backward.

    As published, but that there is no dropout, that the stabiliser of the keys is one per cell
    instead of one per batch, and that stabilisers are constants for the gradient.

    Parameters
    ----------
    module
        A published configuration, whose weights are taken.
    """

    def __init__(self, module: XTrimoGeneModule) -> None:
        self.module, self.net = module, module.net
        self.encoder = torch_encoder(module.net, module.config)

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients under the names of our parameters."""
        theirs = dict(self.encoder.named_parameters())
        return {
            name: theirs[in_torch(name.removeprefix("encoder."))].grad
            if name.startswith("encoder.")
            else parameter.grad
            for name, parameter in self.net.named_parameters()
        }

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the mean squared error of the masked genes."""
        x_cgd = self._decode(self._embed_all_genes(batch))
        cells = cells_of(batch["target_cu_seqlens"], len(batch["target_gene_ids"]))
        predicted = self.net.imputation.to_value(x_cgd)[..., 0][cells, batch["target_gene_ids"]]
        return (predicted - target_values(batch)).square().mean()

    def _encode(self, inputs: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Encode the visible genes of padded cells; tokens and their positions."""
        cu, n_genes = inputs["cu_seqlens"], self.net.n_genes
        library_t = to_tokens(inputs["library_size_c"], cu, len(inputs["counts_t"]))
        values_t = normalize_counts(inputs["counts_t"], library_t)
        lengths = cu.diff().tolist()
        depth_ids = torch.arange(n_genes, n_genes + 2)
        ids = [torch.cat([x, depth_ids]) for x in inputs["gene_ids_t"].split(lengths)]
        values = [
            torch.cat([x, depths])
            for x, depths in zip(values_t.split(lengths), inputs["depths_cd"], strict=True)
        ]
        padded_ids = pad_sequence(ids, batch_first=True)
        x = self._embed(pad_sequence(values, batch_first=True))
        x = x + F.embedding(padded_ids, self.module.net.positions)
        n_tokens = torch.tensor([len(x) for x in ids])
        is_padding = torch.arange(x.shape[1]) >= n_tokens[:, None]
        x = self.encoder(x, src_key_padding_mask=is_padding)
        return [h[:n] for h, n in zip(x, n_tokens.tolist(), strict=True)], ids

    def _embed(self, values: Tensor) -> Tensor:
        """Embed every value, also those that are the same."""
        embedded = self.net.embedding.value.embed_each(values.flatten())
        return embedded.unflatten(0, values.shape)

    def _embed_all_genes(self, batch: dict[str, Any]) -> Tensor:
        """Put encoded, masked and unexpressed genes where they are in the vocabulary."""
        inputs = self.net.inputs(self.module.readable(batch))
        values_h, ids_h, cu_h = (
            batch[f"hidden_{name}"] for name in ("values", "gene_ids", "cu_seqlens")
        )
        n_cells, n_positions = len(cu_h) - 1, len(self.module.net.positions)
        values = torch.zeros(n_cells, n_positions)
        values[cells_of(cu_h, len(ids_h)), ids_h] = values_h
        x = self._embed(values.nan_to_num(0.0))
        x = torch.where(values.isnan()[..., None], self.net.imputation.mask, x)
        tokens, ids = self._encode(inputs)
        cells = torch.arange(n_cells).repeat_interleave(torch.tensor([len(i) for i in ids]))
        x = x.index_put((cells, torch.cat(ids)), torch.cat(tokens).to(x.dtype))
        all_ids = torch.arange(n_positions).repeat(n_cells, 1)
        return x + F.embedding(all_ids, self.module.net.positions)

    def _decode(self, x_cgd: Tensor) -> Tensor:
        """Apply the Performer to all genes of all cells."""
        decoder = self.net.imputation
        x_cgd = decoder.to_hidden(x_cgd)
        for layer in decoder.performer.layers:
            attention = layer.attention
            y = layer.attention_norm(x_cgd)
            qkv = attention.qkv(y).unflatten(-1, (3, attention.n_heads, -1))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            q = self._features(q, attention.features, -1)
            k = self._features(k, attention.features, (1, 2, 3))
            inverse = 1.0 / torch.einsum("chgm,chm->chg", q, k.sum(-2))
            context = torch.einsum("chgm,chge->chme", k, v.to(k.dtype))
            y = torch.einsum("chme,chgm,chg->chge", context, q, inverse)
            x_cgd = x_cgd + attention.out(y.transpose(1, 2).flatten(2))
            x_cgd = x_cgd + layer.feed_forward(layer.feed_forward_norm(x_cgd))
        return decoder.norm(decoder.performer.norm(x_cgd))

    def _features(self, x: Tensor, features: Tensor, dims: int | tuple[int, ...]) -> Tensor:
        """Random features as published, but with one stabiliser per cell."""
        normalizer = x.shape[-1] ** -0.25
        projected = torch.einsum("chge,me->chgm", normalizer * x, features.to(x.dtype))
        half_norm = (x**2).sum(-1, keepdim=True) / 2 * normalizer**2
        highest = projected.amax(dims, keepdim=True).detach()
        return features.shape[0] ** -0.5 * (torch.exp(projected - half_norm - highest) + EPSILON)
