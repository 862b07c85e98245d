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
    check_resumed,
    objective_of,
    quiet_lightning,
)

__all__ = [
    "AnnotationConfig",
    "DrugTraining",
    "EffectsConfig",
    "EpochShuffler",
    "FinetuningConfig",
    "MaskingConfig",
    "OptimizerConfig",
    "StoreDataModule",
    "StreamLoader",
    "StreamPlan",
    "TokenBudgetShuffler",
    "Window",
    "mask_batch",
    "ragged_batch",
    "thin_batch",
]
