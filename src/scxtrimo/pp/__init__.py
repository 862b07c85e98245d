"""Preprocessing helpers."""

from ._datasets import pbmc68k_counts
from ._relations import relations_from_expression, relations_from_gene_sets

__all__ = [
    "pbmc68k_counts",
    "relations_from_expression",
    "relations_from_gene_sets",
]
