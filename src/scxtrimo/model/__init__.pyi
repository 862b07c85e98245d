from ..annotation.model import XTrimoGeneAnnotator as XTrimoGeneAnnotator
from ..config import SIZES as SIZES
from ..config import XTrimoGeneConfig as XTrimoGeneConfig
from ..drugs.model import XTrimoGeneDrugResponse as XTrimoGeneDrugResponse
from ..drugs.model import XTrimoGeneSynergy as XTrimoGeneSynergy
from ..perturbation.model import XTrimoGenePerturbation as XTrimoGenePerturbation
from .xtrimogene import XTrimoGene as XTrimoGene
