"""What a network is trained on: masked residues, short spans to fill in, whole sequences.

Section 2.2 of Chen et al. 2024, with the numbers of the published training. An example is a pure
function of the seed, the epoch and the protein.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from .._validation import Validated
from ..nn.ranges import Probability
from .network import XTrimoPGLMNet
from .sequences import boundaries_of
from .tokenizer import EOP, EOS, MASK, PROMPT, SMASK, SOP

NO_TARGET = -1
MEAN_SPAN, MAX_SPAN = 3, 39
SINGLE_SPAN = 0.02  # part of the examples that have one span only
MASKED_AS_MASK, MASKED_AS_OTHER = 0.8, 0.1  # the rest stays as it is
N_LETTERS = 27  # residues, gap and stop: 1 to 27
TASKS = ("masked", "spans", "generation")


@dataclass(frozen=True)
class ProteinObjective(Validated):
    """How much of the training goes to each task.

    Examples
    --------
    >>> scxtrimo.protein.ProteinObjective(masked=1.0, spans=0.0, generation=1.0).mix
    array([0.5, 0. , 0.5])
    """

    masked: NonNegativeFloat = 0.5
    """Masked residues, with all others to see."""
    spans: NonNegativeFloat = 0.25
    """Short spans to fill in, one after the other, from all that is left."""
    generation: NonNegativeFloat = 0.25
    """Whole sequences, from left to right."""
    rate: Probability = 0.15
    """Part of the residues that is masked, or cut out as spans."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.masked + self.spans + self.generation:
            raise ValueError("masked, spans and generation are all 0: there is nothing to train.")

    @property
    def mix(self) -> np.ndarray:
        """Return the parts of the tasks, adding up to 1."""
        parts = np.array([self.masked, self.spans, self.generation])
        return parts / parts.sum()


class Example(NamedTuple):
    """A sequence with what is to be predicted; the first ``n_prefix`` tokens see each other."""

    ids: np.ndarray
    targets: np.ndarray  # -1 where nothing is
    positions: np.ndarray  # (n, 2): in the text, and within a span
    n_prefix: int
    task: int


def mask_residues(ids: np.ndarray, rate: float, rng: np.random.Generator) -> Example:
    """Hide some residues."""
    row, targets = np.append(ids, EOS), np.full(len(ids) + 1, NO_TARGET)
    chosen = rng.permutation(len(ids))[: max(1, round(rate * len(ids)))]
    targets[chosen] = ids[chosen]
    fate = rng.random(len(chosen))
    row[chosen[fate < MASKED_AS_MASK]] = MASK
    other = chosen[(fate >= MASKED_AS_MASK) & (fate < MASKED_AS_MASK + MASKED_AS_OTHER)]
    row[other] = rng.integers(1, N_LETTERS + 1, len(other))
    return Example(row, targets, _in_text(len(row)), len(row), 0)


def draw_spans(length: int, rate: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return where spans begin and end, in order and apart."""
    wanted = max(1, round(rate * length))
    sizes: list[int] = []
    while sum(sizes) < wanted:
        size = int(rng.poisson(MEAN_SPAN))
        if 1 <= size <= MAX_SPAN:
            sizes.append(min(size, wanted - sum(sizes)))
        if rng.random() < SINGLE_SPAN and sizes:
            break
    # Random gaps between spans, of at least one residue.
    n_free = length - sum(sizes) - (len(sizes) - 1)
    if n_free < 0:
        return [(0, min(length, sizes[0]))]
    cuts = np.sort(rng.integers(0, n_free + 1, len(sizes)))
    spans, taken = [], 0
    for i, (cut, size) in enumerate(zip(cuts.tolist(), sizes, strict=True)):
        start = cut + taken + i
        spans.append((start, start + size))
        taken += size
    return spans


def cut_spans(ids: np.ndarray, rate: float, rng: np.random.Generator) -> Example:
    """Replace short spans by a token each, and append them in random order."""
    return fill_spans(ids, draw_spans(len(ids), rate, rng), rng)


def fill_spans(
    ids: np.ndarray, spans: Sequence[tuple[int, int]], rng: np.random.Generator
) -> Example:
    """Return the example in which these spans are to be filled in."""
    source: list[int] = []
    marks, end = [], 0
    for start, stop in spans:
        source += ids[end:start].tolist()
        marks.append(len(source))
        source.append(SMASK)
        end = stop
    source += [*ids[end:].tolist(), EOS]
    row, targets = [np.array(source)], [np.full(len(source), NO_TARGET)]
    positions = [_in_text(len(source))]
    for i in rng.permutation(len(spans)):
        span = ids[slice(*spans[i])]
        row.append(np.append(SOP, span))
        targets.append(np.append(span, EOP))
        within = np.arange(1, len(span) + 2)
        positions.append(np.stack([np.full(len(within), marks[i]), within], axis=1))
    whole, targets_of_all, places = map(np.concatenate, (row, targets, positions))
    return Example(whole, targets_of_all, places, len(source), 1)


def continue_whole(ids: np.ndarray) -> Example:
    """Predict the whole sequence, and its end, from left to right."""
    row = np.concatenate([PROMPT, ids])
    targets = np.full(len(row), NO_TARGET)
    targets[len(PROMPT) - 1 :] = [*ids, EOS]
    positions = np.stack([np.zeros(len(row), dtype=int), np.arange(len(row))], axis=1)
    return Example(row, targets, positions, 0, 2)


def _in_text(length: int) -> np.ndarray:
    return np.stack([np.arange(length), np.zeros(length, dtype=int)], axis=1)


def make_example(
    ids: np.ndarray, objective: ProteinObjective, task: int, rng: np.random.Generator
) -> Example:
    """Return the example of a task."""
    if task == 0:
        return mask_residues(ids, objective.rate, rng)
    return cut_spans(ids, objective.rate, rng) if task == 1 else continue_whole(ids)


def losses(net: XTrimoPGLMNet, examples: Sequence[Example], device: torch.device) -> Tensor:
    """Return the mean negative log-likelihood of the targets of each task; NaN without any."""
    lengths = [len(example.ids) for example in examples]
    ids_t, targets_t = (
        torch.from_numpy(np.concatenate(part)).to(device)
        for part in ([e.ids for e in examples], [e.targets for e in examples])
    )
    positions_ta = torch.from_numpy(np.concatenate([e.positions for e in examples])).to(device)
    if net.config.n_axes == 1:
        positions_ta = positions_ta.amax(1, keepdim=True)
    task_t = torch.tensor([e.task for e in examples], device=device).repeat_interleave(
        torch.tensor(lengths, device=device)
    )
    n_prefix = [e.n_prefix for e in examples]
    states_td = net(ids_t, boundaries_of(lengths, device), positions_ta, n_prefix)
    asked = targets_t != NO_TARGET
    loss_q = F.cross_entropy(
        net.output_layer(states_td[asked]).float(), targets_t[asked], reduction="none"
    )
    task_q = task_t[asked]
    sums = loss_q.new_zeros(len(TASKS)).index_add(0, task_q, loss_q)
    return sums / torch.bincount(task_q, minlength=len(TASKS))
