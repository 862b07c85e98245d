"""Analysis of results."""

from ._agreement import cluster_agreement, neighbor_agreement

__all__ = ["cluster_agreement", "neighbor_agreement"]
