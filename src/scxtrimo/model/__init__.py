"""Models for AnnData, in the manner of scvi-tools."""

from ._xtrimogene import XTrimoGene

__all__ = ["XTrimoGene"]
