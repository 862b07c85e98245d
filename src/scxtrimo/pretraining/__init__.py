"""Pretraining from a store on disk: configuration, dry run, and the run itself."""

from .config import DataConfig, EngineConfig, PretrainConfig, RecordConfig
from .embed import embed_store
from .estimate import DryRun
from .run import pretrain

__all__ = [
    "DataConfig",
    "DryRun",
    "EngineConfig",
    "PretrainConfig",
    "RecordConfig",
    "embed_store",
    "pretrain",
]
