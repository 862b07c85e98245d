from .module import DrugConfig as DrugConfig
from .response import XTrimoGeneDrugResponse as XTrimoGeneDrugResponse
from .synergy import XTrimoGeneSynergy as XTrimoGeneSynergy
from .training import DrugTraining as DrugTraining
