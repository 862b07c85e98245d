"""Pretraining from a store on disk: configuration, dry run, and the run itself."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
