"""Analysis of results."""

from ._agreement import cluster_agreement, neighbor_agreement
from ._annotation import annotation_report, call_labels, coverage_accuracy
from ._genes import gene_modules
from ._perturbation import (
    genetic_interactions,
    perturbation_effects,
    perturbation_scores,
    rank_perturbed_genes,
)

__all__ = [
    "annotation_report",
    "call_labels",
    "cluster_agreement",
    "coverage_accuracy",
    "gene_modules",
    "genetic_interactions",
    "neighbor_agreement",
    "perturbation_effects",
    "perturbation_scores",
    "rank_perturbed_genes",
]
