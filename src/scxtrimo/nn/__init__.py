"""xTrimoGene as plain PyTorch blocks on ragged batches."""

from .attention import CrossAttention, SelfAttention, ragged_attention
from .classifier import CellClassifier, GeneClassifier, average_log_probabilities
from .decoder import (
    BottleneckDecoder,
    CrossAttentionDecoder,
    Decoder,
    PerformerDecoder,
)
from .design import Design, Prediction
from .effect_net import EffectNet
from .embedding import AutoDiscretization, TokenEmbedding, normalize_counts
from .encoded import EncodedCells, HiddenGenes
from .encoder import Encoder, EncoderLayer, FeedForward
from .lines import LineTower
from .mixed_effects import MixedEffects, cosine
from .molecules import DrugTower, MoleculeAttention, MoleculeWidths
from .performer import FavorAttention, Performer, PerformerLayer
from .pooling import CellPooling, pool_tokens
from .ragged import CellBoundaries
from .response import ResponseHead, join_drugs
from .xtrimogene import XTrimoGeneNet

__all__ = [
    "AutoDiscretization",
    "BottleneckDecoder",
    "CellBoundaries",
    "CellClassifier",
    "CellPooling",
    "CrossAttentionDecoder",
    "Decoder",
    "Design",
    "DrugTower",
    "EffectNet",
    "EncodedCells",
    "Encoder",
    "EncoderLayer",
    "FavorAttention",
    "GeneClassifier",
    "HiddenGenes",
    "LineTower",
    "MixedEffects",
    "MoleculeAttention",
    "MoleculeWidths",
    "Performer",
    "PerformerDecoder",
    "PerformerLayer",
    "Prediction",
    "ResponseHead",
    "TokenEmbedding",
    "XTrimoGeneNet",
    "average_log_probabilities",
    "join_drugs",
    "normalize_counts",
    "pool_tokens",
    "ragged_attention",
]
