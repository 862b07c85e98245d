"""Masking, training plan, schedule and the data-driven start."""

from .datamodule import RaggedDataSplitter
from .initialization import gene_statistics
from .masking import MaskingConfig, mask_batch
from .plan import OptimizerConfig, XTrimoGenePlan
from .sampler import EpochShuffler, TokenBudgetShuffler
from .thinning import thin_batch
from .trainer import ResumeCheckpoint, SafeTrainer, XTrimoGeneRunner

__all__ = [
    "EpochShuffler",
    "MaskingConfig",
    "OptimizerConfig",
    "RaggedDataSplitter",
    "ResumeCheckpoint",
    "SafeTrainer",
    "TokenBudgetShuffler",
    "XTrimoGenePlan",
    "XTrimoGeneRunner",
    "gene_statistics",
    "mask_batch",
    "thin_batch",
]
