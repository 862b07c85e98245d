"""``scxtrimo annotate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._shared import (
    add_command,
    add_query,
    check_keys,
    check_out,
    layer_of,
    prepare_query,
    write_cells,
)


def add(commands: Any) -> None:
    """Add the command to a parser."""
    summary = "learn cell types from labelled cells and give them to others"
    option, flag = add_command(commands, "annotate", run, summary)
    option(
        "data",
        metavar="FILE",
        help="cells to annotate, with raw counts: .h5ad, .h5mu, .zarr, .h5 of Cell Ranger, or a "
        "folder with matrix.mtx",
    )
    option("--out", required=True, metavar="FILE.h5ad", help="the cells with obs['xtrimo_label']")
    option("--reference", metavar="FILE", help="labelled cells to learn from")
    option("--labels-key", help="column of obs of the reference with the labels")
    option("--unlabeled", metavar="NAME", help="what this column calls no label")
    option("--batch-key", help="column of obs of the reference with the batch")
    option("--reference-modality", help="modality of a reference that is a MuData")
    option("--reference-layer", help="layer of the reference with the raw counts")
    flag(
        "--together",
        help="train on the reference and the cells to annotate together, as batches to be "
        "integrated: for cells that differ from the reference as a whole",
    )
    option("--model", metavar="DIR", help="a saved annotator, not a reference")
    option("--save-model", metavar="DIR", help="where to save the annotator")
    add_query(option)
    option(
        "--min-confidence",
        type=float,
        default=0.0,
        metavar="P",
        help="cells of which no label is as probable are called unknown",
    )
    option("--unknown", default="unknown", metavar="NAME", help="what these cells are called")
    flag("--overwrite", help="replace an --out that exists, and columns that the cells have")
    option("--key-added", default="xtrimo_label", help="column of obs for labels")
    option("--seed", type=int, default=0, help="seed of everything")


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
    (_annotate_together if args.together else _annotate)(args, adata)
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
    annotator.annotate(adata, **_options(args))


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
        reference_layer=layer_of(args.reference_layer, reference),
        query_layer=layer_of(args.layer, adata),
        gene_id_key=args.gene_id_key,
        seed=args.seed,
        **_options(args),
    )
    _save_and_report(args, annotator)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("key_added", "min_confidence", "unknown", "batch_size")
    return {name: getattr(args, name) for name in names}


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
