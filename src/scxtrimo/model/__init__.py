"""Models for AnnData, in the manner of scvi-tools."""

from ._annotator import XTrimoGeneAnnotator
from ._perturbation import XTrimoGenePerturbation
from ._xtrimogene import XTrimoGene

__all__ = ["XTrimoGene", "XTrimoGeneAnnotator", "XTrimoGenePerturbation"]
