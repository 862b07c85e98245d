"""Contacts between residues, from attention (Rao et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from .network import Reach, XTrimoPGLMNet
from .sequences import boundaries_of
from .tokenizer import EOS

MIN_SEPARATION = 6  # residues that are nearer in the sequence are in contact anyway
CONTACT_DISTANCE = 8.0  # angstrom, between beta carbons
PENALTY = 0.15  # inverse strength of the L1 penalty


class ContactHead(NamedTuple):
    """Weights of the attention of all heads, in the order of the blocks, and an intercept."""

    weights: np.ndarray
    intercept: float


class Watched(Reach):
    """Full attention of one protein that is kept, ``(n_heads, length, length)`` for each block."""

    def __init__(self, length: int, device: torch.device) -> None:
        super().__init__(boundaries_of([length], device), [length])
        self.maps: list[Tensor] = []

    def __call__(self, q_the: Tensor, k_the: Tensor, v_the: Tensor, number: int) -> Tensor:
        """Attend, and keep the weights."""
        scores_hts = torch.einsum("the,she->hts", q_the.float(), k_the.float())
        weights_hts = (scores_hts * q_the.shape[-1] ** -0.5).softmax(-1)
        self.maps.append(weights_hts.cpu())
        return torch.einsum("hts,she->the", weights_hts, v_the.float()).to(v_the.dtype)


def attention_maps(net: XTrimoPGLMNet, ids: np.ndarray) -> np.ndarray:
    """Return attention among residues, ``(n_layers, n_heads, n_residues, n_residues)``."""
    device = net.output_layer.weight.device
    ids_t = torch.from_numpy(np.append(ids, EOS)).to(device)
    watched = Watched(len(ids_t), device)
    net.run(ids_t, net.positions(watched.proteins, is_causal=False), watched)
    return torch.stack(watched.maps)[:, :, :-1, :-1].numpy()


def features(maps: np.ndarray) -> np.ndarray:
    """Return symmetric attention, less what its rows and columns explain, by head.

    The average product correction (Dunn et al. 2008); shape ``(n_maps, n_residues, n_residues)``.
    """
    flat = maps.reshape(-1, *maps.shape[-2:]).astype(np.float64)
    flat = flat + flat.transpose(0, 2, 1)
    rows, columns = flat.sum(2, keepdims=True), flat.sum(1, keepdims=True)
    return flat - rows * columns / flat.sum((1, 2), keepdims=True)


def pairs_apart(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of residues that are far from each other in the sequence."""
    return np.triu_indices(length, MIN_SEPARATION)


def fit(
    net: XTrimoPGLMNet, ids: Sequence[np.ndarray], contacts: Sequence[np.ndarray]
) -> ContactHead:
    """Fit a logistic regression with an L1 penalty to known contacts."""
    x, y = [], []
    for one, known in zip(ids, contacts, strict=True):
        pairs = pairs_apart(len(one))
        is_known = np.isfinite(known[pairs])
        x.append(features(attention_maps(net, one))[:, *pairs].T[is_known])
        y.append(known[pairs][is_known] > 0)
    labels = np.concatenate(y)
    if labels.all() or not labels.any():
        raise ValueError(
            f"Of {len(labels):,} pairs of residues {int(labels.sum()):,} are in contact: both "
            "kinds are needed. Give structures of more than a few residues."
        )
    regression = LogisticRegression(l1_ratio=1.0, C=PENALTY, solver="liblinear")
    matrix = np.concatenate(x)
    scale = matrix.std(0).clip(1e-12)
    regression.fit(matrix / scale, labels)
    return ContactHead(regression.coef_[0] / scale, float(regression.intercept_[0]))


def predict(net: XTrimoPGLMNet, head: ContactHead, ids: np.ndarray) -> np.ndarray:
    """Return probabilities of contacts, symmetric, float32, ``(n_residues, n_residues)``."""
    z = np.tensordot(head.weights, features(attention_maps(net, ids)), axes=1) + head.intercept
    return (1 / (1 + np.exp(-z))).astype(np.float32)


def known_contacts(structure: Any, length: int, name: str) -> np.ndarray:
    """Return contacts as 0 and 1, NaN where unknown, of a matrix or of coordinates."""
    array = np.asarray(structure, dtype=np.float64)
    if array.shape == (length, length):
        return array
    if array.shape == (length, 3):
        distance = np.linalg.norm(array[:, None] - array[None], axis=-1)
        return np.where(np.isfinite(distance), distance < CONTACT_DISTANCE, np.nan)
    raise ValueError(
        f"The structure of {name} has the shape {array.shape}: give coordinates, ({length}, 3), "
        f"or contacts, ({length}, {length}), of its {length} residues."
    )


def of_names(structures: Mapping[str, Any] | Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Return structures in the order of proteins."""
    if isinstance(structures, Mapping):
        if missing := [name for name in names if name not in structures]:
            raise ValueError(f"There is no structure of {missing[0]!r}.")
        return [structures[name] for name in names]
    found = list(structures)
    if len(found) != len(names):
        raise ValueError(f"There are {len(found)} structures of {len(names)} proteins.")
    return found


def precision_at(predicted: np.ndarray, known: np.ndarray, per_residue: float = 0.2) -> float:
    """Return how many of the ``per_residue * length`` most likely pairs are in contact."""
    pairs = pairs_apart(len(known))
    is_known = np.isfinite(known[pairs])
    order = np.argsort(-predicted[pairs][is_known], kind="stable")
    n = max(1, round(per_residue * len(known)))
    return float((known[pairs][is_known][order[:n]] > 0).mean())
