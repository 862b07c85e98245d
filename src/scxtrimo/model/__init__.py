"""Models for AnnData, in the manner of scvi-tools."""

from ._annotator import XTrimoGeneAnnotator
from ._drug_response import XTrimoGeneDrugResponse
from ._perturbation import XTrimoGenePerturbation
from ._synergy import XTrimoGeneSynergy
from ._xtrimogene import XTrimoGene

__all__ = [
    "XTrimoGene",
    "XTrimoGeneAnnotator",
    "XTrimoGeneDrugResponse",
    "XTrimoGenePerturbation",
    "XTrimoGeneSynergy",
]
