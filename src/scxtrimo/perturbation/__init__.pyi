from .groups import PerturbationNames as PerturbationNames
from .model import XTrimoGenePerturbation as XTrimoGenePerturbation
from .training import EffectsConfig as EffectsConfig
