"""``scxtrimo embed`` and ``scxtrimo convert``."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

from ._shared import add_command, add_query, check_keys, check_out, prepare_query, write_cells


def add(commands: Any) -> None:
    """Add the commands to a parser."""
    summary = "embed cells with a saved or a published model"
    option, flag = add_command(commands, "embed", embed_cells, summary)
    option(
        "data",
        metavar="FILE",
        help="cells with raw counts: .h5ad, .h5mu, .zarr, .h5 of Cell Ranger, a folder with "
        "matrix.mtx, or a store of any size",
    )
    option(
        "--out",
        required=True,
        metavar="FILE",
        help=".h5ad: the cells with obsm['X_xtrimo']; .zarr: only names and embedding, streamed",
    )
    option("--model", metavar="DIR", help="a saved or converted model")
    _add_checkpoint(option, required=False)
    add_query(option)
    flag(
        "--overwrite",
        help="replace an existing --out, and an embedding that the cells already have",
    )
    option("--pool", help="all, max, mean, s or t; by default the model's own")
    option("--target-depth", metavar="DEPTH", help="t4, f2, a1 or total counts")
    flag("--bulk", help="profiles are bulk, not single cells")
    option(
        "--map-query",
        nargs="?",
        const="",
        metavar="KEY",
        help="the cells are from new batches (a single one, or those in this column of obs): map "
        "them onto the training cells",
    )

    summary = "convert a published checkpoint into our format"
    option, flag = add_command(commands, "convert", convert_checkpoint, summary)
    _add_checkpoint(option, required=True)
    option("--out", required=True, metavar="DIR", help="directory to write to")
    flag("--overwrite", help="replace an existing model")


def _add_checkpoint(option: Any, required: bool) -> None:
    option("--checkpoint", required=required, metavar="models.ckpt", help="a published checkpoint")
    option(
        "--gene-index", required=required, metavar="FILE", help="the gene index that comes with it"
    )
    versions = ("cell", "gene", "rde")
    option("--weights", default="cell", choices=versions, help="which of the published models")


def embed_cells(args: argparse.Namespace) -> int:
    from ..data.reading import read_cells
    from ..pretraining.store import is_store

    if (args.model is None) == (args.checkpoint is None):
        raise ValueError("Give either --model or --checkpoint with --gene-index.")
    streamed, is_mapped = args.out.endswith(".zarr"), args.map_query is not None
    if streamed and Path(args.out).exists():
        raise FileExistsError(f"{args.out} exists. Choose another path, or remove it first.")
    out = check_out(args.out, (".h5ad", ".zarr"), args.overwrite)
    if is_mapped and (streamed or args.pool or args.target_depth or args.bulk):
        raise ValueError(
            "--map-query needs an --out of .h5ad, and cannot be combined with --pool, "
            "--target-depth or --bulk."
        )
    if is_store(args.data):
        return _embed_store(args, out)
    adata = read_cells(args.data, args.modality, backed=streamed)
    if not streamed:
        check_keys(adata, "obsm", ["X_xtrimo"], args.overwrite)
    model = _make_model(args)
    prepare_query(model, adata, args)
    if is_mapped:
        embedding = model.map_query(adata, args.map_query or None, args.batch_size)
    else:
        to = out if streamed else None
        embedding = model.get_latent_representation(adata, out=to, **_options(args))
    if not streamed:
        adata.obsm["X_xtrimo"] = embedding
        write_cells(adata, out)
    n_cells, n_latent = embedding.shape
    print(f"{n_cells:,} cells x {n_latent} dimensions in obsm['X_xtrimo'] of {out}")
    return 0


def _embed_store(args: argparse.Namespace, out: Path) -> int:
    from ..pretraining.embed import embed_store

    if out.suffix != ".zarr":
        raise ValueError("The cells of a store are streamed: --out must end in .zarr.")
    model = _make_model(args)
    n_cells = embed_store(
        model, args.data, out, lambda cells: prepare_query(model, cells, args), **_options(args)
    )
    print(f"{n_cells:,} cells in obsm['X_xtrimo'] of the data sets in {out}")
    return 0


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
    _make_model(args).save(args.out, overwrite=args.overwrite)
    print(f"Written to {args.out}. Load it with `scxtrimo.model.XTrimoGene.load({args.out!r})`.")
    return 0


def _make_model(args: argparse.Namespace) -> Any:
    from ..model.xtrimogene import XTrimoGene

    if args.checkpoint is None:
        return XTrimoGene.load(args.model, adata=False)
    if args.gene_index is None:
        raise ValueError("--checkpoint needs the --gene-index that comes with it.")
    return XTrimoGene.from_scfoundation(args.checkpoint, args.gene_index, args.weights)
