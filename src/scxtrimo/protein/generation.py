"""New sequences, residue by residue, with the keys and values of those before kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .network import XTrimoPGLMNet
from .tokenizer import EOP, EOS, ID, PROMPT, SMASK, SOP, STANDARD

STOPS = (EOP, EOS)


class Sampling(NamedTuple):
    """How the next residue is drawn."""

    top_p: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    constrained: bool = True

    def probabilities(self, logits_nv: Tensor) -> Tensor:
        """Return the probabilities to draw from, rows adding up to 1."""
        logits_nv = logits_nv.float()
        if self.constrained:
            allowed = torch.full_like(logits_nv[0], -torch.inf)
            allowed[[*(ID[residue] for residue in STANDARD), *STOPS]] = 0
            logits_nv = logits_nv + allowed
        if not self.temperature:
            return F.one_hot(logits_nv.argmax(-1), logits_nv.shape[1]).float()
        logits_nv = logits_nv / self.temperature
        if self.top_k is not None and self.top_k < logits_nv.shape[1]:
            least_n1 = logits_nv.topk(self.top_k).values[:, -1:]
            logits_nv = logits_nv.masked_fill(logits_nv < least_n1, -torch.inf)
        p_nv = logits_nv.softmax(-1)
        if self.top_p < 1:
            sorted_nv, order = p_nv.sort(descending=True)
            # A token goes if those before it are likely enough together; the first one stays.
            before = sorted_nv.cumsum(-1) - sorted_nv
            kept = torch.zeros_like(p_nv).scatter(-1, order, (before < self.top_p).float())
            p_nv = p_nv * kept
        return p_nv / p_nv.sum(-1, keepdim=True)


class Cache:
    """Keys and values of all blocks, ``(n, n_heads, length, head_width)``, with room for more."""

    def __init__(self, net: XTrimoPGLMNet, n: int, length: int) -> None:
        config, weight = net.config, net.output_layer.weight
        shape = (config.n_layers, 2, n, config.n_heads, length, config.head_width)
        self.kept = weight.new_zeros(shape)
        self.filled = torch.zeros(n, dtype=torch.long, device=weight.device)

    def append(
        self, mask: Tensor, is_prefix: bool = False
    ) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
        """Return attention of new tokens, ``mask`` of shape ``(n, n_new)``, to all before them.

        The tokens of a prefix look at each other as well.
        """
        n, n_new = mask.shape
        places = self.filled[:, None] + torch.arange(n_new, device=mask.device)
        columns = torch.arange(self.kept.shape[4], device=mask.device)
        sees = columns <= places[..., None]  # rows of tokens that are no tokens see something, too
        if is_prefix:
            sees = columns < (self.filled + mask.sum(1))[:, None, None].expand_as(
                places[..., None]
            )
        rows = torch.arange(n, device=mask.device)[:, None].expand_as(places)[mask]
        until = int(places.max()) + 1

        def attend(q_the: Tensor, k_the: Tensor, v_the: Tensor, block: int) -> Tensor:
            for kind, new in enumerate((k_the, v_the)):
                self.kept[block, kind, rows, :, places[mask]] = new
            q = q_the.new_zeros(n, n_new, *q_the.shape[1:])
            q[mask] = q_the
            k, v = self.kept[block, :, :, :, :until]
            attended = F.scaled_dot_product_attention(
                q.transpose(1, 2), k, v, sees[:, None, :, :until]
            )
            return attended.transpose(1, 2)[mask]

        self.filled = self.filled + mask.sum(1)
        return attend

    def keep(self, rows: Tensor) -> None:
        """Forget the sequences that have ended."""
        self.kept, self.filled = self.kept[:, :, rows], self.filled[rows]


def generate(
    net: XTrimoPGLMNet,
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    max_length: int,
    seed: int,
    progress: Callable[[int], object] = lambda n: None,
) -> list[np.ndarray]:
    """Continue prompts until the sequence ends or has ``max_length`` residues.

    What is drawn for a prompt depends on the seed and its number, not on the others.
    """
    device = next(net.parameters()).device
    starts = [np.concatenate([np.array(PROMPT), prompt]) for prompt in prompts]
    lengths = torch.tensor([len(start) for start in starts], device=device)
    rows = torch.arange(len(starts), device=device)
    generators = [np.random.default_rng((seed, i)) for i in range(len(starts))]
    cache = Cache(net, len(starts), len(PROMPT) + max_length)
    mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
    ids_t = torch.from_numpy(np.concatenate(starts)).to(device)
    places_t = torch.arange(mask.shape[1], device=device).expand_as(mask)[mask]
    found = [list(prompt) for prompt in prompts]
    while len(rows):
        states_td = net.run(ids_t, positions(net, places_t), cache.append(mask))
        last = mask.sum(1).cumsum(0) - 1
        p_nv = sampling.probabilities(net.output_layer(states_td[last])).cpu().numpy()
        drawn = [_draw(p, generators[row]) for p, row in zip(p_nv, rows.tolist(), strict=True)]
        goes_on = []
        for i, (row, token) in enumerate(zip(rows.tolist(), drawn, strict=True)):
            if token in STOPS:
                continue
            found[row].append(token)
            if len(found[row]) < max_length:
                goes_on.append(i)
        progress(len(rows) - len(goes_on))
        kept = torch.tensor(goes_on, dtype=torch.long, device=device)
        cache.keep(kept)
        rows, lengths = rows[kept], lengths[kept]
        ids_t = torch.tensor([drawn[i] for i in goes_on], dtype=torch.long, device=device)
        places_t, lengths = lengths, lengths + 1
        mask = torch.ones(len(rows), 1, dtype=torch.bool, device=device)
    return [np.array(ids, dtype=np.int64) for ids in found]


def infill(
    net: XTrimoPGLMNet,
    source: np.ndarray,
    n: int,
    sampling: Sampling,
    max_span: int,
    seed: int,
) -> list[np.ndarray]:
    """Fill in the marks of a sequence ``n`` times, one mark after the other."""
    device = next(net.parameters()).device
    row = np.append(source, EOS)
    marks = np.flatnonzero(row == SMASK).tolist()
    length = len(row) + len(marks) * (max_span + 1)
    cache = Cache(net, n, length)
    mask = torch.ones(n, len(row), dtype=torch.bool, device=device)
    place_t = torch.arange(len(row), device=device).repeat(n)
    source_ta = torch.stack([place_t, torch.zeros_like(place_t)], dim=1)
    ids_t = torch.from_numpy(np.tile(row, n)).to(device)
    net.run(ids_t, source_ta, cache.append(mask, is_prefix=True))
    generators = [np.random.default_rng((seed, i)) for i in range(n)]
    spans: list[list[list[int]]] = [[[] for _ in marks] for _ in range(n)]
    # What a sequence is given next: its mark, the place in the span, and a token.
    state = dict.fromkeys(range(n), (0, 1, SOP))
    mask = mask[:, :1]
    while state:
        given = list(state.values())
        ids_t = torch.tensor([token for _, _, token in given], device=device)
        pairs = [(marks[which], place) for which, place, _ in given]
        states_td = net.run(ids_t, torch.tensor(pairs, device=device), cache.append(mask))
        p_nv = sampling.probabilities(net.output_layer(states_td)).cpu().numpy()
        kept = []
        for at, (i, (which, place, _)) in enumerate(list(state.items())):
            token = _draw(p_nv[at], generators[i])
            is_over = token in STOPS
            if not is_over:
                spans[i][which].append(token)
                state[i] = (which, place + 1, token)
            if is_over or len(spans[i][which]) == max_span:
                state[i] = (which + 1, 1, SOP)
            if state[i][0] < len(marks):
                kept.append(at)
            else:
                del state[i]
        mask = mask[kept]
        cache.keep(torch.tensor(kept, dtype=torch.long, device=device))
    return [_filled(source, of_one) for of_one in spans]


def _filled(source: np.ndarray, spans: list[list[int]]) -> np.ndarray:
    """Return a sequence with spans in the place of its marks."""
    parts = iter(spans)
    whole = [next(parts) if token == SMASK else [token] for token in source.tolist()]
    return np.array([token for part in whole for token in part], dtype=np.int64)


def positions(net: XTrimoPGLMNet, places_t: Tensor) -> Tensor:
    """Return the positions of tokens in sequences that are generated."""
    if net.config.n_axes == 1:
        return places_t[:, None]
    return torch.stack([torch.zeros_like(places_t), places_t], dim=1)


def _draw(p: np.ndarray, rng: np.random.Generator) -> int:
    cumulative = np.cumsum(p, dtype=np.float64)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
