"""What is trained: loss assembly over :mod:`scxtrimo.nn`, and its configuration."""

from .config import SIZES, XTrimoGeneConfig, as_published, choose_size
from .depth import TargetDepth
from .xtrimogene import XTrimoGeneModule, target_values

__all__ = [
    "SIZES",
    "TargetDepth",
    "XTrimoGeneConfig",
    "XTrimoGeneModule",
    "as_published",
    "choose_size",
    "target_values",
]
