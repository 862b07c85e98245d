"""Reading and writing models."""

from .native import read_model, write_model

__all__ = ["read_model", "write_model"]
