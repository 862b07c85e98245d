"""``scxtrimo store`` and ``scxtrimo pretrain``."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the commands to a parser."""
    store = commands.add_parser(
        "store", help="shuffle the cells of many files into a store to pretrain from"
    )
    store.add_argument(
        "data",
        nargs="+",
        metavar="FILE",
        help=".h5ad, .zarr, .h5mu, .h5 of Cell Ranger, or folders with matrix.mtx",
    )
    store.add_argument("--out", required=True, metavar="STORE.zarr", help="store to write")
    store.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="genes of the store, one per line or a gene index; by default those of all files",
    )
    store.add_argument("--layer", default="auto", help="X, raw or a layer with the raw counts")
    store.add_argument("--gene-id-key", help="column of var with gene identifiers")
    store.add_argument(
        "--gene-aliases", metavar="FILE", help="table of HGNC, or 'hgnc' to download it once"
    )
    store.add_argument("--min-gene-overlap", type=float, default=0.25, metavar="F")
    store.add_argument("--min-genes", type=int, default=200, help="minimum of expressed genes")
    store.add_argument("--max-genes", type=int, help="maximum of expressed genes")
    store.add_argument("--keep-duplicates", action="store_true", help="keep identical cells")
    store.add_argument(
        "--validation-size",
        type=float,
        default=0.01,
        metavar="F",
        help="fraction held out",
    )
    store.add_argument(
        "--validation-file",
        action="append",
        default=[],
        metavar="FILE",
        help="a file whose cells are all held out",
    )
    store.add_argument("--obs-column", action="append", default=[], help="column of obs to keep")
    store.add_argument(
        "--skip-bad-files", action="store_true", help="skip files that cannot be used"
    )
    store.add_argument(
        "--memory", type=float, default=5e8, metavar="BYTES", help="memory for shuffling"
    )
    store.add_argument("--seed", type=int, default=0, help="seed of order and held-out cells")
    store.add_argument("--overwrite", action="store_true", help="replace an existing store")
    store.set_defaults(run=make_store)

    pretrain = commands.add_parser(
        "pretrain", help="pretrain a model on a store, or resume an interrupted run"
    )
    pretrain.add_argument("config", metavar="CONFIG.yaml", help="configuration of the run")
    pretrain.add_argument(
        "--dry-run", action="store_true", help="measure a few steps and estimate the whole run"
    )
    pretrain.set_defaults(run=run_pretraining)


def make_store(args: argparse.Namespace) -> int:
    from ..data.gene_table import read_genes
    from ..pretraining.store_writer import write_store

    store = write_store(
        args.data,
        args.out,
        vocabulary=None if args.vocabulary is None else read_genes(args.vocabulary),
        layer=args.layer,
        gene_id_key=args.gene_id_key,
        gene_aliases=args.gene_aliases,
        min_gene_overlap=args.min_gene_overlap,
        min_genes=args.min_genes,
        max_genes=args.max_genes,
        drop_duplicates=not args.keep_duplicates,
        validation_size=args.validation_size,
        validation_files=args.validation_file,
        obs_columns=args.obs_column,
        on_bad_file="skip" if args.skip_bad_files else "raise",
        memory=args.memory,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    report = store.report.dropna(axis="columns", how="all")
    print(f"\n{report.to_string(index=False, float_format='{:.3f}'.format, na_rep='-')}")
    n_validation = int(store.report["validation"].sum())
    print(
        f"\n{store.n_cells:,} cells to train on and {n_validation:,} held out x "
        f"{len(store.vocabulary):,} genes in {args.out}"
    )
    return 0


def run_pretraining(args: argparse.Namespace) -> int:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from ..pretraining.run import pretrain

    result = pretrain(args.config, dry_run=args.dry_run)
    rank_zero_only(print)(result)  # in one process only
    return 0
