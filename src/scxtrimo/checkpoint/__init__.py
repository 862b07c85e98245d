"""Reading and writing models."""

from .native import read_model, write_model
from .scfoundation import read_scfoundation

__all__ = ["read_model", "read_scfoundation", "write_model"]
