"""What is trained: loss assembly over :mod:`scxtrimo.nn`, and its configuration."""

from .config import SIZES, XTrimoGeneConfig, choose_size
from .xtrimogene import DECODERS, XTrimoGeneModule, target_values

__all__ = [
    "DECODERS",
    "SIZES",
    "XTrimoGeneConfig",
    "XTrimoGeneModule",
    "choose_size",
    "target_values",
]
