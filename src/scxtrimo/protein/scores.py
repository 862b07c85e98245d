"""How likely sequences and their variants are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data.columns import preview
from .network import XTrimoPGLMNet
from .sequences import Proteins, boundaries_of
from .tokenizer import EOS, ID, MASK, PROMPT, STANDARD, Tokenizer

Strategy = Literal["masked", "wild-type", "pseudo-likelihood", "causal"]
BIDIRECTIONAL = ("masked", "wild-type", "pseudo-likelihood")
_SUBSTITUTION = re.compile(r"^([A-Za-z])(\d+)([A-Za-z])$")
_DELETION = re.compile(r"^([A-Za-z])(\d+)(?:_([A-Za-z])(\d+))?del$")
_INSERTION = re.compile(r"^([A-Za-z])(\d+)_([A-Za-z])(\d+)ins([A-Za-z]+)$")
HOW_TO_WRITE = (
    "Write substitutions as 'A24C', several as 'A24C:G56D', deletions as 'A24del' or "
    "'A24_G26del', insertions as 'A24_G25insMK'"
)
Rows = Sequence[np.ndarray]


class Variant(NamedTuple):
    """A variant: its substitutions (place, new residue), and its sequence."""

    name: str
    substitutions: list[tuple[int, str]]
    sequence: str
    is_aligned: bool  # no residue was inserted or deleted


def read_variant(name: str, wild_type: str, offset: int) -> Variant:
    """Read a variant such as ``"A24C:G56D"``; ``offset`` is the number of the first residue."""
    residues: list[str] = list(wild_type)
    substitutions: list[tuple[int, str]] = []
    is_aligned = True
    for part in filter(None, re.split(r"[:,;]", str(name).strip())):
        part = part.strip().removeprefix("p.")

        def place_of(residue: str, number: str, part: str = part) -> int:
            place = int(number) - offset
            if not 0 <= place < len(wild_type):
                last = offset + len(wild_type) - 1
                raise ValueError(
                    f"{part!r} of {name!r} is outside of the sequence, whose residues have the "
                    f"numbers {offset} to {last}. Pass another `offset`, the number of the first."
                )
            if wild_type[place] != residue.upper():
                raise ValueError(
                    f"{part!r} of {name!r} has {residue.upper()} at {number}, where the wild type "
                    f"has {wild_type[place]}. Check the sequence and `offset={offset}`."
                )
            return place

        if match := _SUBSTITUTION.match(part):
            place = place_of(match[1], match[2])
            new = match[3].upper()
            if new not in STANDARD:
                raise ValueError(f"{part!r} of {name!r}: {new} is none of the 20 amino acids.")
            residues[place] = new
            substitutions.append((place, new))
        elif match := _DELETION.match(part):
            first = place_of(match[1], match[2])
            last = place_of(match[3], match[4]) if match[3] else first
            if last < first:
                raise ValueError(f"{part!r} of {name!r} ends before it begins.")
            residues[first : last + 1] = [""] * (last + 1 - first)
            is_aligned = False
        elif match := _INSERTION.match(part):
            before, after = place_of(match[1], match[2]), place_of(match[3], match[4])
            if after != before + 1:
                raise ValueError(f"{part!r} of {name!r}: an insertion lies between neighbours.")
            residues[before] += Tokenizer().clean(match[5], repr(part)).sequence
            is_aligned = False
        else:
            raise ValueError(f"{part!r} of {name!r} is no variant. {HOW_TO_WRITE}.")
    places = [place for place, _ in substitutions]
    if len(set(places)) < len(places):
        raise ValueError(f"{name!r} changes a residue twice.")
    sequence = "".join(residues)
    if not sequence:
        raise ValueError(f"{name!r} deletes the whole sequence.")
    return Variant(str(name), substitutions, sequence, is_aligned)


def all_substitutions(wild_type: str, offset: int) -> list[str]:
    """Return the names of all single substitutions."""
    return [
        f"{old}{i + offset}{new}"
        for i, old in enumerate(wild_type)
        for new in STANDARD
        if new != old
    ]


def check_strategy(net: XTrimoPGLMNet, strategy: str) -> None:
    """Raise an error if a network was not trained for such a question."""
    objective = net.config.objective
    if objective == "causal" and strategy in BIDIRECTIONAL:
        raise ValueError(
            f"strategy={strategy!r} needs a network that was trained on masked residues; this one "
            "was trained from left to right: use strategy='causal'."
        )
    if objective == "masked" and strategy == "causal":
        raise ValueError(
            "strategy='causal' needs a network that was trained from left to right; this one was "
            "trained on masked residues: use 'masked', 'wild-type' or 'pseudo-likelihood'."
        )


def log_probabilities(
    net: XTrimoPGLMNet, rows: Rows, max_tokens: int, is_causal: bool = False
) -> list[Tensor]:
    """Return log-probabilities of all tokens at all places of all rows, each ``(n, n_tokens)``."""
    device = next(net.parameters()).device
    found: list[Tensor] = []
    if not rows:
        return found
    remaining = iter(rows)
    for group in boundaries_of([len(row) for row in rows], device).groups(max_tokens):
        lengths = group.lengths
        some = [next(remaining) for _ in lengths]
        ids_t = torch.from_numpy(np.concatenate(some)).to(device)
        n_prefix = [0] * len(some) if is_causal else lengths
        states_td = net(ids_t, group, n_prefix=n_prefix)
        logits_tv = net.output_layer(states_td).float()
        found += logits_tv.log_softmax(-1).cpu().split(lengths)
    return found


def masked_log_probabilities(
    net: XTrimoPGLMNet,
    ids: np.ndarray,
    places: Sequence[int],
    max_tokens: int,
) -> Tensor:
    """Return log-probabilities where one residue after the other is masked, ``(n, n_tokens)``."""
    row = np.append(ids, EOS)
    at_a_time = max(1, max_tokens // len(row))
    found = []
    for first in range(0, len(places), at_a_time):
        some = places[first : first + at_a_time]
        rows = np.tile(row, (len(some), 1))
        rows[np.arange(len(some)), some] = MASK
        of_rows = log_probabilities(net, list(rows), max_tokens)
        found += [of_row[place] for of_row, place in zip(of_rows, some, strict=True)]
    return torch.stack(found)


def marginals(
    net: XTrimoPGLMNet,
    ids: np.ndarray,
    variants: Sequence[Variant],
    strategy: str,
    max_tokens: int,
) -> np.ndarray:
    """Return sums of log-ratios of new and old residues, in the context of the wild type."""
    places = sorted({place for variant in variants for place, _ in variant.substitutions})
    if strategy == "masked":
        log_p = masked_log_probabilities(net, ids, places, max_tokens)
    else:
        log_p = log_probabilities(net, [np.append(ids, EOS)], max_tokens)[0][places]
    row_of = {place: row for row, place in enumerate(places)}
    scores = []
    for variant in variants:
        ratios = [
            log_p[row_of[place], ID[new]] - log_p[row_of[place], ids[place]]
            for place, new in variant.substitutions
        ]
        scores.append(float(sum(ratios)))
    return np.array(scores)


def log_likelihoods(
    net: XTrimoPGLMNet, proteins: Proteins, is_causal: bool, max_tokens: int
) -> list[np.ndarray]:
    """Return the log-likelihood of every residue, given those before it or all others."""
    prompt = np.array(PROMPT)
    if is_causal:
        rows = [np.concatenate([prompt, ids]) for ids in proteins.ids]
        found = log_probabilities(net, rows, max_tokens, is_causal=True)
        n = len(prompt) - 1
        return [
            log_p[n:-1].gather(1, torch.from_numpy(ids)[:, None])[:, 0].numpy()
            for log_p, ids in zip(found, proteins.ids, strict=True)
        ]
    of_proteins = []
    for ids in proteins.ids:
        log_p = masked_log_probabilities(net, ids, list(range(len(ids))), max_tokens)
        of_proteins.append(log_p.gather(1, torch.from_numpy(ids)[:, None])[:, 0].numpy())
    return of_proteins


def perplexity(log_p: np.ndarray) -> float:
    """Return the perplexity of a sequence, given the log-likelihoods of its residues."""
    return float(np.exp(-log_p.mean(dtype=np.float64)))


def substitution_matrix(wild_type: str, scores: pd.Series, offset: int) -> pd.DataFrame:
    """Return scores of single substitutions as places x amino acids; 0 for the wild type."""
    index = pd.Index([f"{old}{i + offset}" for i, old in enumerate(wild_type)])
    matrix = pd.DataFrame(np.nan, index=index, columns=list(STANDARD))
    for name, score in scores.items():
        matrix.loc[name[:-1], name[-1]] = score
    for place, old in zip(index, wild_type, strict=True):
        if old in STANDARD:
            matrix.loc[place, old] = 0.0
    return matrix


def check_variants(names: Sequence[str], wild_type: str, offset: int) -> list[Variant]:
    """Read variants; one error names all that are wrong."""
    variants, problems = [], []
    for name in names:
        try:
            variants.append(read_variant(name, wild_type, offset))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        more = f" So are {len(problems) - 1:,} more." if len(problems) > 1 else ""
        raise ValueError(f"{problems[0]}{more}")
    if not variants:
        raise ValueError("There are no variants to score.")
    if empty := [v.name for v in variants if v.sequence == wild_type and not v.substitutions]:
        raise ValueError(f"{preview(empty)} changes nothing. {HOW_TO_WRITE}.")
    return variants
