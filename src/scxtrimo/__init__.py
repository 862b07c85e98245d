"""xTrimoGene for the scverse."""

from importlib.metadata import version

from ._lazy import attach

__version__ = version("scxtrimo")
__getattr__, __dir__, __all__ = attach(__name__, __file__)
__all__ += ["__version__"]
