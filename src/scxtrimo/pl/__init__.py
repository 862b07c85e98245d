"""Plots."""

from ._annotation import annotation_confusion, calibration, coverage_accuracy

__all__ = ["annotation_confusion", "calibration", "coverage_accuracy"]
