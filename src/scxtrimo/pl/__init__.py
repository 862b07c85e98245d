"""Plots."""

from ._annotation import annotation_confusion, calibration, coverage_accuracy
from ._perturbation import perturbation_effects, perturbed_genes

__all__ = [
    "annotation_confusion",
    "calibration",
    "coverage_accuracy",
    "perturbation_effects",
    "perturbed_genes",
]
