from ..annotation.model import XTrimoGeneAnnotator as XTrimoGeneAnnotator
from ..config import SIZES as SIZES
from ..config import XTrimoGeneConfig as XTrimoGeneConfig
from ..drugs.response import XTrimoGeneDrugResponse as XTrimoGeneDrugResponse
from ..drugs.synergy import XTrimoGeneSynergy as XTrimoGeneSynergy
from ..perturbation.model import XTrimoGenePerturbation as XTrimoGenePerturbation
from .xtrimogene import XTrimoGene as XTrimoGene
