"""The packages that only drugs need, imported in one place and not before they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

INSTALL = 'pip install "scxtrimo[drug]"'


def need(name: str) -> Any:
    """Import a module of RDKit or PyTorch Geometric.

    Parameters
    ----------
    name
        Such as ``"rdkit.Chem"`` or ``"torch_geometric.nn"``.

    Raises
    ------
    ImportError
        If it is not installed; the message says how to get it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = {"rdkit": "RDKit", "torch_geometric": "PyTorch Geometric"}[name.split(".")[0]]
        raise ImportError(
            f"Models of drugs need {package}, which cannot be imported ({error}): `{INSTALL}`."
        ) from error
