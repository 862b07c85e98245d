"""Masking, training plan, schedule and the data-driven start."""

from .annotation import AnnotationConfig, AnnotatorPlan, label_weights
from .datamodule import RaggedDataSplitter
from .finetuning import FinetuningConfig, finetuned
from .initialization import draw_rows, gene_statistics, log_normalize, read_counts
from .latent_space import fit_latent_space, map_batches
from .linear import (
    LinearData,
    LinearModels,
    cross_validate,
    draw_labelled,
    fit_cell_classifier,
    fit_gene_classifier,
    fit_temperature,
    split_labelled,
)
from .masking import MaskingConfig, mask_batch
from .plan import OptimizerConfig, XTrimoGenePlan
from .sampler import EpochShuffler, TokenBudgetShuffler
from .thinning import thin_batch
from .trainer import KeepBest, ResumeCheckpoint, SafeTrainer, XTrimoGeneRunner, objective_of

__all__ = [
    "AnnotationConfig",
    "AnnotatorPlan",
    "EpochShuffler",
    "FinetuningConfig",
    "KeepBest",
    "LinearData",
    "LinearModels",
    "MaskingConfig",
    "OptimizerConfig",
    "RaggedDataSplitter",
    "ResumeCheckpoint",
    "SafeTrainer",
    "TokenBudgetShuffler",
    "XTrimoGenePlan",
    "XTrimoGeneRunner",
    "cross_validate",
    "draw_labelled",
    "draw_rows",
    "finetuned",
    "fit_cell_classifier",
    "fit_gene_classifier",
    "fit_latent_space",
    "fit_temperature",
    "gene_statistics",
    "label_weights",
    "log_normalize",
    "map_batches",
    "mask_batch",
    "objective_of",
    "read_counts",
    "split_labelled",
    "thin_batch",
]
