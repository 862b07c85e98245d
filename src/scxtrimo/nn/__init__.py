"""xTrimoGene as plain PyTorch blocks on ragged batches."""

from .attention import CrossAttention, SelfAttention, ragged_attention
from .decoder import BottleneckDecoder, CrossAttentionDecoder, Decoder, EncodedCells
from .embedding import AutoDiscretization, TokenEmbedding, normalize_counts
from .encoder import Encoder, EncoderLayer, FeedForward
from .performer import FavorAttention, Performer, PerformerLayer
from .published import PublishedNet
from .xtrimogene import CellPooling, XTrimoGeneNet

__all__ = [
    "AutoDiscretization",
    "BottleneckDecoder",
    "CellPooling",
    "CrossAttention",
    "CrossAttentionDecoder",
    "Decoder",
    "EncodedCells",
    "Encoder",
    "EncoderLayer",
    "FavorAttention",
    "FeedForward",
    "Performer",
    "PerformerLayer",
    "PublishedNet",
    "SelfAttention",
    "TokenEmbedding",
    "XTrimoGeneNet",
    "normalize_counts",
    "ragged_attention",
]
