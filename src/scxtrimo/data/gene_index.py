"""The gene index that comes with a published checkpoint: which gene is at which position."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .vocabulary import preview

# SHA-256 of the 19,264 symbols of the published checkpoints, in their order and sorted.
PUBLISHED_N_GENES = 19_264
PUBLISHED_ORDER = "6037e1bc9b3b48a5112ffdc29261383f747a3c3f8b568a8899b0c69d13565df8"
PUBLISHED_GENES = "e5322ead657fa5ac90d431e2d04e94edb56a1ecde3f4f94988404631ab436df1"


def hash_genes(genes: Iterable[str]) -> str:
    """Return the SHA-256 of gene identifiers in their order."""
    return hashlib.sha256("\n".join(genes).encode()).hexdigest()


def read_gene_index(source: str | os.PathLike | Sequence[str], n_genes: int) -> tuple[str, ...]:
    """Read and check a gene index.

    Parameters
    ----------
    source
        A table with the columns ``gene_name`` and ``index``, as published, a text file with one
        gene per line, or the genes themselves.
    n_genes
        How many genes the checkpoint has.

    Returns
    -------
    Gene symbols by position.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the number of genes is another one, a gene is there twice, positions are missing, or
        for a checkpoint with the published number of genes, genes or their order are others.

    Examples
    --------
    >>> from scxtrimo.data import read_gene_index
    >>> read_gene_index(["CD3D", "MS4A1"], 2)
    ('CD3D', 'MS4A1')
    """
    name = "gene_index"
    if isinstance(source, str | os.PathLike):
        name = str(source)
        genes = read_genes(source)
    else:
        genes = [str(gene) for gene in source]
    if len(genes) != n_genes:
        raise ValueError(
            f"{name} has {len(genes):,} genes, the checkpoint {n_genes:,}. Use the gene index "
            "that comes with the checkpoint."
        )
    unique, times = np.unique(genes, return_counts=True)
    if len(unique) != n_genes:
        raise ValueError(f"{name} has genes twice: {preview(unique[times > 1])}.")
    if n_genes == PUBLISHED_N_GENES and hash_genes(genes) != PUBLISHED_ORDER:
        if hash_genes(sorted(genes)) == PUBLISHED_GENES:
            raise ValueError(
                f"{name} has the genes of the published checkpoints in another order (it starts "
                f"with {preview(genes, 3)}): every gene would get the weights of another one. Use "
                "the file that comes with the checkpoint, unchanged."
            )
        raise ValueError(
            f"{name} has {n_genes:,} genes, but not those of the published checkpoints (it starts "
            f"with {preview(genes, 3)}). Use the file that comes with the checkpoint."
        )
    return tuple(genes)


def read_genes(path: str | os.PathLike) -> list[str]:
    """Read genes from a text file with one per line, or from a gene index.

    Parameters
    ----------
    path
        See :func:`read_gene_index`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file with genes.") from error
    if not lines or lines[0].split("\t")[0] != "gene_name":
        return [line.strip() for line in lines if line.strip()]
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    if "index" in table and table["index"].tolist() != [str(i) for i in range(len(table))]:
        raise ValueError(
            f"The column 'index' of {path} does not count from 0 to {len(table) - 1} in the order "
            "of its lines: the table was sorted or cut. Use the file that comes with the "
            "checkpoint."
        )
    return table["gene_name"].tolist()
