"""Reading and writing models."""

from .native import read_model, write_model
from .scfoundation import PublishedCheckpoint, read_scfoundation, write_scfoundation

__all__ = [
    "PublishedCheckpoint",
    "read_model",
    "read_scfoundation",
    "write_model",
    "write_scfoundation",
]
