"""Gene vocabulary and the way from AnnData to ragged batches."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
