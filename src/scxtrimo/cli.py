"""The command line. It parses and calls the public API."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BATCH = "scxtrimo_batch"  # of cells that are trained on together


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = _parser().parse_args(argv)
    if args.version:
        from importlib.metadata import version

        print(version("scxtrimo"))
        return 0
    if args.command is None:
        _parser().print_help()
        return 2
    try:
        commands = {"demo": _demo, "embed": _embed, "annotate": _annotate, "convert": _convert}
        return commands[args.command](args)
    except (ValueError, TypeError, OSError) as error:
        print(f"scxtrimo: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scxtrimo", description="xTrimoGene for the scverse.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", title="commands")

    demo = commands.add_parser("demo", help="train on real cells, embed, cluster and draw them")
    demo.add_argument("--data", metavar="FILE.h5ad", help="your own cells with raw counts")
    demo.add_argument("--out", default="scxtrimo-demo", metavar="DIR", help="where to write")
    demo.add_argument("--layer", help="layer with the raw counts")
    demo.add_argument("--labels-key", help="column of obs with labels to compare with")
    demo.add_argument("--batch-key", help="column of obs with the batch")
    demo.add_argument("--max-epochs", type=int, help="passes over the cells")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything")

    embed = commands.add_parser("embed", help="embed cells with a saved or a published model")
    embed.add_argument("data", metavar="FILE.h5ad", help="cells with raw counts")
    embed.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help=".h5ad: the cells with obsm['X_xtrimo']; .zarr: names and embedding alone, streamed",
    )
    embed.add_argument("--model", metavar="DIR", help="a model that was saved or converted")
    _add_checkpoint(embed, required=False)
    _add_query(embed)
    embed.add_argument("--pool", help="all, max, mean, s or t; by default the model's own")
    embed.add_argument("--target-depth", metavar="DEPTH", help="t4, f2, a1 or total counts")
    embed.add_argument("--bulk", action="store_true", help="profiles are bulk, not single cells")
    embed.add_argument("--batch-size", type=int, help="cells per forward pass")
    embed.add_argument(
        "--map-query",
        nargs="?",
        const="",
        metavar="KEY",
        help="cells are of unseen batches (all of one, or those of this column of obs): put them "
        "on top of the training cells",
    )

    annotate = commands.add_parser(
        "annotate", help="learn cell types from labelled cells and give them to others"
    )
    annotate.add_argument("data", metavar="FILE.h5ad", help="cells to annotate, with raw counts")
    annotate.add_argument(
        "--out", required=True, metavar="FILE.h5ad", help="the cells with obs['xtrimo_label']"
    )
    annotate.add_argument("--reference", metavar="FILE.h5ad", help="labelled cells to learn from")
    annotate.add_argument("--labels-key", help="column of obs of the reference with the labels")
    annotate.add_argument("--unlabeled", metavar="NAME", help="what this column calls no label")
    annotate.add_argument("--batch-key", help="column of obs of the reference with the batch")
    annotate.add_argument("--reference-layer", help="layer of the reference with the raw counts")
    annotate.add_argument(
        "--together",
        action="store_true",
        help="train on the reference and the cells to annotate together, as batches to be "
        "integrated: for cells that differ from the reference as a whole",
    )
    annotate.add_argument("--model", metavar="DIR", help="a saved annotator, not a reference")
    annotate.add_argument("--save-model", metavar="DIR", help="where to save the annotator")
    _add_query(annotate)
    annotate.add_argument(
        "--min-confidence",
        type=float,
        default=0.0,
        metavar="P",
        help="cells of which no label is as probable are called unknown",
    )
    annotate.add_argument("--key-added", default="xtrimo_label", help="column of obs for labels")
    annotate.add_argument("--batch-size", type=int, help="cells per forward pass")
    annotate.add_argument("--seed", type=int, default=0, help="seed of everything")

    convert = commands.add_parser("convert", help="turn a published checkpoint into our format")
    _add_checkpoint(convert, required=True)
    convert.add_argument("--out", required=True, metavar="DIR", help="where to write")
    convert.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    return parser


def _add_query(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layer", help="layer with the raw counts, or X; by default as trained")
    parser.add_argument("--gene-id-key", help="column of var with gene identifiers")
    parser.add_argument(
        "--gene-aliases", metavar="FILE", help="table of HGNC, or 'hgnc' to download it once"
    )
    parser.add_argument("--min-gene-overlap", type=float, help="part of the genes that is needed")


def _add_checkpoint(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--checkpoint", required=required, metavar="models.ckpt", help="a published checkpoint"
    )
    parser.add_argument(
        "--gene-index", required=required, metavar="FILE", help="the gene index that comes with it"
    )
    parser.add_argument(
        "--weights",
        default="cell",
        choices=("cell", "gene", "rde"),
        help="which of the published models",
    )


def _demo(args: argparse.Namespace) -> int:
    from .demo import run_demo  # heavy imports only where they are needed

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


def _model(args: argparse.Namespace) -> Any:
    from .model import XTrimoGene

    if args.checkpoint is None:
        return XTrimoGene.load(args.model, adata=False)
    if args.gene_index is None:
        raise ValueError("--checkpoint needs the --gene-index that comes with it.")
    return XTrimoGene.from_scfoundation(args.checkpoint, args.gene_index, args.weights)


def _embed(args: argparse.Namespace) -> int:
    import anndata

    if (args.model is None) == (args.checkpoint is None):
        raise ValueError("Give either --model or --checkpoint with --gene-index.")
    out = Path(args.out)
    if out.suffix not in (".h5ad", ".zarr"):
        raise ValueError(f"--out {out} must end in .h5ad or .zarr.")
    if out.exists():
        raise FileExistsError(f"{out} exists. Choose another path or remove it first.")
    if not Path(args.data).is_file():
        raise FileNotFoundError(f"{args.data} does not exist.")
    streamed = out.suffix == ".zarr"
    _check_map_query(args, streamed)
    adata = anndata.read_h5ad(args.data, backed="r" if streamed else None)
    model = _model(args)
    _prepare_query(model, adata, args)
    if args.map_query is not None:
        embedding = model.map_query(adata, args.map_query or None, args.batch_size)
    else:
        embedding = model.get_latent_representation(
            adata,
            batch_size=args.batch_size,
            pool=args.pool,
            target_depth=_depth(args.target_depth),
            depth="bulk" if args.bulk else "cell",
            out=out if streamed else None,
        )
    if not streamed:
        adata.obsm["X_xtrimo"] = embedding
        adata.write_h5ad(out)
    n_cells, n_latent = embedding.shape
    print(f"{n_cells:,} cells x {n_latent} dimensions in obsm['X_xtrimo'] of {out}")
    return 0


def _prepare_query(model: Any, adata: Any, args: argparse.Namespace) -> None:
    setup = {"layer": args.layer, "gene_id_key": args.gene_id_key}
    setup = {key: value for key, value in setup.items() if value is not None}
    if _is_x(args.layer, adata):
        setup["layer"] = None
    model.prepare_query_anndata(
        adata,
        gene_aliases=args.gene_aliases,
        min_gene_overlap=args.min_gene_overlap,
        **setup,
    )


def _annotate(args: argparse.Namespace) -> int:
    import anndata

    out = Path(args.out)
    if (args.model is None) == (args.reference is None):
        raise ValueError("Give either --reference with --labels-key, or --model.")
    if args.together and (args.model is not None or args.batch_key is not None):
        raise ValueError("--together makes the batches itself, and needs a --reference.")
    if args.reference is not None and args.labels_key is None:
        raise ValueError("--reference needs --labels-key, the column of obs with the labels.")
    if not 0 <= args.min_confidence <= 1:
        raise ValueError(f"--min-confidence {args.min_confidence} must be between 0 and 1.")
    if out.suffix != ".h5ad":
        raise ValueError(f"--out {out} must end in .h5ad.")
    if out.exists():
        raise FileExistsError(f"{out} exists. Choose another path or remove it first.")
    for path in (args.data, args.reference):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"The directory of --out {out} does not exist.")
    if args.save_model is not None and Path(args.save_model).exists():
        raise FileExistsError(f"{args.save_model} exists. Choose another path for --save-model.")
    adata = anndata.read_h5ad(args.data)
    annotator = _annotator(args, adata)
    annotated = adata
    if args.together:  # the registered cells, which belong to a batch; the reference comes first
        annotated = annotator.adata
    annotator.annotate(
        annotated,
        key_added=args.key_added,
        min_confidence=args.min_confidence,
        batch_size=args.batch_size,
    )
    for key in (args.key_added, f"{args.key_added}_confidence"):
        adata.obs[key] = annotated.obs[key].iloc[-adata.n_obs :].to_numpy()
    adata.obs[args.key_added] = adata.obs[args.key_added].astype("category")
    adata.write_h5ad(out)
    label, confidence = (adata.obs[args.key_added + suffix] for suffix in ("", "_confidence"))
    mean = confidence.groupby(label, observed=True).mean().round(3)
    table = label.value_counts().to_frame("cells").assign(confidence=mean)
    table.index.name = None
    print(f"\n{table.to_string()}\n\n{len(adata):,} cells in obs[{args.key_added!r}] of {out}")
    return 0


def _annotator(args: argparse.Namespace, adata: Any) -> Any:
    """Return a saved annotator, or one that learned from the reference."""
    import anndata

    from .model import XTrimoGeneAnnotator
    from .tl import annotation_report

    if args.model is not None:
        annotator = XTrimoGeneAnnotator.load(args.model, adata=False)
        _prepare_query(annotator, adata, args)
        return annotator
    reference = anndata.read_h5ad(args.reference)
    setup = {"layer": args.reference_layer, "batch_key": args.batch_key}
    if args.together:
        reference = _together(reference, adata, args)
        setup = {"layer": None, "batch_key": BATCH}
    XTrimoGeneAnnotator.setup_anndata(
        reference, labels_key=args.labels_key, unlabeled_category=args.unlabeled, **setup
    )
    annotator = XTrimoGeneAnnotator(reference, seed=args.seed)
    if not args.together:
        _prepare_query(annotator, adata, args)  # before any work: its genes may not do
    annotator.train()
    if args.save_model is not None:
        annotator.save(args.save_model)
    try:
        predicted = annotator.held_out.idxmax(axis=1)
    except ValueError:
        print("\nThe reference has too few labelled cells for a cross-validation.")
        return annotator
    report = annotation_report(annotator.held_out_labels, predicted)
    print("\nCross-validated on the reference:")
    print(report[["precision", "recall", "f1", "n_cells"]].round(3).to_string())
    return annotator


def _together(reference: Any, adata: Any, args: argparse.Namespace) -> Any:
    """Return reference and query on the genes they share, the query as a batch without labels."""
    import anndata

    from .data.fields import get_column

    if args.gene_aliases or args.min_gene_overlap:
        raise ValueError(
            "--together matches genes by name: leave the other options for genes out."
        )
    labels = get_column(reference.obs, "obs", args.labels_key)
    parts = []
    for data, layer in ((reference, args.reference_layer), (adata, args.layer)):
        use_x = layer is None or _is_x(layer, data)
        part = anndata.AnnData(data.X if use_x else data.layers[layer])
        key = args.gene_id_key if args.gene_id_key in data.var else None
        part.obs_names = data.obs_names
        part.var_names = data.var_names if key is None else data.var[key].astype(str)
        if len(set(part.var_names)) < part.n_vars:
            raise ValueError("Gene names are not unique. Name a --gene-id-key.")
        parts.append(part)
    both = anndata.concat(
        {"reference": parts[0], "query": parts[1]}, label=BATCH, index_unique="-", join="inner"
    )
    if both.n_vars == 0:
        raise ValueError(f"{args.data} and {args.reference} have no gene in common.")
    both.obs[args.labels_key] = [*labels, *[None] * adata.n_obs]
    return both


def _is_x(layer: str | None, data: Any) -> bool:
    """Return whether a layer by this name means ``data.X``."""
    return layer == "X" and "X" not in data.layers


def _check_map_query(args: argparse.Namespace, streamed: bool) -> None:
    if args.map_query is None:
        return
    if streamed or args.pool or args.target_depth or args.bulk:
        raise ValueError(
            "--map-query needs an --out of .h5ad, and does not go with --pool, --target-depth or "
            "--bulk."
        )


def _convert(args: argparse.Namespace) -> int:
    model = _model(args)
    model.save(args.out, overwrite=args.overwrite)
    print(f"Written to {args.out}. Load it with `scxtrimo.model.XTrimoGene.load({args.out!r})`.")
    return 0


def _depth(text: str | None) -> str | float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
