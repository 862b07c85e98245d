"""Masking, training plan, schedule and the data-driven start."""

from .annotation import AnnotationConfig, AnnotatorPlan, label_weights
from .datamodule import RaggedDataSplitter
from .drugs import DrugTraining
from .effects import EffectsConfig, HeldOut, fit_effects, n_stages
from .finetuning import FinetuningConfig, finetuned
from .flops import activation_bytes, peak_flops, training_flops
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
from .pretraining import PretrainingPlan, StepMeter
from .relations import relation_features
from .sampler import EpochShuffler, TokenBudgetShuffler
from .step_checkpoints import (
    AtomicCheckpointIO,
    checkpoint_path,
    last_checkpoint,
    step_checkpoints,
)
from .stream_plan import StreamPlan, Window
from .streaming import StoreDataModule, StreamLoader, ragged_batch
from .thinning import thin_batch
from .trainer import (
    KeepBest,
    ResumeCheckpoint,
    SafeTrainer,
    XTrimoGeneRunner,
    objective_of,
    quiet_lightning,
)

__all__ = [
    "AnnotationConfig",
    "AnnotatorPlan",
    "AtomicCheckpointIO",
    "DrugTraining",
    "EffectsConfig",
    "EpochShuffler",
    "FinetuningConfig",
    "HeldOut",
    "KeepBest",
    "LinearData",
    "LinearModels",
    "MaskingConfig",
    "OptimizerConfig",
    "PretrainingPlan",
    "RaggedDataSplitter",
    "ResumeCheckpoint",
    "SafeTrainer",
    "StepMeter",
    "StoreDataModule",
    "StreamLoader",
    "StreamPlan",
    "TokenBudgetShuffler",
    "Window",
    "XTrimoGenePlan",
    "XTrimoGeneRunner",
    "activation_bytes",
    "checkpoint_path",
    "cross_validate",
    "draw_labelled",
    "draw_rows",
    "finetuned",
    "fit_cell_classifier",
    "fit_effects",
    "fit_gene_classifier",
    "fit_latent_space",
    "fit_temperature",
    "gene_statistics",
    "label_weights",
    "last_checkpoint",
    "log_normalize",
    "map_batches",
    "mask_batch",
    "n_stages",
    "objective_of",
    "peak_flops",
    "quiet_lightning",
    "ragged_batch",
    "read_counts",
    "relation_features",
    "split_labelled",
    "step_checkpoints",
    "thin_batch",
    "training_flops",
]
