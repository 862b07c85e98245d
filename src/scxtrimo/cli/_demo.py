"""``scxtrimo demo``."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the command to a parser."""
    demo = commands.add_parser("demo", help="train on real cells, embed, cluster and draw them")
    demo.add_argument("--data", metavar="FILE.h5ad", help="your own cells with raw counts")
    demo.add_argument("--out", default="scxtrimo-demo", metavar="DIR", help="where to write")
    demo.add_argument("--layer", help="layer with the raw counts")
    demo.add_argument("--labels-key", help="column of obs with labels to compare with")
    demo.add_argument("--batch-key", help="column of obs with the batch")
    demo.add_argument("--max-epochs", type=int, help="passes over the cells")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything")
    demo.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..demo import run_demo  # heavy imports only where they are needed

    table = run_demo(
        data=args.data,
        out=args.out,
        layer=args.layer,
        labels_key=args.labels_key,
        batch_key=args.batch_key,
        max_epochs=args.max_epochs,
        seed=args.seed,
    )
    print(f"\n{table.to_string(float_format=lambda x: f'{x:.3g}', na_rep='-')}")
    print(f"\nWritten to {args.out}/: cells.h5ad, umap.png, model/")
    return 0
