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
from .latent_space import LatentSpace, Panel
from .response_base import ResponseBase
from .xtrimogene import XTrimoGeneModule, target_values

__all__ = [
    "SIZES",
    "DrugConfig",
    "DrugModule",
    "LabelPanel",
    "LatentSpace",
    "Panel",
    "ResponseBase",
    "TargetDepth",
    "XTrimoGeneAnnotatorConfig",
    "XTrimoGeneAnnotatorModule",
    "XTrimoGeneConfig",
    "XTrimoGeneModule",
    "as_published",
    "choose_size",
    "target_values",
]
