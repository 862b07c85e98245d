"""Arguments and steps that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ALIASES = "table of HGNC, or 'hgnc' to download it once"
NOT_OPTIONS = {"command", "debug", "run", "version"}


def keywords(args: argparse.Namespace, but: str = "") -> dict[str, Any]:
    """Return the options of a command as keyword arguments."""
    return {name: x for name, x in vars(args).items() if name not in NOT_OPTIONS | {but}}


def add_command(commands: Any, name: str, run: Callable, summary: str) -> tuple[Any, Any]:
    """Add a command; return functions that add an option and a flag to it."""
    parser = commands.add_parser(name, help=summary)
    parser.set_defaults(run=run)
    return parser.add_argument, partial(parser.add_argument, action="store_true")


def add_query(option: Any) -> None:
    option("--layer", help="layer with the raw counts, or X; by default as trained")
    option("--gene-id-key", help="column of var with gene identifiers")
    option("--gene-aliases", metavar="FILE", help=ALIASES)
    option("--min-gene-overlap", type=float, help="fraction of genes that is needed")
    option("--modality", help="modality of a MuData; by default rna, or the only one")
    option("--batch-size", type=int, help="cells per forward pass")


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


def prepare_query(model: Any, adata: Any, args: argparse.Namespace) -> None:
    setup: dict[str, Any] = {} if args.layer is None else {"layer": layer_of(args.layer, adata)}
    if args.gene_id_key is not None:
        setup["gene_id_key"] = args.gene_id_key
    setup |= {"gene_aliases": args.gene_aliases, "min_gene_overlap": args.min_gene_overlap}
    model.prepare_query_anndata(adata, **setup)


def layer_of(name: str | None, data: Any) -> str | None:
    """Return the layer of this name, ``None`` if it stands for ``data.X``."""
    return None if name == "X" and "X" not in data.layers else name
