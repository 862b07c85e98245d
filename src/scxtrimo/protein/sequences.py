"""Proteins to read: from FASTA files, AnnData or plain text, in batches without padding."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from Bio.SeqIO.FastaIO import SimpleFastaParser
from torch import Tensor

from .._files import replacing
from .._logging import logger
from ..data.columns import get_column, preview
from ..nn.ragged import CellBoundaries
from .tokenizer import EOS, Tokenizer, describe_changes

Long = Literal["window", "error", "truncate", "full"]
Sequences: TypeAlias = AnnData | str | Sequence[str] | Mapping[str, str] | pd.Series

SEQUENCE, DESCRIPTION = "sequence", "description"


def read_fasta(path: str | os.PathLike) -> AnnData:
    """Read proteins.

    Parameters
    ----------
    path
        FASTA file, which may be compressed (``.gz``).

    Returns
    -------
    One protein per row: ``obs_names`` are the identifiers, which are made unique,
    ``obs["sequence"]`` the sequences as they are in the file, ``obs["description"]`` what follows
    the identifier.

    Raises
    ------
    ValueError
        If the file has no sequences.

    Examples
    --------
    >>> proteins = scxtrimo.read_fasta("proteins.fasta")
    >>> proteins.obs["sequence"].iloc[0][:10]
    'MTYKLILNGK'
    """
    path = Path(path).expanduser()
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        entries = list(SimpleFastaParser(StringIO(text)))
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not a FASTA file: {error}.") from error
    if not entries:
        raise ValueError(f"{path} has no sequences: none of its lines starts with '>'.")
    titles = [title.split(maxsplit=1) for title, _ in entries]
    names = [title[0] if title else "" for title in titles]
    obs = pd.DataFrame(
        {
            SEQUENCE: [sequence for _, sequence in entries],
            DESCRIPTION: [title[1] if len(title) > 1 else "" for title in titles],
        },
        index=names,
    )
    if n_again := int(obs.index.duplicated().sum()):
        again = preview(obs.index[obs.index.duplicated()].unique())
        logger.info(f"{n_again:,} identifiers of {path} are there again, and numbered: {again}.")
        obs.index = _numbered(names)
    return AnnData(obs=obs)


def _numbered(names: Sequence[str]) -> list[str]:
    """Append numbers to names that were there before."""
    taken, found = set(names), []
    seen: dict[str, int] = {}
    for name in names:
        number = seen.get(name, -1) + 1
        new = name if not number else f"{name}-{number}"
        while number and new in taken:
            number += 1
            new = f"{name}-{number}"
        seen[name] = number
        taken.add(new)
        found.append(new)
    return found


def write_fasta(
    proteins: Sequences, path: str | os.PathLike, sequence_key: str = SEQUENCE, width: int = 60
) -> None:
    """Write proteins.

    Parameters
    ----------
    proteins
        AnnData with sequences in ``obs``, or sequences, by name if it is a mapping or a series.
    path
        File to write or replace; compressed if its name ends in ``.gz``.
    sequence_key
        Column of ``obs`` with the sequences.
    width
        Residues per line.

    Examples
    --------
    >>> scxtrimo.write_fasta({"a": "MKT", "b": "MTYKL"}, "two.fasta")
    >>> scxtrimo.read_fasta("two.fasta").obs_names.tolist()
    ['a', 'b']
    """
    named = named_sequences(proteins, sequence_key)
    descriptions = [""] * len(named)
    if isinstance(proteins, AnnData) and DESCRIPTION in proteins.obs:
        descriptions = proteins.obs[DESCRIPTION].astype(str).tolist()
    lines = []
    for (name, sequence), description in zip(named.items(), descriptions, strict=True):
        lines.append(f">{name} {description}".rstrip())
        lines += [sequence[start : start + width] for start in range(0, len(sequence), width)]
    text = ("\n".join(lines) + "\n").encode()
    path = Path(path).expanduser()
    with replacing(path) as partial:
        partial.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def named_sequences(proteins: Sequences, sequence_key: str | None) -> pd.Series:
    """Return sequences by name, as they were given."""
    if isinstance(proteins, AnnData):
        column = get_column(proteins.obs, "adata.obs", sequence_key or SEQUENCE)
        return pd.Series(column.to_numpy(dtype=object), proteins.obs_names)
    if isinstance(proteins, str):
        return pd.Series([proteins])
    if isinstance(proteins, Mapping | pd.Series):
        return pd.Series(dict(proteins), dtype=object)
    if not isinstance(proteins, Iterable):
        raise TypeError(
            f"proteins={proteins!r} must be an AnnData, a sequence, or a list or mapping of them."
        )
    return pd.Series(list(proteins), dtype=object)


@dataclass(frozen=True)
class Proteins:
    """Checked proteins, as numbers."""

    names: pd.Index
    sequences: list[str]
    ids: list[np.ndarray]

    @classmethod
    def read(
        cls,
        proteins: Sequences,
        sequence_key: str | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> Proteins:
        """Read proteins; all that is wrong is an error before anything is computed."""
        tokenizer = tokenizer or Tokenizer()
        named = named_sequences(proteins, sequence_key)
        if not len(named):
            raise ValueError("There are no sequences.")
        is_named = isinstance(proteins, AnnData | Mapping | pd.Series)
        cleaned = [
            tokenizer.clean(text, repr(name) if is_named else f"number {i}" if i else "")
            for i, (name, text) in enumerate(named.items())
        ]
        if said := describe_changes([one.changes for one in cleaned]):
            logger.info(said)
        sequences = [one.sequence for one in cleaned]
        return cls(named.index, sequences, [tokenizer.encode(one) for one in sequences])

    @property
    def lengths(self) -> np.ndarray:
        """Numbers of residues."""
        return np.array([len(ids) for ids in self.ids])


class Window(NamedTuple):
    """Some residues of a protein that are read together, with an end."""

    protein: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start + 1


def windows_of(lengths: Sequence[int], long: Long, size: int, overlap: int) -> list[Window]:
    """Divide proteins of more than ``size`` residues, as ``long`` says."""
    windows = []
    for i, length in enumerate(lengths):
        if length <= size or long == "full":
            windows.append(Window(i, 0, length))
        elif long == "truncate":
            windows.append(Window(i, 0, size))
        else:
            n = -(-(length - overlap) // (size - overlap))
            starts = np.linspace(0, length - size, n).round().astype(int).tolist()
            windows += [Window(i, start, start + size) for start in starts]
    return windows


class SequenceBatch(NamedTuple):
    """Windows one after the other, each with its end; ``members`` are their numbers."""

    members: list[int]
    ids_t: Tensor
    proteins: CellBoundaries


def batches(
    ids: Sequence[np.ndarray],
    windows: Sequence[Window],
    max_tokens: int,
    device: torch.device | str = "cpu",
) -> Iterator[SequenceBatch]:
    """Group windows of similar length, the longest first, so that too long ones fail at once."""
    order = sorted(range(len(windows)), key=lambda i: -len(windows[i]))
    remaining = iter(order)
    for group in boundaries_of([len(windows[i]) for i in order], device).groups(max_tokens):
        members = [next(remaining) for _ in group.lengths]
        parts = []
        for i in members:
            protein, start, stop = windows[i]
            parts += [ids[protein][start:stop], [EOS]]
        ids_t = torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)
        yield SequenceBatch(members, ids_t, group)


def boundaries_of(lengths: Sequence[int], device: torch.device | str = "cpu") -> CellBoundaries:
    """Return where sequences of such lengths begin and end."""
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    return CellBoundaries(cu_seqlens, list(lengths))
