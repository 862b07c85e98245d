"""``scxtrimo demo``."""

from __future__ import annotations

import argparse
from typing import Any

from ._shared import add_command, keywords


def add(commands: Any) -> None:
    """Add the command to a parser."""
    summary = "train on real cells, embed, cluster, annotate and draw them"
    option, flag = add_command(commands, "demo", run, summary)
    option("--data", metavar="FILE", help="cells with raw counts; by default PBMCs")
    option(
        "--out",
        metavar="DIR",
        help="directory to write to; by default scxtrimo-demo or, for cells.h5ad, cells-scxtrimo",
    )
    option("--layer", help="layer with the raw counts")
    option("--labels-key", help="column of obs with labels, to compare with and to learn from")
    option("--batch-key", help="column of obs with the batch")
    option("--max-epochs", type=int, help="passes over the cells")
    option("--seed", type=int, default=0, help="random seed")
    option("--modality", help="modality of a MuData; by default rna, or the only one")
    flag("--overwrite", help="replace existing results")


def run(args: argparse.Namespace) -> int:
    from ..demo import default_out, run_demo

    if args.out is None:
        args.out = default_out(args.data)
    tables = run_demo(**keywords(args))
    for title, table in (
        ("Embedding", tables.embedding),
        ("Labels of one half of the cells, learned from the other half", tables.annotation),
        ("Hidden genes of held-out cells", tables.hidden_genes),
    ):
        if table is not None:
            text = table.to_string(float_format=lambda x: f"{x:.3g}", na_rep="-")
            print(f"\n{title}\n{text}")
    print(f"\nWritten to {args.out}/: cells.h5ad, demo.png, model/")
    return 0
