"""What is trained: loss assembly over :mod:`scxtrimo.nn`, and its configuration."""

from .annotator import LabelPanel, XTrimoGeneAnnotatorModule
from .config import (
    SIZES,
    XTrimoGeneAnnotatorConfig,
    XTrimoGeneConfig,
    as_published,
    choose_size,
)
from .depth import TargetDepth
from .drugs import DrugConfig, DrugModule
from .effect_data import Controls, EffectSizes, NetInputs, Query
from .effects import EffectModel
from .latent_space import LatentSpace, Panel
from .perturbation import XTrimoGenePerturbationModule
from .response_base import ResponseBase
from .xtrimogene import XTrimoGeneModule, target_values

__all__ = [
    "SIZES",
    "Controls",
    "DrugConfig",
    "DrugModule",
    "EffectModel",
    "EffectSizes",
    "LabelPanel",
    "LatentSpace",
    "NetInputs",
    "Panel",
    "Query",
    "ResponseBase",
    "TargetDepth",
    "XTrimoGeneAnnotatorConfig",
    "XTrimoGeneAnnotatorModule",
    "XTrimoGeneConfig",
    "XTrimoGeneModule",
    "XTrimoGenePerturbationModule",
]
