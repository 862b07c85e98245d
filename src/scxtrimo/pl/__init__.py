"""Plots."""

from ._annotation import annotation_confusion, calibration, coverage_accuracy
from ._drugs import observed_predicted, probability_calibration
from ._perturbation import perturbation_effects, perturbed_genes

__all__ = [
    "annotation_confusion",
    "calibration",
    "coverage_accuracy",
    "observed_predicted",
    "perturbation_effects",
    "perturbed_genes",
    "probability_calibration",
]
