"""What responses are predicted relative to: simple models, fitted in closed form."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

N_ITERATIONS = 15
STRENGTHS = (0.1, 0.25, 0.5, 1.0, 2.0)
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
HELD_OUT_ENTRIES = 0.1
HELD_OUT_LINES = 0.2
MIN_LINES = 10


class ScreenScale(nn.Module):
    """Mean and standard deviation of all rows."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("std", torch.ones((), dtype=torch.float64))

    def fit(self, target_n: np.ndarray) -> None:
        """Set them from training rows."""
        self.mean.fill_(float(target_n.mean()))
        self.std.fill_(max(float(target_n.std()), 1e-6))


class ResponseBase(nn.Module):
    r"""Mean and spread of every drug, and a completed table of lines and drugs.

    .. math::
        y_{ld} \approx \mu_d + \sigma_d M_{ld}, \quad M = \bar z_l + \text{low rank}

    where the low-rank part is a singular value decomposition with soft thresholds
    :cite:p:`Mazumder2010`. The row of a new line is predicted from its expression by ridge
    regression on the rows of the others; the mean and column of a new drug are
    combinations of those of known drugs, by kernel regression on fingerprints, around
    their averages.

    Parameters
    ----------
    n_drugs, n_lines
        Known drugs and lines.
    n_genes
        Genes that are read.
    n_fingerprint
        Bits of a fingerprint.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from scxtrimo.drugs.response_base import ResponseBase
    >>> base = ResponseBase(n_drugs=3, n_lines=20, n_genes=10, n_fingerprint=16)
    >>> rng = np.random.default_rng(0)
    >>> fingerprints = rng.integers(0, 3, (3, 16)).astype(np.float32)
    >>> values = rng.normal(size=(20, 10)).astype(np.float32)
    >>> drugs, lines = np.divmod(np.arange(60), 20)
    >>> base.fit(fingerprints, values, drugs, lines, rng.normal(size=60), seed=0)
    >>> known_d, known_l = torch.arange(3), torch.tensor([0, -1])  # a known line and a new one
    >>> predicted, scale = base(
    ...     torch.from_numpy(fingerprints), known_d, torch.from_numpy(values[:2]), known_l
    ... )
    >>> predicted.shape, scale.shape
    (torch.Size([2, 3]), torch.Size([3]))
    """

    mean_d: Tensor
    scale_d: Tensor
    table_ld: Tensor
    gene_weights_gd: Tensor
    fingerprints_df: Tensor
    mixing_dd: Tensor
    is_known_d: Tensor

    def __init__(self, n_drugs: int, n_lines: int, n_genes: int, n_fingerprint: int) -> None:
        super().__init__()
        for name, shape in {
            "mean_d": (n_drugs + 1,),  # the last of both is for new drugs
            "scale_d": (n_drugs + 1,),
            "table_ld": (n_lines, n_drugs),
            "gene_weights_gd": (n_genes, n_drugs),
            "fingerprints_df": (n_drugs, n_fingerprint),
            "mixing_dd": (n_drugs, n_drugs),
        }.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("is_known_d", torch.ones(n_drugs, dtype=torch.bool))

    def forward(
        self, features_df: Tensor, known_d: Tensor, values_lg: Tensor, known_l: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict all drugs in all lines.

        Parameters
        ----------
        features_df
            Features of the drugs, fingerprints first, shape ``(n_drugs, n_features)``.
        known_d
            Places among the known drugs, int64, -1 for new ones.
        values_lg
            Standardised expression of the lines, shape ``(n_lines, n_genes)``; NaN where
            not measured.
        known_l
            Places among the known lines, int64, -1 for new ones.

        Returns
        -------
        Predictions, shape ``(n_lines, n_drugs)``, and the scale of every drug.
        """
        n_bits = self.fingerprints_df.shape[1]
        similar_qd = tanimoto(features_df[:, :n_bits], self.fingerprints_df)
        is_new = (known_d < 0)[:, None]
        known_qd = nn.functional.one_hot(known_d.clamp(min=0), self.mixing_dd.shape[0]).float()
        weights_qd = torch.where(is_new, similar_qd @ self.mixing_dd, known_qd)
        deviation_d = self.mean_d[:-1] - self.mean_d[-1]
        mean_q = self.mean_d[-1] + weights_qd @ deviation_d
        rows_ld = torch.where(
            (known_l < 0)[:, None],
            values_lg.nan_to_num() @ self.gene_weights_gd,
            self.table_ld[known_l.clamp(min=0)],
        )
        # A drug unlike any has no weights: it is expected to act on a line as drugs do on average.
        mean_l1 = rows_ld[:, self.is_known_d].mean(1, keepdim=True)
        scale_q = self.scale_d[known_d]  # -1 is the last
        return mean_q + scale_q * (mean_l1 + (rows_ld - mean_l1) @ weights_qd.T), scale_q

    @torch.no_grad()
    def fit(
        self,
        fingerprints_df: np.ndarray,
        values_lg: np.ndarray,
        drug_n: np.ndarray,
        line_n: np.ndarray,
        target_n: np.ndarray,
        seed: int,
    ) -> None:
        """Fit everything to training rows.

        Parameters
        ----------
        fingerprints_df
            Fingerprints of all drugs of the screen.
        values_lg
            Standardised expression of all lines.
        drug_n, line_n, target_n
            Drug, line and response of every training row.
        seed
            Of what is held out to choose how much is shrunk.
        """
        n_lines, n_drugs = self.table_ld.shape
        rng = np.random.default_rng(seed)
        mean, mean_d, scale_d = _drug_scales(drug_n, target_n, n_drugs)
        z_n = (target_n - mean_d[drug_n]) / scale_d[drug_n]
        place_n = line_n * n_drugs + drug_n
        times = np.bincount(place_n, minlength=n_lines * n_drugs).reshape(n_lines, n_drugs)
        total = np.bincount(place_n, z_n, n_lines * n_drugs).reshape(n_lines, n_drugs)
        table_ld, is_there = total / np.maximum(times, 1), times > 0
        completed = _complete(table_ld, is_there, rng)
        trained_l, trained_d = is_there.any(1), is_there.any(0)
        completed[~trained_l] = completed[:, ~trained_d] = 0
        weights = _ridge(np.nan_to_num(values_lg[trained_l]), completed[trained_l], rng)
        known = torch.from_numpy(fingerprints_df[trained_d])
        kernel = tanimoto(known, known).double().numpy()
        mixing = np.zeros((n_drugs, n_drugs))
        mixing[np.ix_(trained_d, trained_d)] = np.linalg.inv(kernel + np.eye(len(kernel)))
        for name, value in {
            "mean_d": np.append(mean_d, mean),
            "scale_d": np.append(scale_d, np.median(scale_d[trained_d])),
            "table_ld": completed,
            "gene_weights_gd": weights,
            "fingerprints_df": fingerprints_df,
            "mixing_dd": mixing,
            "is_known_d": trained_d,
        }.items():
            getattr(self, name).copy_(torch.from_numpy(value))


def _drug_scales(
    drug_n: np.ndarray, target_n: np.ndarray, n_drugs: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the mean of all rows, and mean and spread of every drug, shrunk if rows are few."""
    times_d = np.bincount(drug_n, minlength=n_drugs)
    mean = float(target_n.mean())
    mean_d = (np.bincount(drug_n, target_n, n_drugs) + 0.5 * mean) / (times_d + 0.5)
    residual_n = target_n - mean_d[drug_n]
    within = max(float(residual_n.std()), 1e-2 * float(target_n.std()))
    squares_d = np.bincount(drug_n, residual_n**2, n_drugs)
    return mean, mean_d, np.sqrt((squares_d + 5 * within**2) / (times_d + 5))


def _complete(table_ld: np.ndarray, is_there: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Complete a table; how much it is shrunk is chosen on a tenth of its entries."""
    held_out = is_there & (rng.random(table_ld.shape) < HELD_OUT_ENTRIES)
    errors = []
    for strength in STRENGTHS:
        guess = _soft_impute(table_ld, is_there & ~held_out, strength)
        errors.append(((guess - table_ld)[held_out] ** 2).sum())
    strength = STRENGTHS[int(np.argmin(errors))] if held_out.any() else 1.0
    return _soft_impute(table_ld, is_there, strength)


def _soft_impute(table_ld: np.ndarray, is_there: np.ndarray, strength: float) -> np.ndarray:
    mean_l = np.where(is_there, table_ld, 0).sum(1) / (is_there.sum(1) + 2)
    residual = table_ld - mean_l[:, None]
    threshold = strength * sum(np.sqrt(table_ld.shape))  # that of noise with unit variance is 1
    low_rank = np.zeros_like(table_ld)
    for _ in range(N_ITERATIONS):
        left, s, right = np.linalg.svd(np.where(is_there, residual, low_rank), full_matrices=False)
        low_rank = (left * np.maximum(s - threshold, 0)) @ right
    return mean_l[:, None] + low_rank


def _ridge(x_lg: np.ndarray, rows_ld: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Predict rows from expression; the penalty is chosen on a fifth of the lines."""
    held_out = rng.permutation(len(x_lg)) < HELD_OUT_LINES * len(x_lg)
    best = max(RIDGES)
    if len(x_lg) >= MIN_LINES:
        errors = [
            ((x_lg[held_out] @ w - rows_ld[held_out]) ** 2).sum()
            for w in (_solve_ridge(x_lg[~held_out], rows_ld[~held_out], r) for r in RIDGES)
        ]
        best = RIDGES[int(np.argmin(errors))]
    return _solve_ridge(x_lg, rows_ld, best)


def _solve_ridge(x_lg: np.ndarray, rows_ld: np.ndarray, ridge: float) -> np.ndarray:
    kernel = x_lg.astype(np.float64) @ x_lg.T
    penalty = ridge * max(np.trace(kernel) / max(len(kernel), 1), 1e-6)
    return x_lg.T @ np.linalg.solve(kernel + penalty * np.eye(len(kernel)), rows_ld)


def tanimoto(x_df: Tensor, y_kf: Tensor) -> Tensor:
    """Return the Tanimoto similarity of fingerprints with counts, ``(n_x, n_y)``.

    Examples
    --------
    >>> import torch
    >>> tanimoto(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    tensor([[0.6667, 0.0000]])
    """
    rows = [
        torch.minimum(x_f, y_kf).sum(1) / torch.maximum(x_f, y_kf).sum(1).clamp(min=1e-6)
        for x_f in x_df
    ]
    return torch.stack(rows)
