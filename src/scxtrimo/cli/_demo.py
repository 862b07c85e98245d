"""``scxtrimo demo``."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the command to a parser."""
    demo = commands.add_parser("demo", help="train on real cells, embed, cluster and draw them")
    demo.add_argument("--data", metavar="FILE", help="cells with raw counts; by default PBMCs")
    demo.add_argument(
        "--out",
        metavar="DIR",
        help="directory to write to; by default scxtrimo-demo or, for cells.h5ad, cells-scxtrimo",
    )
    demo.add_argument("--layer", help="layer with the raw counts")
    demo.add_argument("--labels-key", help="column of obs with labels to compare with")
    demo.add_argument("--batch-key", help="column of obs with the batch")
    demo.add_argument("--max-epochs", type=int, help="passes over the cells")
    demo.add_argument("--seed", type=int, default=0, help="random seed")
    demo.add_argument("--modality", help="modality of a MuData; by default rna, or the only one")
    demo.add_argument("--overwrite", action="store_true", help="replace existing results")
    demo.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..demo import default_out, run_demo

    out = default_out(args.data) if args.out is None else args.out
    table = run_demo(
        data=args.data,
        out=out,
        layer=args.layer,
        labels_key=args.labels_key,
        batch_key=args.batch_key,
        max_epochs=args.max_epochs,
        seed=args.seed,
        modality=args.modality,
        overwrite=args.overwrite,
    )
    print(f"\n{table.to_string(float_format=lambda x: f'{x:.3g}', na_rep='-')}")
    print(f"\nWritten to {out}/: cells.h5ad, umap.png, model/")
    return 0
