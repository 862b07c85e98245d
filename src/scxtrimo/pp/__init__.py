"""Preprocessing helpers."""

from ._datasets import pbmc68k_counts

__all__ = ["pbmc68k_counts"]
