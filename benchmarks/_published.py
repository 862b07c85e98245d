"""The published procedures, to compare with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor, nn

from scxtrimo.checkpoint.scfoundation import _names
from scxtrimo.module import XTrimoGeneConfig, XTrimoGeneModule
from scxtrimo.nn import XTrimoGeneNet
from scxtrimo.nn.performer import EPSILON


def random_checkpoint(path: Path, config: XTrimoGeneConfig, n_genes: int) -> None:
    """Write random weights in the published format."""
    module = XTrimoGeneModule(n_genes, (), config)
    state, stored = module.net.state_dict(), {}
    for ours, theirs in _names(module.net):
        for name, part in zip(theirs, state[ours].chunk(len(theirs)), strict=True):
            stored[f"model.{name}"] = part.clone()
    positions = stored["model.pos_emb.weight"]
    stored["model.pos_emb.weight"] = torch.cat([positions, positions[:1]])
    stored["model.token_emb.emb_mask.weight"] = stored["model.token_emb.emb_mask.weight"][None]
    encoder = {"hidden_dim": config.n_hidden, "depth": config.n_layers, "heads": config.n_heads}
    decoder = {
        "hidden_dim": config.n_decoder_hidden,
        "depth": config.n_decoder_layers,
        "heads": config.n_decoder_heads,
        "dim_head": config.n_decoder_hidden // config.n_decoder_heads,
    }
    sizes = {
        "seq_len": n_genes + 2,
        "bin_num": config.n_bins,
        "bin_alpha": config.bin_alpha,
        "encoder": encoder | {"norm_first": False},
        "decoder": decoder,
    }
    content = {"config": {"model_config": {"mae_autobin": sizes}}, "state_dict": stored}
    torch.save({"cell": content}, path)


class OneByOne:
    """The published procedure: one cell after the other through torch's own encoder."""

    def __init__(self, net: XTrimoGeneNet, config: XTrimoGeneConfig) -> None:
        width = config.n_hidden
        layer = nn.TransformerEncoderLayer(
            width, config.n_heads, 4 * width, 0.0, "relu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.n_layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        names = {
            "self_attn.in_proj_": "attention.qkv.",
            "self_attn.out_proj.": "attention.out.",
            "linear1.": "feed_forward.inner.",
            "linear2.": "feed_forward.outer.",
            "norm1.": "attention_norm.",
            "norm2.": "feed_forward_norm.",
        }
        state = net.encoder.state_dict()
        for i, theirs in enumerate(self.encoder.layers):
            theirs.load_state_dict(
                {
                    f"{a}{kind}": state[f"layers.{i}.{b}{kind}"]
                    for a, b in names.items()
                    for kind in ("weight", "bias")
                }
            )
        self.encoder.norm.load_state_dict(net.encoder.norm.state_dict())
        self.encoder.eval()
        self.embedding = net.embedding

    batch_size = 1

    def encode(self, tokens: list[Tensor]) -> list[Tensor]:
        """Encode the tokens of some cells."""
        return [self.encoder(x[None])[0] for x in tokens]

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
        return self.embedding(values[positions], positions)


class NaivePerformer(nn.Module):
    """Layers of a Performer on all genes of all cells at once, everything kept for backward."""

    def __init__(self, performer: nn.Module) -> None:
        super().__init__()
        self.performer = performer

    def forward(self, x_cgd: Tensor) -> Tensor:
        for layer in self.performer.layers:
            attention = layer.attention
            y = layer.attention_norm(x_cgd)
            qkv = attention.qkv(y).unflatten(-1, (3, attention.n_heads, -1))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            q, k = (
                self._features(q, attention.features, -1),
                self._features(k, attention.features, (1, 2, 3)),
            )
            normalizer = q @ k.sum(-2)[..., None]
            y = (q @ (k.transpose(-1, -2) @ v)) / normalizer
            x_cgd = x_cgd + attention.out(y.transpose(1, 2).flatten(2))
            x_cgd = x_cgd + layer.feed_forward(layer.feed_forward_norm(x_cgd))
        return self.performer.norm(x_cgd)

    def _features(self, x: Tensor, features: Tensor, dims: int | tuple[int, ...]) -> Tensor:
        x = x * x.shape[-1] ** -0.25
        projected = x @ features.t()
        half_norm = x.square().sum(-1, keepdim=True) / 2
        highest = projected.amax(dims, keepdim=True).detach()
        return features.shape[0] ** -0.5 * (torch.exp(projected - half_norm - highest) + EPSILON)
