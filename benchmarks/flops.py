"""Floating-point operations of the forward pass of one training cell, counted and by formula.

    python benchmarks/flops.py

A cell of a vocabulary of 19,264 genes, of which 5, 10 or 15% are expressed; 30% of these are
masked. Counted with torch's own counter (a multiplication and an addition are 2 operations,
element-wise work is not counted), in architectures of the same sizes:

- a classical transformer over all genes (the encoder alone, every gene a token)
- a Performer over all genes (the same with FAVOR+ attention)
- xTrimoGene as published: encoder over visible genes, Performer decoder over all
- the same function here: the last layer where there is a loss, equal values embedded once
- scxtrimo: encoder over visible genes, cross-attention and bottleneck decoders

The formulas stand beside the counts and must agree within 2%.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from _common import parser, report
from _published import NaiveTraining
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from scxtrimo.config import SIZES, XTrimoGeneConfig
from scxtrimo.nn.masking import mask_batch
from scxtrimo.nn.performer import Performer
from scxtrimo.nn.xtrimogene import XTrimoGeneModule
from scxtrimo.train.plan import MaskingConfig

# torch's counter knows the attention kernels of GPUs only
ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)
    )
}
N_GENES, MASK_RATE = 19_264, 0.3
N_VALUES = 4  # distinct counts of the simulated cell
DENSITIES = (0.05, 0.10, 0.15)


def transformer_flops(n_tokens: int, width: int, n_layers: int) -> float:
    """Projections and feed-forward (24 d² per token) and attention (4 n d per token)."""
    return n_layers * n_tokens * (24 * width**2 + 4 * n_tokens * width)


def performer_flops(n_tokens: int, width: int, n_layers: int, n_heads: int) -> float:
    """Attention through m = int(e ln e) random features per head of width e."""
    head = width // n_heads
    n_features = int(head * math.log(head))
    return n_layers * n_tokens * (24 * width**2 + 8 * width * n_features)


def embedding_flops(config: XTrimoGeneConfig) -> float:
    """Auto-discretisation of distinct values: bins from bins, mixture of bin embeddings."""
    bins = config.n_bins
    return N_VALUES * (2 * bins + 2 * bins**2 + 2 * bins * config.n_hidden)


def published_flops(n_visible: int, n_hidden_genes: int, config: XTrimoGeneConfig) -> float:
    """Encoder over visible genes, S and T; decoder over all, its last layer where asked."""
    n_tokens, n_positions = n_visible + 2, N_GENES + 2
    width, layers = config.n_decoder_hidden, config.n_decoder_layers
    head = width // config.n_decoder_heads
    n_features = int(head * math.log(head))
    decoder = performer_flops(n_positions, width, layers - 1, config.n_decoder_heads)
    decoder += n_positions * (4 * width**2 + 4 * width * n_features)  # keys, last layer
    decoder += n_hidden_genes * (20 * width**2 + 4 * width * n_features)  # queries, last layer
    to_decoder = 2 * config.n_hidden * width * (n_positions + n_tokens + n_hidden_genes)
    return (
        embedding_flops(config)
        + transformer_flops(n_tokens, config.n_hidden, config.n_layers)
        + to_decoder
        + decoder
    )


def naive_flops(n_visible: int, config: XTrimoGeneConfig) -> float:
    """Every value embedded, every layer of the decoder on all genes."""
    n_tokens, n_positions = n_visible + 2, N_GENES + 2
    width, layers = config.n_decoder_hidden, config.n_decoder_layers
    decoder = performer_flops(n_positions, width, layers, config.n_decoder_heads)
    to_decoder = 2 * config.n_hidden * width * n_positions
    return (
        embedding_flops(config) / N_VALUES * (n_tokens + n_positions)
        + transformer_flops(n_tokens, config.n_hidden, config.n_layers)
        + to_decoder
        + decoder
    )


def our_flops(n_visible: int, n_targets: int, config: XTrimoGeneConfig) -> float:
    """Encoder over visible genes and the cell token; queries attend to them; all genes scored."""
    n_tokens, width = n_visible + 1, config.n_decoder_hidden
    cross = n_targets * (20 * width**2 + 4 * n_tokens * width) + n_tokens * (
        4 * width * config.n_hidden
    )
    to_query = 2 * n_targets * config.n_hidden * width
    bottleneck = 2 * N_GENES * config.n_latent * (config.n_hidden + 1)
    return (
        embedding_flops(config)
        + transformer_flops(n_tokens, config.n_hidden, config.n_layers)
        + config.n_decoder_layers * cross
        + to_query
        + bottleneck
    )


def counted(function: Any) -> float:
    """Count the operations of a call."""
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU)
    with counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def one_cell(density: float, masking: MaskingConfig) -> dict[str, torch.Tensor]:
    """A masked cell."""
    generator = torch.Generator().manual_seed(0)
    n = round(N_GENES * density)
    counts = torch.randint(1, 1 + N_VALUES, (n,), generator=generator).float()
    batch = {
        "counts": counts,
        "gene_ids": torch.randperm(N_GENES, generator=generator)[:n],
        "cu_seqlens": torch.tensor([0, n], dtype=torch.int32),
        "library_size": counts.sum()[None],
        "categories": torch.zeros(1, 0, dtype=torch.int64),
        "cell_ids": torch.tensor([0]),
    }
    return mask_batch(batch, masking, N_GENES, seed=0, epoch=0)


def compare(size: str, density: float) -> list[dict[str, Any]]:
    """Count all four at one size and density."""
    config, published = SIZES[size], SIZES[f"published-{size}"]
    width, n_layers, n_heads = config.n_hidden, config.n_layers, config.n_heads
    with torch.device("meta"):  # shapes are all that counts
        layer = nn.TransformerEncoderLayer(width, n_heads, 4 * width, 0.0, batch_first=True)
        dense = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False).train()
        x = torch.empty(1, N_GENES, width)
    performer = Performer(n_layers, width, n_heads, width // n_heads)
    part = torch.zeros(2048, width)  # of the genes: this is linear in them
    theirs = one_cell(density, MaskingConfig.published())
    ours = one_cell(density, MaskingConfig(MASK_RATE, MASK_RATE))
    their_module = XTrimoGeneModule(N_GENES, (), published)
    our_module = XTrimoGeneModule(N_GENES, (), config)
    for module in (dense, performer, their_module, our_module):
        module.requires_grad_(False)  # or the counter looks for gradients
    n_theirs, n_ours = int(theirs["visible"].sum()), int(ours["visible"].sum())
    n_targets = len(ours["target_gene_ids"])
    methods = {
        "transformer over all genes": (
            counted(lambda: dense(x)),
            transformer_flops(N_GENES, width, n_layers),
        ),
        "Performer over all genes": (
            counted(lambda: performer(part)) * N_GENES / len(part),
            performer_flops(N_GENES, width, n_layers, n_heads),
        ),
        "xTrimoGene as published": (
            counted(lambda: NaiveTraining(their_module).loss(theirs)),
            naive_flops(n_theirs, published),
        ),
        "published configuration, here": (
            counted(lambda: their_module(theirs)),
            published_flops(n_theirs, len(theirs["hidden_gene_ids"]), published),
        ),
        "scxtrimo": (
            counted(lambda: our_module(ours)),
            our_flops(n_ours, n_targets, config),
        ),
    }
    rows = []
    most = methods["transformer over all genes"][0]
    for method, (count, formula) in methods.items():
        assert abs(count / formula - 1) < 0.02, (size, density, method, count, formula)
        for metric, value in (
            ("GFLOP", count / 1e9),
            ("formula", formula / 1e9),
            ("times fewer", most / count),
        ):
            rows.append(
                {
                    "task": f"forward operations of a training cell, {density:.0%} expressed",
                    "data": size,
                    "method": method,
                    "metric": metric,
                    "value": value,
                    "spread": float("nan"),
                    "ratio": most / count,
                }
            )
    return rows


def main() -> None:
    """Run the benchmark."""
    args = parser(__doc__).parse_args()
    sizes = ("3m",) if args.quick else ("3m", "10m", "100m")
    densities = (0.10,) if args.quick else DENSITIES
    rows = [row for density in densities for size in sizes for row in compare(size, density)]
    report(rows, args.json)


if __name__ == "__main__":
    main()
