"""xTrimoGene for the scverse."""

from importlib.metadata import version

__version__ = version("scxtrimo")

from . import (
    checkpoint,
    data,
    datasets,
    model,
    module,
    nn,
    pl,
    pp,
    pretraining,
    tl,
    train,
)
from .pretraining import DataConfig, EngineConfig, PretrainConfig, RecordConfig, pretrain

__all__ = [
    "DataConfig",
    "EngineConfig",
    "PretrainConfig",
    "RecordConfig",
    "__version__",
    "checkpoint",
    "data",
    "datasets",
    "model",
    "module",
    "nn",
    "pl",
    "pp",
    "pretrain",
    "pretraining",
    "tl",
    "train",
]
