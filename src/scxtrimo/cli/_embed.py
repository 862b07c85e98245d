"""``scxtrimo embed``."""

from __future__ import annotations

import argparse
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
    """Add the command to a parser."""
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
        help=".h5ad: the cells with obsm['X_xtrimo']; .zarr: names and embedding alone, streamed",
    )
    embed.add_argument("--model", metavar="DIR", help="a model that was saved or converted")
    add_checkpoint(embed, required=False)
    add_query(embed)
    add_overwrite(embed, "an --out that exists, and an embedding that the cells have")
    embed.add_argument("--pool", help="all, max, mean, s or t; by default the model's own")
    embed.add_argument("--target-depth", metavar="DEPTH", help="t4, f2, a1 or total counts")
    embed.add_argument("--bulk", action="store_true", help="profiles are bulk, not single cells")
    embed.add_argument("--batch-size", type=int, help="cells per forward pass")
    embed.add_argument(
        "--map-query",
        nargs="?",
        const="",
        metavar="KEY",
        help="cells are of unseen batches (all of one, or those of this column of obs): put them "
        "on top of the training cells",
    )
    embed.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
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
            adata,
            batch_size=args.batch_size,
            pool=args.pool,
            target_depth=_depth(args.target_depth),
            depth="bulk" if args.bulk else "cell",
            out=out if streamed else None,
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
        batch_size=args.batch_size,
        pool=args.pool,
        target_depth=_depth(args.target_depth),
        depth="bulk" if args.bulk else "cell",
    )
    print(f"{n_cells:,} cells in obsm['X_xtrimo'] of the data sets in {out}")
    return 0


def _check_map_query(args: argparse.Namespace, streamed: bool) -> None:
    if args.map_query is None:
        return
    if streamed or args.pool or args.target_depth or args.bulk:
        raise ValueError(
            "--map-query needs an --out of .h5ad, and does not go with --pool, --target-depth or "
            "--bulk."
        )


def _depth(text: str | None) -> str | float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
