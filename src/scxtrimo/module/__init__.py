"""Where the objective and the configuration were; the changelog says where they are now."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
