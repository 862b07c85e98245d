"""``scxtrimo store`` and ``scxtrimo pretrain``."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from ._shared import ALIASES, add_command, keywords


def add(commands: Any) -> None:
    """Add the commands to a parser."""
    summary = "shuffle the cells of many files into a store to pretrain from"
    option, flag = add_command(commands, "store", make_store, summary)
    several = partial(option, action="append", default=[])
    option(
        "data",
        nargs="+",
        metavar="FILE",
        help=".h5ad, .zarr, .h5mu, .h5 of Cell Ranger, or folders with matrix.mtx",
    )
    option("--out", required=True, metavar="STORE.zarr", help="store to write")
    option(
        "--vocabulary",
        metavar="FILE",
        help="genes of the store, one per line, a gene index or a gene table; by default those "
        "of all files",
    )
    option("--layer", default="auto", help="X, raw or a layer with the raw counts")
    option("--gene-id-key", help="column of var with gene identifiers")
    option("--gene-aliases", metavar="FILE", help=ALIASES)
    option("--min-gene-overlap", type=float, default=0.25, metavar="F")
    option("--min-genes", type=int, default=200, help="minimum of expressed genes")
    option("--max-genes", type=int, help="maximum of expressed genes")
    option(
        "--keep-duplicates",
        action="store_false",
        dest="drop_duplicates",
        help="keep identical cells",
    )
    option("--validation-size", type=float, default=0.01, metavar="F", help="fraction held out")
    several(
        "--validation-file",
        dest="validation_files",
        metavar="FILE",
        help="a file whose cells are all held out",
    )
    several(
        "--exclude",
        metavar="FILE",
        help="a file with cells, to judge the model on, that must not be in the store",
    )
    several("--obs-column", dest="obs_columns", metavar="OBS_COLUMN", help="column of obs to keep")
    option(
        "--skip-bad-files",
        action="store_const",
        const="skip",
        default="raise",
        dest="on_bad_file",
        help="skip files that cannot be used",
    )
    option("--memory", type=float, default=5e8, metavar="BYTES", help="memory for shuffling")
    option("--seed", type=int, default=0, help="seed of order and held-out cells")
    flag("--overwrite", help="replace an existing store")

    summary = "pretrain a model on a store, or resume an interrupted run"
    option, flag = add_command(commands, "pretrain", run_pretraining, summary)
    option("config", metavar="CONFIG.yaml", help="configuration of the run")
    flag("--dry-run", help="measure a few steps and estimate the whole run")


def make_store(args: argparse.Namespace) -> int:
    from ..data.gene_table import read_genes
    from ..pretraining.store_writer import write_store

    if args.vocabulary is not None:
        args.vocabulary = read_genes(args.vocabulary)
    store = write_store(args.data, **keywords(args, but="data"))
    report = store.report.dropna(axis="columns", how="all")
    report["file"] = [shortened(name) for name in report["file"]]
    print(f"\n{report.to_string(index=False, float_format='{:.3f}'.format, na_rep='-')}")
    n_validation = int(store.report["validation"].sum())
    print(
        f"\n{store.n_cells:,} cells to train on and {n_validation:,} held out x "
        f"{len(store.vocabulary):,} genes in {args.out}"
    )
    return 0


def shortened(path: str, n_max: int = 40) -> str:
    """Return the end of a path, which says which file it is."""
    return path if len(path) <= n_max else f"...{path[3 - n_max :]}"


def run_pretraining(args: argparse.Namespace) -> int:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from ..pretraining.run import pretrain

    result = pretrain(args.config, dry_run=args.dry_run)
    rank_zero_only(print)(result)  # in one process only
    return 0
