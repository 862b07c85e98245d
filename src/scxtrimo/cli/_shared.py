"""Arguments that several commands have, and what is made of them."""

from __future__ import annotations

import argparse
from typing import Any


def add_query(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layer", help="layer with the raw counts, or X; by default as trained")
    parser.add_argument("--gene-id-key", help="column of var with gene identifiers")
    parser.add_argument(
        "--gene-aliases", metavar="FILE", help="table of HGNC, or 'hgnc' to download it once"
    )
    parser.add_argument("--min-gene-overlap", type=float, help="part of the genes that is needed")


def add_checkpoint(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--checkpoint", required=required, metavar="models.ckpt", help="a published checkpoint"
    )
    parser.add_argument(
        "--gene-index", required=required, metavar="FILE", help="the gene index that comes with it"
    )
    parser.add_argument(
        "--weights",
        default="cell",
        choices=("cell", "gene", "rde"),
        help="which of the published models",
    )


def make_model(args: argparse.Namespace) -> Any:
    from ..model import XTrimoGene

    if args.checkpoint is None:
        return XTrimoGene.load(args.model, adata=False)
    if args.gene_index is None:
        raise ValueError("--checkpoint needs the --gene-index that comes with it.")
    return XTrimoGene.from_scfoundation(args.checkpoint, args.gene_index, args.weights)


def prepare_query(model: Any, adata: Any, args: argparse.Namespace) -> None:
    setup = {"layer": args.layer, "gene_id_key": args.gene_id_key}
    setup = {key: value for key, value in setup.items() if value is not None}
    if is_x(args.layer, adata):
        setup["layer"] = None
    model.prepare_query_anndata(
        adata,
        gene_aliases=args.gene_aliases,
        min_gene_overlap=args.min_gene_overlap,
        **setup,
    )


def is_x(layer: str | None, data: Any) -> bool:
    """Return whether a layer by this name means ``data.X``."""
    return layer == "X" and "X" not in data.layers
