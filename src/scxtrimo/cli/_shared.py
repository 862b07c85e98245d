"""Arguments and steps that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def add_query(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layer", help="layer with the raw counts, or X; by default as trained")
    parser.add_argument("--gene-id-key", help="column of var with gene identifiers")
    parser.add_argument(
        "--gene-aliases", metavar="FILE", help="table of HGNC, or 'hgnc' to download it once"
    )
    parser.add_argument("--min-gene-overlap", type=float, help="fraction of genes that is needed")
    parser.add_argument("--modality", help="modality of a MuData; by default rna, or the only one")


def add_overwrite(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what}")


def check_out(path: str, suffixes: Sequence[str], overwrite: bool) -> Path:
    """Return the path to write a result to, or raise an error if that is not possible."""
    out = Path(path).expanduser()
    if out.suffix not in suffixes:
        raise ValueError(f"--out {path} must end in {' or '.join(suffixes)}.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Choose another path, or pass --overwrite.")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"The directory of --out {path} does not exist. Create it first.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"The directory of --out {path} cannot be written to.")
    return out


def write_cells(adata: Any, out: Path) -> None:
    """Write cells, replacing an existing file only when the new one is complete."""
    from .._files import replacing

    with replacing(out) as partial:
        adata.write_h5ad(partial)


def check_keys(adata: Any, attribute: str, keys: Iterable[str], overwrite: bool) -> None:
    """Refuse to replace results that the data already have."""
    taken = [key for key in keys if key in getattr(adata, attribute)]
    if taken and not overwrite:
        raise ValueError(
            f"The cells have {attribute}[{taken[0]!r}] already. Pass --overwrite to replace it in "
            "the result."
        )


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
    from ..model.xtrimogene import XTrimoGene

    if args.checkpoint is None:
        return XTrimoGene.load(args.model, adata=False)
    if args.gene_index is None:
        raise ValueError("--checkpoint needs the --gene-index that comes with it.")
    return XTrimoGene.from_scfoundation(args.checkpoint, args.gene_index, args.weights)


def prepare_query(model: Any, adata: Any, args: argparse.Namespace) -> None:
    setup = {}
    if args.layer is not None:
        setup["layer"] = None if is_x(args.layer, adata) else args.layer
    if args.gene_id_key is not None:
        setup["gene_id_key"] = args.gene_id_key
    model.prepare_query_anndata(
        adata,
        gene_aliases=args.gene_aliases,
        min_gene_overlap=args.min_gene_overlap,
        **setup,
    )


def is_x(layer: str | None, data: Any) -> bool:
    """Return whether a layer of this name stands for ``data.X``."""
    return layer == "X" and "X" not in data.layers
