"""Plots."""

from ._annotation import annotation_confusion, calibration, coverage_accuracy
from ._benchmark import benchmark
from ._drugs import observed_predicted, probability_calibration
from ._embedding import umap
from ._genes import gene_coverage, gene_modules
from ._network import attention, value_bins
from ._perturbation import perturbation_effects, perturbed_genes
from ._reconstruction import masked_prediction
from ._training import training_curves

__all__ = [
    "annotation_confusion",
    "attention",
    "benchmark",
    "calibration",
    "coverage_accuracy",
    "gene_coverage",
    "gene_modules",
    "masked_prediction",
    "observed_predicted",
    "perturbation_effects",
    "perturbed_genes",
    "probability_calibration",
    "training_curves",
    "umap",
    "value_bins",
]
