"""``scxtrimo annotate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._shared import (
    add_overwrite,
    add_query,
    check_keys,
    check_out,
    is_x,
    prepare_query,
    write_cells,
)


def add(commands: Any) -> None:
    """Add the command to a parser."""
    annotate = commands.add_parser(
        "annotate", help="learn cell types from labelled cells and give them to others"
    )
    annotate.add_argument(
        "data",
        metavar="FILE",
        help="cells to annotate, with raw counts: .h5ad, .h5mu, .zarr, .h5 of Cell Ranger, or a "
        "folder with matrix.mtx",
    )
    annotate.add_argument(
        "--out", required=True, metavar="FILE.h5ad", help="the cells with obs['xtrimo_label']"
    )
    annotate.add_argument("--reference", metavar="FILE", help="labelled cells to learn from")
    annotate.add_argument("--labels-key", help="column of obs of the reference with the labels")
    annotate.add_argument("--unlabeled", metavar="NAME", help="what this column calls no label")
    annotate.add_argument("--batch-key", help="column of obs of the reference with the batch")
    annotate.add_argument("--reference-modality", help="modality of a reference that is a MuData")
    annotate.add_argument("--reference-layer", help="layer of the reference with the raw counts")
    annotate.add_argument(
        "--together",
        action="store_true",
        help="train on the reference and the cells to annotate together, as batches to be "
        "integrated: for cells that differ from the reference as a whole",
    )
    annotate.add_argument("--model", metavar="DIR", help="a saved annotator, not a reference")
    annotate.add_argument("--save-model", metavar="DIR", help="where to save the annotator")
    add_query(annotate)
    annotate.add_argument(
        "--min-confidence",
        type=float,
        default=0.0,
        metavar="P",
        help="cells of which no label is as probable are called unknown",
    )
    annotate.add_argument(
        "--unknown", default="unknown", metavar="NAME", help="what these cells are called"
    )
    add_overwrite(annotate, "an --out that exists, and columns that the cells have")
    annotate.add_argument("--key-added", default="xtrimo_label", help="column of obs for labels")
    annotate.add_argument("--batch-size", type=int, help="cells per forward pass")
    annotate.add_argument("--seed", type=int, default=0, help="seed of everything")
    annotate.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..data.reading import read_cells

    if (args.model is None) == (args.reference is None):
        raise ValueError("Give either --reference with --labels-key, or --model.")
    if args.together and (args.model is not None or args.batch_key is not None):
        raise ValueError("--together makes the batches itself, and needs a --reference.")
    if args.reference is not None and args.labels_key is None:
        raise ValueError("--reference needs --labels-key, the column of obs with the labels.")
    if not 0 <= args.min_confidence <= 1:
        raise ValueError(f"--min-confidence {args.min_confidence} must be between 0 and 1.")
    out = check_out(args.out, (".h5ad",), args.overwrite)
    if args.save_model is not None and Path(args.save_model).exists():
        raise FileExistsError(f"{args.save_model} exists. Choose another path for --save-model.")
    adata = read_cells(args.data, args.modality)
    keys = (args.key_added, f"{args.key_added}_confidence")
    check_keys(adata, "obs", keys, args.overwrite)
    if args.together:
        _annotate_together(args, adata)
    else:
        _annotate(args, adata)
    write_cells(adata, out)
    label, confidence = (adata.obs[args.key_added + suffix] for suffix in ("", "_confidence"))
    mean = confidence.groupby(label, observed=True).mean().round(3)
    table = label.value_counts().to_frame("cells").assign(confidence=mean)
    table.index.name = None
    print(f"\n{table.to_string()}\n\n{len(adata):,} cells in obs[{args.key_added!r}] of {out}")
    return 0


def _annotate(args: argparse.Namespace, adata: Any) -> None:
    """Annotate with a saved annotator, or with one that learned from the reference."""
    from ..annotation import XTrimoGeneAnnotator
    from ..annotation.tools import check_call
    from ..data.reading import read_cells

    if args.model is not None:
        annotator = XTrimoGeneAnnotator.load(args.model, adata=False)
    else:
        reference = read_cells(args.reference, args.reference_modality)
        XTrimoGeneAnnotator.setup_anndata(
            reference,
            labels_key=args.labels_key,
            unlabeled_category=args.unlabeled,
            layer=args.reference_layer,
            batch_key=args.batch_key,
        )
        annotator = XTrimoGeneAnnotator(reference, seed=args.seed)
    # Wrong arguments and genes that do not match raise here, before training.
    check_call(annotator.labels, args.min_confidence, None, args.unknown)
    prepare_query(annotator, adata, args)
    if args.model is None:
        annotator.train()
        _save_and_report(args, annotator)
    annotator.annotate(
        adata,
        key_added=args.key_added,
        min_confidence=args.min_confidence,
        unknown=args.unknown,
        batch_size=args.batch_size,
    )


def _annotate_together(args: argparse.Namespace, adata: Any) -> None:
    """Annotate with a model of the reference and the cells to annotate."""
    from ..annotation import annotate_together
    from ..data.reading import read_cells

    if args.gene_aliases or args.min_gene_overlap:
        raise ValueError(
            "--together matches genes by name: leave the other options for genes out."
        )
    reference = read_cells(args.reference, args.reference_modality)
    annotator = annotate_together(
        reference,
        adata,
        args.labels_key,
        args.unlabeled,
        reference_layer=None if is_x(args.reference_layer, reference) else args.reference_layer,
        query_layer=None if is_x(args.layer, adata) else args.layer,
        gene_id_key=args.gene_id_key,
        key_added=args.key_added,
        min_confidence=args.min_confidence,
        unknown=args.unknown,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    _save_and_report(args, annotator)


def _save_and_report(args: argparse.Namespace, annotator: Any) -> None:
    """Save a new annotator if asked to, and print how good it is."""
    from ..annotation.tools import annotation_report

    if args.save_model is not None:
        annotator.save(args.save_model)
    try:
        predicted = annotator.held_out.idxmax(axis=1)
    except ValueError:
        print("\nThe reference has too few labelled cells for a cross-validation.")
        return
    report = annotation_report(annotator.held_out_labels, predicted, unknown=None)
    print("\nCross-validated on the reference:")
    print(report[["precision", "recall", "f1", "n_cells"]].round(3).to_string())
