"""``scxtrimo protein embed``, ``score`` and ``generate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._shared import add_command, check_out


def add(commands: Any) -> None:
    """Add the commands to a parser."""
    parser = commands.add_parser("protein", help="embed, score and generate proteins")
    parts = parser.add_subparsers(dest="part", title="commands", required=True)

    option, flag = add_command(parts, "embed", embed, "embed the proteins of a FASTA file")
    option("data", metavar="FASTA", help="proteins, .fasta or .fasta.gz")
    _add_model(option, flag, ".h5 or .zarr, streamed; .h5ad with obsm['X_pglm']")
    option("--pooling", default="mean", choices=("mean", "max", "eos", "residue"))
    option("--layer", default="-1", help="block, 0 for the embedding, -1 or pre_norm")
    option("--long", default="window", choices=("window", "error", "truncate", "full"))
    option("--window", type=int, metavar="N", help="residues that are read at once")

    option, flag = add_command(parts, "score", score, "score variants of a protein")
    option("data", metavar="FASTA", help="the wild type, the only protein of a FASTA file")
    option("--mutations", metavar="CSV", help="table with a column mutant; by default all")
    option("--strategy", default="auto", help="masked, wild-type, pseudo-likelihood or causal")
    option("--offset", type=int, default=1, help="number of the first residue")
    _add_model(option, flag, "table, .csv")

    option, flag = add_command(parts, "generate", generate, "generate proteins")
    option("--prompt", default="", help="how they begin")
    option("-n", type=int, default=1, help="how many")
    option("--top-p", type=float, default=1.0)
    option("--temperature", type=float, default=1.0)
    option("--top-k", type=int)
    option("--max-length", type=int, default=256, help="residues at most")
    option("--seed", type=int)
    _add_model(option, flag, "sequences, .fasta")
    for subparser in parts.choices.values():
        subparser.add_argument("--debug", action="store_true", help="show where an error happened")


def _add_model(option: Any, flag: Any, result: str) -> None:
    option("--model", required=True, metavar="DIR", help="a saved model or a published checkpoint")
    option("--out", required=True, metavar="FILE", help=result)
    option("--dtype", default="auto", help="type of published weights: float32, bfloat16, float16")
    option("--quantized", default="dequantize", choices=("dequantize", "packed"))
    flag("--overwrite", help="replace an existing --out")


def _load(args: argparse.Namespace) -> Any:
    from ..protein.model import XTrimoPGLM

    if (Path(args.model).expanduser() / "model.json").is_file():
        return XTrimoPGLM.load(args.model)
    options = {"dtype": args.dtype, "quantized": args.quantized}
    return XTrimoPGLM.from_published(args.model, **options)


def embed(args: argparse.Namespace) -> int:
    from ..protein.sequences import read_fasta
    from ._shared import write_cells

    out = check_out(args.out, (".h5", ".zarr", ".h5ad"), args.overwrite)
    if out.suffix == ".h5ad" and args.pooling == "residue":
        raise ValueError("--pooling residue needs an --out of .h5 or .zarr.")
    proteins = read_fasta(args.data)
    layer = args.layer if args.layer == "pre_norm" else int(args.layer)
    options = {"pooling": args.pooling, "layer": layer, "long": args.long, "window": args.window}
    model = _load(args)
    if out.suffix == ".h5ad":
        proteins.obsm["X_pglm"] = model.get_latent_representation(proteins, **options)
        write_cells(proteins, out)
    else:
        model.get_latent_representation(proteins, out=out, **options)
    print(f"{proteins.n_obs:,} proteins in {out}")
    return 0


def score(args: argparse.Namespace) -> int:
    import pandas as pd

    from ..protein.sequences import read_fasta

    out = check_out(args.out, (".csv",), args.overwrite)
    proteins = read_fasta(args.data)
    if proteins.n_obs != 1:
        raise ValueError(f"{args.data} has {proteins.n_obs:,} proteins. Give the wild type alone.")
    mutations: Any = "all" if args.mutations is None else pd.read_csv(args.mutations)
    table = _load(args).score_mutations(
        proteins.obs["sequence"].iloc[0], mutations, strategy=args.strategy, offset=args.offset
    )
    table.to_csv(out, index=False)
    print(f"{len(table):,} scores in {out}")
    return 0


def generate(args: argparse.Namespace) -> int:
    from ..protein.sequences import write_fasta

    out = check_out(args.out, (".fasta", ".fa"), args.overwrite)
    table = _load(args).generate(
        args.prompt,
        args.n,
        top_p=args.top_p,
        temperature=args.temperature,
        top_k=args.top_k,
        max_length=args.max_length,
        seed=args.seed,
    )
    named = {
        f"generated{i + 1} perplexity={row.perplexity:.2f} ended={row.ended}": row.sequence
        for i, row in enumerate(table.itertuples(index=False))
        if row.sequence
    }
    write_fasta(named, out)
    print(f"{len(named):,} proteins in {out}")
    return 0
