"""``scxtrimo pretrain``."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the command to a parser."""
    pretrain = commands.add_parser(
        "pretrain", help="pretrain a model on a store, or go on with a run that was interrupted"
    )
    pretrain.add_argument("config", metavar="CONFIG.yaml", help="the run")
    pretrain.add_argument(
        "--dry-run", action="store_true", help="measure a few steps and say what the run will take"
    )
    pretrain.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from ..pretraining.run import pretrain

    result = pretrain(args.config, dry_run=args.dry_run)
    rank_zero_only(print)(result)  # once, not in every process
    return 0
