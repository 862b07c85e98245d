"""How much of a prediction for a new drug or line is its own, how much that of known ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

PART = 0.25
MIN_KNOWN = 6
MIN_JUDGED = 30
WEIGHTS = np.linspace(0, 1, 21)


class Newcomers(NamedTuple):
    """Rows of a screen as they would be with fewer drugs and lines known.

    Parameters
    ----------
    is_known_n
        Rows without a drug or line that is taken for new, bool.
    has_new_drug_n, has_new_line_n
        Rows with nothing new but one or both drugs, and nothing but the line, bool.
    """

    is_known_n: np.ndarray
    has_new_drug_n: np.ndarray
    has_new_line_n: np.ndarray


def draw_newcomers(
    parents_nd: np.ndarray, lines_n: np.ndarray, is_trained_n: np.ndarray, seed: int
) -> Newcomers | None:
    """Take a quarter of the drugs and of the lines for new.

    Parameters
    ----------
    parents_nd
        Parent structures of the drugs of every row, as numbers.
    lines_n
        Line of every row.
    is_trained_n
        Rows to draw from, bool.
    seed
        Which ones.

    Returns
    -------
    ``None`` if there are too few drugs and lines, or rows.
    """
    rng = np.random.default_rng(seed)
    new = []
    for items in (parents_nd[is_trained_n], lines_n[is_trained_n]):
        known = np.unique(items)
        n_new = round(PART * len(known)) if len(known) >= MIN_KNOWN else 0
        new.append(rng.permutation(known)[:n_new])
    drug_n, line_n = np.isin(parents_nd, new[0]).any(axis=1), np.isin(lines_n, new[1])
    drawn = Newcomers(
        is_trained_n & ~drug_n & ~line_n,
        is_trained_n & drug_n & ~line_n,
        is_trained_n & line_n & ~drug_n,
    )
    enough = drawn.is_known_n.sum() >= 2 * MIN_JUDGED
    judged = max(drawn.has_new_drug_n.sum(), drawn.has_new_line_n.sum()) >= MIN_JUDGED
    return drawn if enough and judged else None


def choose_own_weight(
    own_n: np.ndarray, known_n: np.ndarray, target_n: np.ndarray, is_classification: bool
) -> float | None:
    """Return the weight with which rows with something new are predicted best.

    Parameters
    ----------
    own_n
        Their own predictions, logits or standardised scores.
    known_n
        The mean of those of known drugs or lines in the place of the new ones.
    target_n
        Labels or standardised scores.
    is_classification
        Whether targets are labels. Slope and offset of the logits are then fitted as well.

    Returns
    -------
    ``None`` if there are too few rows, or labels of one kind only.
    """
    if len(target_n) < MIN_JUDGED or len(np.unique(target_n)) < 2:
        return None
    losses = []
    for weight in WEIGHTS:
        z_n = weight * own_n + (1 - weight) * known_n
        if is_classification:
            platt = LogisticRegression(C=1e3).fit(z_n[:, None], target_n)
            losses.append(log_loss(target_n, platt.predict_proba(z_n[:, None])[:, 1]))
        else:
            losses.append(float(np.square(z_n - target_n).mean()))
    return float(WEIGHTS[int(np.argmin(losses))])
