"""Preprocessing helpers."""

from ._relations import relations_from_expression, relations_from_gene_sets

__all__ = [
    "relations_from_expression",
    "relations_from_gene_sets",
]
