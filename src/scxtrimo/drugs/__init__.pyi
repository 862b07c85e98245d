from .model import XTrimoGeneDrugResponse as XTrimoGeneDrugResponse
from .model import XTrimoGeneSynergy as XTrimoGeneSynergy
from .module import DrugConfig as DrugConfig
from .training import DrugTraining as DrugTraining
