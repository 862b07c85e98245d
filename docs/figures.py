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
    adata = scxtrimo.pp.pbmc68k_counts()
    scxtrimo.model.XTrimoGeneAnnotator.setup_anndata(adata, labels_key="bulk_labels")
    annotator = scxtrimo.model.XTrimoGeneAnnotator(adata, seed=0)
    annotator.train()
    held_out = annotator.held_out
    labels = adata.obs.loc[held_out.index, "bulk_labels"]
    predicted, confidence = held_out.idxmax(axis=1), held_out.max(axis=1)
    figure, axes = plt.subplot_mosaic("aab;aac", figsize=(11, 6), layout="constrained")
    scxtrimo.pl.annotation_confusion(labels, predicted, ax=axes["a"])
    scxtrimo.pl.coverage_accuracy(labels, predicted, confidence, ax=axes["b"])
    scxtrimo.pl.calibration(labels, predicted, confidence, ax=axes["c"])
    figure.savefig(STATIC / "annotation.png", dpi=110)
    print(scxtrimo.tl.annotation_report(labels, predicted).round(2).to_string())
    genes = annotator.rank_label_genes()
    print(genes.groupby("group").head(5).round(3).to_string())


if __name__ == "__main__":
    annotation()
