"""Models for AnnData, in the manner of scvi-tools."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
