"""Masking, training plan, schedule and the data-driven start."""

from .datamodule import RaggedDataSplitter
from .initialization import draw_rows, gene_statistics
from .latent_space import fit_latent_space, map_batches
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
    "draw_rows",
    "fit_latent_space",
    "gene_statistics",
    "map_batches",
    "mask_batch",
    "thin_batch",
]
