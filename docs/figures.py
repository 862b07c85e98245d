"""Make the pictures of the documentation that are not part of a benchmark.

python docs/figures.py
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

import scxtrimo

STATIC = Path(__file__).parent / "_static"


def annotation() -> None:
    """Cross-validated annotation of the bundled cells."""
    adata = scxtrimo.datasets.pbmc68k()
    scxtrimo.model.XTrimoGeneAnnotator.setup_anndata(adata, labels_key="bulk_labels")
    annotator = scxtrimo.model.XTrimoGeneAnnotator(adata, seed=0)
    annotator.train()
    held_out, labels = annotator.held_out, annotator.held_out_labels
    predicted, confidence = held_out.idxmax(axis=1), held_out.max(axis=1)
    figure = plt.figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 1))
    scxtrimo.pl.annotation_confusion(labels, predicted, ax=left.subplots())
    above, below = right.subplots(2)
    scxtrimo.pl.coverage_accuracy(labels, predicted, confidence, ax=above)
    scxtrimo.pl.calibration(labels, predicted, confidence, ax=below)
    figure.savefig(STATIC / "annotation.png", dpi=110)
    print(scxtrimo.tl.annotation_report(labels, predicted).round(2).to_string())
    genes = annotator.rank_label_genes()
    print(genes.groupby("group").head(5).round(3).to_string())


if __name__ == "__main__":
    annotation()
