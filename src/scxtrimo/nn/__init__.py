"""xTrimoGene as plain PyTorch blocks on ragged batches."""

from .attention import CrossAttention, SelfAttention, ragged_attention
from .classifier import CellClassifier, GeneClassifier, average_log_probabilities
from .decoder import (
    BottleneckDecoder,
    CrossAttentionDecoder,
    Decoder,
    EncodedCells,
    HiddenGenes,
    PerformerDecoder,
)
from .effect_net import EffectNet
from .embedding import AutoDiscretization, TokenEmbedding, normalize_counts
from .encoder import Encoder, EncoderLayer, FeedForward
from .lines import LineTower
from .mixed_effects import Design, MixedEffects, Prediction, cosine
from .molecules import DrugTower, MoleculeAttention
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
    "CrossAttention",
    "CrossAttentionDecoder",
    "Decoder",
    "Design",
    "DrugTower",
    "EffectNet",
    "EncodedCells",
    "Encoder",
    "EncoderLayer",
    "FavorAttention",
    "FeedForward",
    "GeneClassifier",
    "HiddenGenes",
    "LineTower",
    "MixedEffects",
    "MoleculeAttention",
    "Performer",
    "PerformerDecoder",
    "PerformerLayer",
    "Prediction",
    "ResponseHead",
    "SelfAttention",
    "TokenEmbedding",
    "XTrimoGeneNet",
    "average_log_probabilities",
    "cosine",
    "join_drugs",
    "normalize_counts",
    "pool_tokens",
    "ragged_attention",
]
