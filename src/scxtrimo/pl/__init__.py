"""Plots."""

from ._annotation import annotation_confusion, calibration, coverage_accuracy
from ._drugs import observed_predicted, probability_calibration

__all__ = [
    "annotation_confusion",
    "calibration",
    "coverage_accuracy",
    "observed_predicted",
    "probability_calibration",
]
