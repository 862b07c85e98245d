"""Analysis of results."""

from ._agreement import cluster_agreement, neighbor_agreement
from ._annotation import annotation_report, call_labels, coverage_accuracy

__all__ = [
    "annotation_report",
    "call_labels",
    "cluster_agreement",
    "coverage_accuracy",
    "neighbor_agreement",
]
