"""The published model here and as published: cells per second, training step, memory.

    python benchmarks/published.py                       # simulated cells
    python benchmarks/published.py --data pbmc3k.h5ad --gene-index OS_scRNA_gene_index.19264.tsv

Embedding: a checkpoint in the published format with random weights of the 100M size is loaded, and
64 cells are embedded, here in batches and as published, one cell at a time through torch's own
`nn.TransformerEncoder`. Both give the same numbers, which is checked.

Training: one step of the published 3M model on four cells with 19,264 genes of which 8% are
expressed, here and with a Performer that works on all genes of all cells at once and keeps
everything for the backward pass, as published. Memory is the peak of a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch
from _common import parser, ratio_rows, report, simulate
from anndata import AnnData
from scipy import sparse
from torch import Tensor, nn

import scxtrimo
from scxtrimo.checkpoint.scfoundation import _names
from scxtrimo.module import SIZES, XTrimoGeneConfig
from scxtrimo.nn import XTrimoGeneNet
from scxtrimo.nn.performer import EPSILON

N_GENES, N_CELLS = 19_264, 64
STEP_CELLS, DENSITY = 4, 0.08


def random_checkpoint(path: Path, config: XTrimoGeneConfig, n_genes: int) -> None:
    """Write random weights in the published format."""
    module = scxtrimo.module.XTrimoGeneModule(n_genes, (), config)
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

    @torch.inference_mode()
    def embed(self, adata: AnnData) -> np.ndarray:
        """Embed cells whose columns are those of the vocabulary."""
        result = []
        for row in adata.X:
            counts = torch.from_numpy(row.toarray()[0])
            total = counts.sum()
            values = torch.cat(
                [torch.log1p(counts / total * 1e4), torch.tensor([4.0, total.log10()])]
            )
            positions = values.nonzero()[:, 0]
            h = self.encoder(self.embedding(values[positions], positions)[None])[0]
            pooled = [h[-1], h[-2], h[:-2].amax(0), h[:-2].mean(0)]
            result.append(torch.cat(pooled).numpy())
        return np.stack(result)


def embedding(adata: AnnData, size: str, repeats: int) -> list[dict[str, Any]]:
    """Time the embedding of cells in both ways, alternating."""
    genes = list(adata.var_names)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "models.ckpt"
        random_checkpoint(path, SIZES[f"published-{size}"], len(genes))
        start = time.perf_counter()
        model = scxtrimo.model.XTrimoGene.from_scfoundation(path, genes, adata=adata)
        print(f"loaded in {time.perf_counter() - start:.1f} s\n{model}", flush=True)
    published = OneByOne(model.module.net, model.config)
    methods = {
        "as published, one cell at a time": lambda: published.embed(adata),
        "scxtrimo": lambda: model.get_latent_representation(batch_size=16),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    results = {}
    for _ in range(repeats):
        for name, embed in methods.items():
            start = time.perf_counter()
            results[name] = embed()
            seconds[name].append(time.perf_counter() - start)
    first, second = results.values()
    deviation = np.abs(first - second).max() / np.abs(first).max()
    print(f"largest deviation, relative: {deviation:.1e}")
    assert deviation < 1e-5
    speeds = {name: adata.n_obs / statistics.median(s) for name, s in seconds.items()}
    return ratio_rows("embedding", size, speeds, "cells/s")


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


def training_step(way: str, size: str) -> dict[str, float]:
    """Time training steps, in a process of its own; return seconds, MB per cell and the loss."""
    adata = simulate(STEP_CELLS, N_GENES, DENSITY)
    counts = adata.X
    batch = scxtrimo.data.to_ragged(counts, np.arange(N_GENES))
    tensors = {key: torch.from_numpy(value) for key, value in batch.items()}
    tensors["gene_ids"] = tensors["gene_ids"].long()
    tensors |= {
        "cell_ids": torch.arange(STEP_CELLS),
        "categories": torch.zeros(STEP_CELLS, 0, dtype=torch.int64),
    }
    masking = scxtrimo.train.MaskingConfig.published()
    batch = scxtrimo.train.mask_batch(tensors, masking, N_GENES, seed=0, epoch=0)
    torch.manual_seed(0)
    module = scxtrimo.module.XTrimoGeneModule(N_GENES, (), SIZES[f"published-{size}"])

    def ours() -> Tensor:
        return module(batch)[2].loss

    def naive() -> Tensor:
        cells = module.inference(**module._get_inference_input(batch))["cells"]
        decoder, positions = module.net.imputation, module.positions
        x = (cells.zero_d + positions).expand(STEP_CELLS, -1, -1)
        for tokens, ids, cu in (
            (cells.tokens_td, cells.gene_ids_t, cells.cu_seqlens),
            cells.hidden,
        ):
            cell = scxtrimo.nn.ragged.cells_of(cu, len(ids))
            x = x.index_put((cell, ids), tokens + positions[ids])
        x = decoder.norm(NaivePerformer(decoder.performer)(decoder.to_hidden(x)))
        cu = batch["target_cu_seqlens"]
        cell = scxtrimo.nn.ragged.cells_of(cu, len(batch["target_gene_ids"]))
        predicted = decoder.to_value(x)[..., 0][cell, batch["target_gene_ids"]]
        return (predicted - scxtrimo.module.target_values(batch)).square().mean()

    step = {"ours": ours, "naive": naive}[way]
    with torch.no_grad():
        module.net.encode(
            tensors["counts"],
            tensors["gene_ids"],
            tensors["cu_seqlens"],
            tensors["library_size"],
            depths_cd=torch.full((STEP_CELLS, 2), 4.0),
        )
    before = reset_peak_memory()
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        loss = step()
        loss.backward()
        seconds.append(time.perf_counter() - start)
        module.zero_grad(set_to_none=True)
    peak = peak_memory() - before
    return {
        "seconds": statistics.median(seconds[1:]),
        "megabytes": peak / 2**20 / STEP_CELLS,
        "loss": float(loss),
    }


def reset_peak_memory() -> int:
    """Forget the peak so far and return the resident memory, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def peak_memory() -> int:
    """Return the peak of the resident memory in bytes."""
    return memory("VmHWM")


def memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def training(size: str) -> list[dict[str, Any]]:
    """Compare a training step here and as published."""
    results = {}
    for way, name in (("naive", "as published, all genes at once"), ("ours", "scxtrimo")):
        command = [sys.executable, __file__, "--step", way, "--size", size]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
    losses = [result["loss"] for result in results.values()]
    print(f"loss of one step: {losses}")
    assert abs(losses[0] - losses[1]) < 1e-4 * losses[0]
    speeds = {name: STEP_CELLS / result["seconds"] for name, result in results.items()}
    memory = {name: result["megabytes"] for name, result in results.items()}
    return ratio_rows("training step", size, speeds, "cells/s") + ratio_rows(
        "memory of a training step", size, memory, "MB per cell"
    )


def main() -> None:
    """Run the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--gene-index", type=Path, help="genes to take from the data, in order")
    arguments.add_argument("--size", help="size of the model")
    arguments.add_argument("--step", choices=("ours", "naive"), help="for this script's own use")
    args = arguments.parse_args()
    if args.step:
        print(json.dumps(training_step(args.step, args.size)))
        return
    n_cells = 8 if args.quick else N_CELLS
    size = args.size or ("3m" if args.quick else "100m")
    if args.data is None:
        adata = simulate(n_cells, 19_000, 0.05)
    else:
        adata = anndata.read_h5ad(args.data)
        if args.gene_index is not None:
            genes = list(scxtrimo.data.read_gene_index(args.gene_index, N_GENES))
            column = {name: i for i, name in enumerate(adata.var_names)}
            known = [g for g in genes if g in column]
            to_genes = sparse.csr_matrix(
                (
                    np.ones(len(known), np.float32),
                    ([column[g] for g in known], np.flatnonzero([g in column for g in genes])),
                ),
                shape=(adata.n_vars, len(genes)),
            )
            adata = AnnData(sparse.csr_matrix(adata.X.astype(np.float32) @ to_genes))
            adata.var_names = genes
        adata = adata[np.linspace(0, adata.n_obs - 1, n_cells).astype(int)].copy()
    print(f"{adata.n_obs} cells with {np.mean(np.diff(adata.X.indptr)):.0f} expressed genes each")
    result = embedding(adata, size, 1 if args.quick else args.seeds)
    result += training("tiny" if args.quick else "3m")
    report(result, args.json)


if __name__ == "__main__":
    main()
