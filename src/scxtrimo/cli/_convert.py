"""``scxtrimo convert``."""

from __future__ import annotations

import argparse
from typing import Any

from ._shared import add_checkpoint, make_model


def add(commands: Any) -> None:
    """Add the command to a parser."""
    convert = commands.add_parser("convert", help="turn a published checkpoint into our format")
    add_checkpoint(convert, required=True)
    convert.add_argument("--out", required=True, metavar="DIR", help="where to write")
    convert.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    convert.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    model = make_model(args)
    model.save(args.out, overwrite=args.overwrite)
    print(f"Written to {args.out}. Load it with `scxtrimo.model.XTrimoGene.load({args.out!r})`.")
    return 0
