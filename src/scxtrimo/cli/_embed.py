"""``scxtrimo embed`` and ``scxtrimo convert``."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

from ._shared import (
    add_checkpoint,
    add_overwrite,
    add_query,
    check_keys,
    check_out,
    make_model,
    prepare_query,
    write_cells,
)


def add(commands: Any) -> None:
    """Add the commands to a parser."""
    embed = commands.add_parser("embed", help="embed cells with a saved or a published model")
    embed.add_argument(
        "data",
        metavar="FILE",
        help="cells with raw counts: .h5ad, .h5mu, .zarr, .h5 of Cell Ranger, a folder with "
        "matrix.mtx, or a store of any size",
    )
    embed.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=".h5ad: the cells with obsm['X_xtrimo']; .zarr: only names and embedding, streamed",
    )
    embed.add_argument("--model", metavar="DIR", help="a saved or converted model")
    add_checkpoint(embed, required=False)
    add_query(embed)
    add_overwrite(embed, "an existing --out, and an embedding that the cells already have")
    embed.add_argument("--pool", help="all, max, mean, s or t; by default the model's own")
    embed.add_argument("--target-depth", metavar="DEPTH", help="t4, f2, a1 or total counts")
    embed.add_argument("--bulk", action="store_true", help="profiles are bulk, not single cells")
    embed.add_argument("--batch-size", type=int, help="cells per forward pass")
    embed.add_argument(
        "--map-query",
        nargs="?",
        const="",
        metavar="KEY",
        help="the cells are from new batches (a single one, or those in this column of obs): map "
        "them onto the training cells",
    )
    embed.set_defaults(run=embed_cells)

    convert = commands.add_parser("convert", help="convert a published checkpoint into our format")
    add_checkpoint(convert, required=True)
    convert.add_argument("--out", required=True, metavar="DIR", help="directory to write to")
    convert.add_argument("--overwrite", action="store_true", help="replace an existing model")
    convert.set_defaults(run=convert_checkpoint)


def embed_cells(args: argparse.Namespace) -> int:
    from ..data.reading import read_cells
    from ..pretraining.store import is_store

    if (args.model is None) == (args.checkpoint is None):
        raise ValueError("Give either --model or --checkpoint with --gene-index.")
    streamed = args.out.endswith(".zarr")
    if streamed and Path(args.out).exists():
        raise FileExistsError(f"{args.out} exists. Choose another path, or remove it first.")
    out = check_out(args.out, (".h5ad", ".zarr"), args.overwrite)
    _check_map_query(args, streamed)
    if is_store(args.data):
        return _embed_store(args, out, streamed)
    adata = read_cells(args.data, args.modality, backed=streamed)
    if not streamed:
        check_keys(adata, "obsm", ["X_xtrimo"], args.overwrite)
    model = make_model(args)
    prepare_query(model, adata, args)
    if args.map_query is not None:
        embedding = model.map_query(adata, args.map_query or None, args.batch_size)
    else:
        embedding = model.get_latent_representation(
            adata, out=out if streamed else None, **_options(args)
        )
    if not streamed:
        adata.obsm["X_xtrimo"] = embedding
        write_cells(adata, out)
    n_cells, n_latent = embedding.shape
    print(f"{n_cells:,} cells x {n_latent} dimensions in obsm['X_xtrimo'] of {out}")
    return 0


def _embed_store(args: argparse.Namespace, out: Path, streamed: bool) -> int:
    from ..pretraining.embed import embed_store

    if not streamed or args.map_query is not None:
        raise ValueError("The cells of a store are streamed: --out must end in .zarr.")
    model = make_model(args)
    n_cells = embed_store(
        model,
        args.data,
        out,
        prepare=lambda cells: prepare_query(model, cells, args),
        **_options(args),
    )
    print(f"{n_cells:,} cells in obsm['X_xtrimo'] of the data sets in {out}")
    return 0


def _check_map_query(args: argparse.Namespace, streamed: bool) -> None:
    if args.map_query is None:
        return
    if streamed or args.pool or args.target_depth or args.bulk:
        raise ValueError(
            "--map-query needs an --out of .h5ad, and cannot be combined with --pool, "
            "--target-depth or --bulk."
        )


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the embedding; a target depth is a number or text such as ``t4``."""
    target: str | float | None = args.target_depth
    with suppress(TypeError, ValueError):
        target = float(args.target_depth)
    return {
        "batch_size": args.batch_size,
        "pool": args.pool,
        "target_depth": target,
        "depth": "bulk" if args.bulk else "cell",
    }


def convert_checkpoint(args: argparse.Namespace) -> int:
    make_model(args).save(args.out, overwrite=args.overwrite)
    print(f"Written to {args.out}. Load it with `scxtrimo.model.XTrimoGene.load({args.out!r})`.")
    return 0
