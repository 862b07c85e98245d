"""Residues as numbers, with the vocabulary of the published checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ..data.vocabulary import preview

Gaps = Literal["remove", "keep"]

TOKENS = (
    *("<pad>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<mask>", "<gmask>", "<smask>"),
    *("<eod>", "<sop>", "<eop>", "<eos>", "<unk>"),
)
ID = {token: number for number, token in enumerate(TOKENS)}
PAD, MASK, GMASK, SMASK, SOP, EOP, EOS = (
    ID[f"<{name}>"] for name in ("pad", "mask", "gmask", "smask", "sop", "eop", "eos")
)
STANDARD = "ACDEFGHIKLMNPQRSTVWY"
RESIDUES = STANDARD + "XBUZO"
UNKNOWN, GAPS, STOP = "X", ".-", "*"
PROMPT = (GMASK, SOP, EOS)  # before a sequence that is generated or scored from left to right
FIRST_RESIDUE, LAST_RESIDUE = ID["L"], ID["O"]

_LETTERS = np.full(256, -1, dtype=np.int64)
for _letter in RESIDUES + GAPS:
    _LETTERS[ord(_letter)] = _LETTERS[ord(_letter.lower())] = ID[_letter]
_BYTES = np.frombuffer("".join(t if len(t) == 1 else "?" for t in TOKENS).encode(), np.uint8)


class Cleaned(NamedTuple):
    """A sequence as it is read, and what was changed."""

    sequence: str
    changes: Counter[str]


class Tokenizer:
    """Turns sequences into numbers, one for each residue.

    Lower case is read as upper case. Letters that stand for no amino acid (``J``), and stops
    within a sequence, become ``X``, one for one. A stop at the end is removed, and so are gaps, or
    they are kept as they are (``gaps="keep"``). What was changed is counted.

    Parameters
    ----------
    gaps
        ``"remove"`` or ``"keep"``.

    Examples
    --------
    >>> from scxtrimo.protein import Tokenizer
    >>> Tokenizer()("MKJ-t*").tolist(), Tokenizer().decode([17, 12, 21, 8])
    ([17, 12, 21, 8], 'MKXT')
    >>> Tokenizer().clean("MKJ-t*").sequence, Tokenizer().encode("MK").tolist()
    ('MKXT', [17, 12])
    """

    def __init__(self, gaps: Gaps = "remove") -> None:
        self.gaps = gaps

    def __call__(self, sequence: str) -> np.ndarray:
        """Return the numbers of the residues, int64, without special tokens."""
        return self.encode(self.clean(sequence).sequence)

    def encode(self, sequence: str) -> np.ndarray:
        """Return the numbers of a clean sequence.

        Parameters
        ----------
        sequence
            What :meth:`clean` returns.

        Returns
        -------
        int64 array, one number for each letter.
        """
        return _LETTERS[np.frombuffer(sequence.encode("ascii"), np.uint8)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the residues of numbers; special tokens by their names.

        Parameters
        ----------
        ids
            Numbers from 0 to 35.

        Returns
        -------
        The sequence.
        """
        numbers = list(ids)
        if wrong := sorted({n for n in numbers if not 0 <= n < len(TOKENS)}):
            raise ValueError(f"ids={wrong} are no tokens; these are 0 to {len(TOKENS) - 1}.")
        return "".join(TOKENS[number] for number in numbers)

    def clean(self, sequence: str, name: str = "") -> Cleaned:
        """Check a sequence and write it as it is read.

        Parameters
        ----------
        sequence, name
            The sequence, and what to call it in a message.

        Returns
        -------
        The sequence in upper case, and how many letters were changed, by kind.

        Raises
        ------
        ValueError
            If there is no residue, none that is known, or something that is no letter.
        """
        which = f"The sequence of {name}" if name else f"The sequence {preview_of(sequence)}"
        if not isinstance(sequence, str):
            raise TypeError(f"{which} is of type {type(sequence).__name__}; give text.")
        letters = "".join(sequence.split())
        if not letters:
            raise ValueError(f"{which} is empty. Leave it out.")
        changes: Counter[str] = Counter()
        upper = letters.upper()
        if upper != letters:
            changes["lower case"] = sum(a != b for a, b in zip(letters, upper, strict=True))
        if upper.endswith(STOP):
            changes["stop at the end"] = 1
            upper = upper.rstrip(STOP)
        wrong = sorted({c for c in upper if not ("A" <= c <= "Z" or c in GAPS + STOP)})
        if wrong:
            place = next(i for i, c in enumerate(upper) if c in wrong)
            raise ValueError(
                f"{which} has {preview(wrong)} (first at position {place + 1}), which is no "
                "residue. Give amino acids in one-letter code."
            )
        if self.gaps == "remove" and (n_gaps := sum(upper.count(gap) for gap in GAPS)):
            changes["gap"] = n_gaps
            upper = upper.translate(dict.fromkeys(map(ord, GAPS)))
        strange = {c for c in upper if c not in RESIDUES + GAPS}
        for letter in sorted(strange):
            changes[f"{letter} as X"] = upper.count(letter)
            upper = upper.replace(letter, UNKNOWN)
        if not set(upper) - set(UNKNOWN + GAPS):
            raise ValueError(f"{which} has no known residue. Leave it out.")
        return Cleaned(upper, changes)


def preview_of(sequence: object, length: int = 20) -> str:
    """Return the beginning of a sequence, for messages."""
    text = sequence if isinstance(sequence, str) else repr(sequence)
    return repr(text if len(text) <= length else f"{text[:length]}...")


def describe_changes(changes: Sequence[Counter[str]]) -> str:
    """Return in one line what was changed in how many sequences; empty if nothing was."""
    kinds: Counter[str] = Counter()
    for of_one in changes:
        kinds.update(dict.fromkeys(of_one, 1))
    total = sum(changes, Counter())
    parts = [f"{kind} {total[kind]:,} times in {n:,}" for kind, n in kinds.most_common()]
    return f"Of {len(changes):,} sequences were changed: {'; '.join(parts)}." if parts else ""
