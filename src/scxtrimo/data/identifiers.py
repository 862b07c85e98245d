"""Spellings of gene identifiers."""

from __future__ import annotations

import re

_ENSEMBL_VERSION = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+$")


def strip_version(identifier: str) -> str:
    """Remove the version of an Ensembl gene id.

    Examples
    --------
    >>> strip_version("ENSG00000112773.16")
    'ENSG00000112773'
    """
    return _ENSEMBL_VERSION.sub(r"\1", identifier)


def fold(identifier: str) -> str:
    """Return an identifier without version, surrounding space and case."""
    return strip_version(identifier.strip()).upper()
