"""xTrimoGene for the scverse."""

from importlib.metadata import version

__version__ = version("scxtrimo")

from . import data, model, module, nn, pl, pp, tl, train

__all__ = ["__version__", "data", "model", "module", "nn", "pl", "pp", "tl", "train"]
