"""A checkpoint in the published format with random weights, and the published formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

N_GENES = 30
GENES = [f"GENE{i}" for i in range(N_GENES)]


def write_checkpoint(path: Path, change=lambda content: None) -> Path:
    """A checkpoint in the published format with other sizes and random weights."""
    torch.manual_seed(0)
    e, d, bins, genes = 12, 24, 7, N_GENES
    shapes = {
        "token_emb.mlp": (bins, 1),
        "token_emb.mlp2": (bins, bins),
        "decoder_embed": (d, e),
        "norm": (d,),
        "to_final": (1, d),
        "encoder.norm": (e,),
        "decoder.norm": (d,),
    }
    for i in range(3):
        p = f"encoder.transformer_encoder.{i}"
        shapes |= {
            f"{p}.self_attn.out_proj": (e, e),
            f"{p}.linear1": (4 * e, e),
            f"{p}.linear2": (e, 4 * e),
            f"{p}.norm1": (e,),
            f"{p}.norm2": (e,),
        }
    for i in range(2):
        p = f"decoder.performer.net.layers.{i}"
        shapes |= {f"{p}.0.fn.to_{x}": (d, d) for x in ("q", "k", "v", "out")}
        shapes |= {f"{p}.0.norm": (d,), f"{p}.1.norm": (d,)}
        shapes |= {f"{p}.1.fn.fn.w1": (4 * d, d), f"{p}.1.fn.fn.w2": (d, 4 * d)}
    state = {}
    for name, shape in shapes.items():
        state |= {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}
    state |= {
        "token_emb.emb.weight": torch.randn(bins, e),
        "token_emb.emb_mask.weight": torch.randn(1, e),
        "token_emb.emb_pad.weight": torch.randn(1, e),
        "pos_emb.weight": torch.randn(genes + 3, e),
    }
    for i in range(3):
        p = f"encoder.transformer_encoder.{i}.self_attn.in_proj_"
        state |= {f"{p}weight": torch.randn(3 * e, e), f"{p}bias": torch.randn(3 * e)}
    for i in range(2):
        p = f"decoder.performer.net.layers.{i}.0.fn.fast_attention.projection_matrix"
        state[p] = torch.randn(10, 6)  # int(6 * ln 6) features
    sizes = {
        "seq_len": genes + 2,
        "bin_num": bins,
        "bin_alpha": 0.5,
        "encoder": {"hidden_dim": e, "depth": 3, "heads": 3, "norm_first": False},
        "decoder": {"hidden_dim": d, "depth": 2, "heads": 4, "dim_head": 6},
    }
    content = {
        "cell": {
            "config": {"model_config": {"mae_autobin": sizes}},
            "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
        }
    }
    change(content)
    torch.save(content, path)
    return path


class Reference:
    """The published inference, one cell at a time, from the weights under their own names."""

    def __init__(self, path: Path) -> None:
        content = torch.load(path, weights_only=True)["cell"]
        self.w = {k.removeprefix("model."): v for k, v in content["state_dict"].items()}
        self.sizes = content["config"]["model_config"]["mae_autobin"]

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def value(self, v):
        h = F.leaky_relu(self.linear(v[:, None], "token_emb.mlp"), 0.1)
        z = self.sizes["bin_alpha"] * h + self.linear(h, "token_emb.mlp2")
        return z.softmax(-1) @ self.w["token_emb.emb.weight"]

    def tokens(self, counts: np.ndarray, target: float, scale: float | None = None):
        """Values and positions of the expressed genes, T and S last."""
        genes = np.flatnonzero(counts)
        values = np.log1p(counts[genes] / counts.sum() * (scale or 1e4))
        source = np.log10(values.sum() if scale else counts.sum())
        values = [*values, source if scale else target, source]
        positions = [*genes, N_GENES, N_GENES + 1]
        return torch.tensor(values).float(), torch.tensor(positions)

    def encode(self, values, positions):
        sizes = self.sizes["encoder"]
        width, heads = sizes["hidden_dim"], sizes["heads"]
        layer = torch.nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "relu", batch_first=True
        )
        encoder = torch.nn.TransformerEncoder(
            layer, sizes["depth"], torch.nn.LayerNorm(width), enable_nested_tensor=False
        )
        prefix = "encoder.transformer_encoder."
        encoder.layers.load_state_dict(
            {k.removeprefix(prefix): v for k, v in self.w.items() if k.startswith(prefix)}
        )
        encoder.norm.load_state_dict(
            {kind: self.w[f"encoder.norm.{kind}"] for kind in ("weight", "bias")}
        )
        x = self.value(values) + self.w["pos_emb.weight"][positions]
        return encoder.train()(x[None])[0]  # in training mode torch takes no shortcuts

    def pool(self, h, how: str):
        if how == "max":
            return h.amax(0)
        return torch.cat([h[-1], h[-2], h[:-2].amax(0), h[:-2].mean(0)])

    def decode(self, h, positions):
        x = self.value(torch.zeros(N_GENES + 2)).index_copy(0, positions, h)
        x = self.linear(x + self.w["pos_emb.weight"][:-1], "decoder_embed")
        heads = self.sizes["decoder"]["heads"]
        for i in range(self.sizes["decoder"]["depth"]):
            p = f"decoder.performer.net.layers.{i}"
            y = self.norm(x, f"{p}.0.norm")
            q, k, v = (
                self.linear(y, f"{p}.0.fn.to_{n}").view(len(y), heads, -1).transpose(0, 1)
                for n in "qkv"
            )
            omega = self.w[f"{p}.0.fn.fast_attention.projection_matrix"]
            q, k = self.features(q, omega, -1), self.features(k, omega, (0, 1, 2))
            y = (q @ (k.transpose(1, 2) @ v)) / (q @ k.sum(1)[..., None])
            x = x + self.linear(y.transpose(0, 1).flatten(1), f"{p}.0.fn.to_out")
            y = F.gelu(self.linear(self.norm(x, f"{p}.1.norm"), f"{p}.1.fn.fn.w1"))
            x = x + self.linear(y, f"{p}.1.fn.fn.w2")
        return self.norm(self.norm(x, "decoder.norm"), "norm")[:-2]

    def features(self, x, omega, dims):
        x = x / x.shape[-1] ** 0.25
        projected = x @ omega.T
        shifted = projected - x.square().sum(-1, keepdim=True) / 2
        return torch.exp(shifted - projected.amax(dims, keepdim=True)) + 1e-4

    def predict(self, genes):
        return self.linear(genes, "to_final")[:, 0]
