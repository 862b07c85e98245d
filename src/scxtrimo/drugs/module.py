"""Networks of drugs and cell lines, with their configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from .._validation import Fraction, Validated
from ..nn.embedding import TokenEmbedding
from ..nn.layers import Encoder
from ..nn.ragged import max_per_cell, mean_per_cell
from .molecules import need

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
    >>> from scxtrimo.drugs.module import ResponseBase
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


N_GRAPH_HEADS = 4


class MoleculeWidths(NamedTuple):
    """How many features molecules have.

    Parameters
    ----------
    n_atom, n_bond
        Features of an atom and of a bond.
    n_fingerprint
        Bits of a fingerprint, which are the first features of a drug.
    n_features
        All features of a drug.

    Examples
    --------
    >>> from scxtrimo.drugs.module import MoleculeWidths
    >>> MoleculeWidths(n_atom=30, n_bond=8, n_fingerprint=1024, n_features=1034).n_features
    1034
    """

    n_atom: int
    n_bond: int
    n_fingerprint: int
    n_features: int


class MoleculeAttention(nn.Module):
    """Graph attention over the atoms of molecules, with a residual path around every layer.

    Parameters
    ----------
    widths
        Numbers of features.
    n_hidden
        Width of the layers, a multiple of 4.
    n_layers
        Number of layers.
    n_out
        Width of the result.

    Notes
    -----
    GATv2 of PyTorch Geometric. DeepDDS :cite:p:`Wang2021` reads atoms with graph attention too.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.drugs.module import MoleculeAttention, MoleculeWidths
    >>> widths = MoleculeWidths(n_atom=4, n_bond=2, n_fingerprint=16, n_features=20)
    >>> attention = MoleculeAttention(widths, n_hidden=8, n_layers=1, n_out=16)
    >>> atoms = torch.randn(3, 4)  # two in one molecule, one in another
    >>> bonds, molecule_of = torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 0, 1])
    >>> attention(atoms, bonds, torch.randn(2, 2), molecule_of, n_molecules=2).shape
    torch.Size([2, 16])
    """

    def __init__(self, widths: MoleculeWidths, n_hidden: int, n_layers: int, n_out: int) -> None:
        super().__init__()
        geometric = need("torch_geometric.nn")
        self.embed = nn.Linear(widths.n_atom, n_hidden)
        self.layers = nn.ModuleList(
            geometric.GATv2Conv(
                n_hidden, n_hidden // N_GRAPH_HEADS, heads=N_GRAPH_HEADS, edge_dim=widths.n_bond
            )
            for _ in range(n_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(n_hidden) for _ in range(n_layers))
        self.out = nn.Sequential(nn.Linear(2 * n_hidden, n_out), nn.LayerNorm(n_out))

    def forward(
        self,
        atoms_af: Tensor,
        bonds_2e: Tensor,
        bonds_ef: Tensor,
        molecule_of_a: Tensor,
        n_molecules: int,
    ) -> Tensor:
        """Return one vector per molecule.

        Parameters
        ----------
        atoms_af
            Features of the atoms of all molecules, shape ``(n_atoms, n_atom_features)``.
        bonds_2e
            Atoms that are bound, each bond in both directions, int64, shape ``(2, n_bonds)``.
        bonds_ef
            Features of the bonds, shape ``(n_bonds, n_bond_features)``.
        molecule_of_a
            Molecule of every atom, in increasing order, int64, shape ``(n_atoms,)``.
        n_molecules
            Number of molecules.

        Returns
        -------
        Tensor of shape ``(n_molecules, n_out)``.
        """
        x_ad = self.embed(atoms_af)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x_ad = x_ad + F.gelu(layer(norm(x_ad), bonds_2e, bonds_ef))
        total_md = x_ad.new_zeros(n_molecules, x_ad.shape[1]).index_add(0, molecule_of_a, x_ad)
        n_atoms_m = torch.bincount(molecule_of_a, minlength=n_molecules)
        most_md = torch.stack([x.amax(0) for x in x_ad.split(n_atoms_m.tolist())])
        return self.out(torch.cat([total_md / n_atoms_m[:, None], most_md], dim=1))


class DrugTower(nn.Module):
    """Vectors of drugs: graph, fingerprint and descriptors, and a memory of the known ones.

    The memory of a drug is a vector of its own, left out at random in training; a drug that was
    not trained on has none, and is read by its structure alone.

    Parameters
    ----------
    n_drugs
        Number of known drugs.
    widths
        Numbers of features.
    n_hidden
        Width of the result.
    reads_graph, reads_fingerprint
        Which of the two are read.
    n_graph_hidden, n_graph_layers
        See :class:`MoleculeAttention`.
    memory_dropout
        How often the memory of a drug is left out in training.
    dropout
        Dropout of the fingerprint.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.drugs.module import DrugTower, MoleculeWidths
    >>> widths = MoleculeWidths(n_atom=4, n_bond=2, n_fingerprint=16, n_features=20)
    >>> tower = DrugTower(n_drugs=5, widths=widths, n_hidden=8, reads_graph=False)
    >>> drugs = {"features_df": torch.randn(2, 20), "known_d": torch.tensor([3, -1])}
    >>> tower(drugs).shape
    torch.Size([2, 8])
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(
        self,
        n_drugs: int,
        widths: MoleculeWidths,
        n_hidden: int,
        reads_graph: bool = True,
        reads_fingerprint: bool = True,
        n_graph_hidden: int = 64,
        n_graph_layers: int = 3,
        memory_dropout: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.memory_dropout = memory_dropout
        self.dropout = nn.Dropout(dropout)
        self.graph = (
            MoleculeAttention(widths, n_graph_hidden, n_graph_layers, n_hidden)
            if reads_graph
            else None
        )
        self.fingerprint = (
            nn.Sequential(
                nn.Linear(widths.n_features, n_hidden), nn.GELU(), nn.LayerNorm(n_hidden)
            )
            if reads_fingerprint
            else None
        )
        self.memory = nn.Embedding(n_drugs, n_hidden)
        self.register_buffer("feature_mean", torch.zeros(widths.n_features))
        self.register_buffer("feature_scale", torch.zeros(widths.n_features))

    def forward(self, drugs: dict[str, Tensor]) -> Tensor:
        """Return the vectors of drugs.

        Parameters
        ----------
        drugs
            ``features_df``, float32, shape ``(n_drugs, n_features)``; ``known_d``, their places in
            the memory, int64, -1 for new drugs; and, if graphs are read, what
            :meth:`MoleculeAttention.forward` takes.

        Returns
        -------
        Tensor of shape ``(n_drugs, n_hidden)``.
        """
        known_d = drugs["known_d"]
        is_known_d = known_d >= 0
        if self.training:
            is_known_d = is_known_d & (
                torch.rand(len(known_d), device=known_d.device) >= self.memory_dropout
            )
        x_dh = self.memory(known_d.clamp(min=0)) * is_known_d[:, None]
        if self.fingerprint is not None:
            scaled_df = (drugs["features_df"] - self.feature_mean) * self.feature_scale
            x_dh = x_dh + self.fingerprint(self.dropout(scaled_df.clamp(-5, 5)))
        if self.graph is not None:
            x_dh = x_dh + self.graph(
                *(drugs[name] for name in ("atoms_af", "bonds_2e", "bonds_ef", "molecule_of_a")),
                len(known_d),
            )
        return x_dh


class LineTower(nn.Module):
    """xTrimoGene's encoder in bulk mode: every measured gene of a cell line is a token.

    A token is the sum of the value (auto-discretised), the gene, and the gene times the value. The
    mean of the last, which is a principal component where gene embeddings are those of a PCA, goes
    around the encoder as well.

    Parameters
    ----------
    n_genes
        Genes the model reads.
    n_hidden, n_layers, n_heads, n_bins
        See :class:`Encoder` and :class:`~scxtrimo.nn.AutoDiscretization`.
    n_out
        Width of the result.
    n_lines
        Number of known lines, of which each has a memory; 0 for none.
    memory_dropout
        How often the memory of a line is left out in training.
    dropout
        Dropout of the encoder.

    Notes
    -----
    Single cells have tokens of their expressed genes only (Gong et al. 2023). In bulk a zero is a
    measurement, so that it has a token; genes that a panel lacks have none.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.drugs.module import LineTower
    >>> tower = LineTower(n_genes=10, n_hidden=8, n_layers=1, n_heads=2, n_bins=10, n_out=16)
    >>> lines = {
    ...     "values_t": torch.randn(20),
    ...     "gene_ids_t": torch.arange(10).repeat(2),
    ...     "cu_seqlens": torch.tensor([0, 10, 20], dtype=torch.int32),
    ...     "known_l": torch.tensor([-1, -1]),
    ... }
    >>> tower(lines).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        n_genes: int,
        n_hidden: int,
        n_layers: int,
        n_heads: int,
        n_bins: int,
        n_out: int,
        n_lines: int = 0,
        memory_dropout: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.memory_dropout = memory_dropout
        self.tokens = TokenEmbedding(n_genes, n_hidden, n_bins)
        self.encoder = Encoder(n_layers, n_hidden, n_heads, dropout=dropout)
        self.pooled = nn.Linear(2 * n_hidden, n_out)
        self.linear = nn.Linear(n_hidden, n_out)
        self.norm = nn.LayerNorm(n_out)
        self.memory = nn.Embedding(n_lines, n_out) if n_lines else None

    def forward(self, lines: dict[str, Tensor]) -> Tensor:
        """Return the vectors of lines.

        Parameters
        ----------
        lines
            ``values_t``, standardised expression; ``gene_ids_t``, int64; ``cu_seqlens``, the
            boundaries of the lines, int32; ``known_l``, places in the memory, -1 for new lines.

        Returns
        -------
        Tensor of shape ``(n_lines, n_out)``.
        """
        values_t, genes_t, cu_seqlens = lines["values_t"], lines["gene_ids_t"], lines["cu_seqlens"]
        linear_td = values_t[:, None] * self.tokens.gene(genes_t)
        x_td = self.encoder(self.tokens(values_t, genes_t) + linear_td, cu_seqlens)
        summary_ld = torch.cat(
            [mean_per_cell(x_td, cu_seqlens), max_per_cell(x_td, cu_seqlens)], dim=1
        )
        # A mean over the genes that are there estimates the one over all.
        component_ld = mean_per_cell(linear_td, cu_seqlens)
        component_ld = component_ld * self.tokens.gene.num_embeddings**0.5
        x_lh = 0.3 * self.pooled(summary_ld) + self.linear(component_ld)
        if self.memory is not None:
            known_l = lines["known_l"]
            is_known_l = known_l >= 0
            if self.training:
                is_known_l = is_known_l & (
                    torch.rand(len(known_l), device=known_l.device) >= self.memory_dropout
                )
            x_lh = x_lh + self.memory(known_l.clamp(min=0)) * is_known_l[:, None]
        return self.norm(x_lh)


class PackedLinear(nn.Module):
    """One linear layer for each of several members.

    Parameters
    ----------
    n_members
        How many.
    n_in, n_out
        Widths.
    """

    def __init__(self, n_members: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_members, n_in, n_out) * n_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_members, 1, n_out))

    def forward(self, x_knd: Tensor) -> Tensor:
        """Transform ``(n_members, n_rows, n_in)`` to ``(n_members, n_rows, n_out)``."""
        return torch.baddbmm(self.bias, x_knd, self.weight)


def join_drugs(x_ndh: Tensor) -> Tensor:
    """Describe the drugs of a row regardless of their order, exactly.

    Parameters
    ----------
    x_ndh
        Vectors of one or two drugs, ``(n_rows, 1 or 2, n_hidden)``.

    Returns
    -------
    The vector of a single drug; sum, distance and product of two. ``(n_rows, n_joined)``.

    Examples
    --------
    >>> import torch
    >>> join_drugs(torch.tensor([[[1.0], [3.0]]]))
    tensor([[4., 2., 3.]])
    """
    if x_ndh.shape[1] == 1:
        return x_ndh[:, 0]
    first, second = x_ndh.unbind(1)
    return torch.cat([first + second, (first - second).abs(), first * second], dim=1)


class ResponseHead(nn.Module):
    """Members that predict a number from drugs and line.

    Parameters
    ----------
    n_members
        How many; they differ in their random starts and in how they weight their input.
    n_drugs
        Drugs per row, 1 or 2.
    n_hidden
        Width of the vectors of drugs and lines.
    dropout
        Dropout before every layer.

    Examples
    --------
    >>> import torch
    >>> from scxtrimo.drugs.module import ResponseHead
    >>> head = ResponseHead(n_members=4, n_drugs=2, n_hidden=8, dropout=0.1)
    >>> head(drugs_ndh=torch.randn(5, 2, 8), lines_nh=torch.randn(5, 8)).shape
    torch.Size([4, 5])
    """

    def __init__(self, n_members: int, n_drugs: int, n_hidden: int, dropout: float) -> None:
        super().__init__()
        n_in = (2 + (1 if n_drugs == 1 else 3)) * n_hidden
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(n_members, 1, n_in))
        self.inner = PackedLinear(n_members, n_in, 2 * n_hidden)
        self.middle = PackedLinear(n_members, 2 * n_hidden, n_hidden)
        self.out = PackedLinear(n_members, n_hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, drugs_ndh: Tensor, lines_nh: Tensor) -> Tensor:
        """Predict every row with every member.

        Parameters
        ----------
        drugs_ndh
            Vectors of the drugs, shape ``(n_rows, n_drugs, n_hidden)``.
        lines_nh
            Vectors of the lines, shape ``(n_rows, n_hidden)``.

        Returns
        -------
        Predictions, shape ``(n_members, n_rows)``.
        """
        together_nh = drugs_ndh.sum(1) * lines_nh
        x_nd = torch.cat([join_drugs(drugs_ndh), lines_nh, together_nh], dim=1)
        x_knd = self.dropout(x_nd[None] * self.scale)
        x_knd = self.dropout(F.gelu(self.inner(x_knd)))
        return self.out(self.dropout(F.gelu(self.middle(x_knd))))[..., 0]


@dataclass(frozen=True)
class DrugConfig(Validated):
    """Hyper-parameters of a model of drugs and cell lines.

    Parameters
    ----------
    n_genes
        How many genes the encoder reads, those that vary most among the cell lines.
    n_linear_genes
        How many genes the linear part of a response model reads.
    n_hidden
        Width of the vectors of drugs and lines.
    n_members
        Members of the ensemble. They share what reads drugs and lines.
    drug_input
        What is read of a drug: ``"graph"`` (attention over atoms), ``"fingerprint"`` (Morgan
        fingerprint and descriptors) or ``"both"``.
    n_graph_hidden, n_graph_layers
        Width and depth of the attention over atoms.
    n_line_hidden, n_line_layers, n_line_heads, n_bins
        Encoder of cell lines; see :class:`~scxtrimo.model.XTrimoGeneConfig`.
    memory_dropout
        How often a known drug or line is treated as a new one in training.
    gene_dropout
        Largest part of the genes left out of a line in training, so that other panels are read.
    dropout
        Dropout of the members; the encoders have half of it.

    Raises
    ------
    ValueError
        If a field has an impossible value.

    Examples
    --------
    >>> from scxtrimo.drugs import DrugConfig
    >>> DrugConfig(drug_input="fingerprint").n_hidden
    128
    """

    n_genes: PositiveInt = 256
    n_linear_genes: PositiveInt = 2048
    n_hidden: PositiveInt = 128
    n_members: PositiveInt = 4
    drug_input: Literal["graph", "fingerprint", "both"] = "both"
    n_graph_hidden: PositiveInt = 64
    n_graph_layers: PositiveInt = 3
    n_line_hidden: PositiveInt = 64
    n_line_layers: PositiveInt = 1
    n_line_heads: PositiveInt = 4
    n_bins: PositiveInt = 50
    memory_dropout: Fraction = 0.1
    gene_dropout: Fraction = 0.25
    dropout: Fraction = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_line_hidden % self.n_line_heads:
            raise ValueError(
                f"n_line_hidden={self.n_line_hidden} must be a multiple of "
                f"n_line_heads={self.n_line_heads}."
            )
        if self.n_graph_hidden % 4:
            raise ValueError(f"n_graph_hidden={self.n_graph_hidden} must be a multiple of 4.")


class DrugModule(nn.Module):
    """Encodes drugs and lines and predicts what they do together.

    Parameters
    ----------
    n_drugs, n_lines
        How many drugs and lines are known.
    n_genes
        How many genes are known of a line. The encoder reads at most ``config.n_genes``.
    drugs_per_row
        1 or 2.
    widths
        Numbers of features of molecules.
    config
        Hyper-parameters.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from scxtrimo.drugs import DrugConfig
    >>> from scxtrimo.drugs.module import DrugModule
    >>> from scxtrimo.drugs.module import MoleculeWidths
    >>> widths = MoleculeWidths(n_atom=4, n_bond=2, n_fingerprint=16, n_features=20)
    >>> config = DrugConfig(drug_input="fingerprint")
    >>> module = DrugModule(5, 3, 10, drugs_per_row=2, widths=widths, config=config)
    >>> module.line_values.copy_(torch.randn(3, 10)).shape  # known lines x genes
    torch.Size([3, 10])
    >>> module.start_from_data(np.random.rand(5, 20), is_trained_l=np.array([True, True, False]))
    >>> drugs_dh, lines_lh = torch.randn(5, 128), torch.randn(3, 128)
    >>> pairs, lines_n = torch.tensor([[0, 1], [2, 4]]), torch.tensor([0, 2])
    >>> module.predict_rows(drugs_dh, lines_lh, pairs, lines_n).shape
    torch.Size([4, 2])
    """

    line_values: Tensor
    read_genes: Tensor
    drug_is_known: Tensor
    line_is_known: Tensor
    temperature: Tensor
    log_odds: Tensor
    own_weight: Tensor

    def __init__(
        self,
        n_drugs: int,
        n_lines: int,
        n_genes: int,
        drugs_per_row: int,
        widths: MoleculeWidths,
        config: DrugConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.drugs = DrugTower(
            n_drugs,
            widths,
            config.n_hidden,
            config.drug_input != "fingerprint",
            config.drug_input != "graph",
            config.n_graph_hidden,
            config.n_graph_layers,
            config.memory_dropout,
            config.dropout / 2,
        )
        n_read = min(config.n_genes, n_genes)
        self.lines = LineTower(
            n_read,
            config.n_line_hidden,
            config.n_line_layers,
            config.n_line_heads,
            config.n_bins,
            config.n_hidden,
            n_lines,
            config.memory_dropout,
            config.dropout / 2,
        )
        self.head = ResponseHead(config.n_members, drugs_per_row, config.n_hidden, config.dropout)
        self.base: ScreenScale | ResponseBase = ScreenScale()
        if drugs_per_row == 1:
            self.base = ResponseBase(n_drugs, n_lines, n_genes, widths.n_fingerprint)
            nn.init.zeros_(self.head.out.weight)  # it starts as its base
        self.n_fingerprint = widths.n_fingerprint
        for name, value in {
            "line_values": torch.full((n_lines, n_genes), torch.nan),
            "read_genes": torch.arange(n_read),
            "drug_is_known": torch.zeros(n_drugs, dtype=torch.bool),
            "line_is_known": torch.zeros(n_lines, dtype=torch.bool),
            "temperature": torch.ones(()),
            "log_odds": torch.zeros(()),
            # Of new drugs and of new lines; the rest is that of known ones in their place.
            "own_weight": torch.full((2,), 0.5),
        }.items():
            self.register_buffer(name, value)

    def forward(
        self,
        drugs: dict[str, Tensor],
        lines: dict[str, Tensor],
        drugs_nd: Tensor,
        lines_n: Tensor,
    ) -> Tensor:
        """Predict with all members of the ensemble.

        Parameters
        ----------
        drugs, lines
            Distinct drugs and lines; see ``DrugTower.forward`` and
            ``LineTower.forward``.
        drugs_nd, lines_n
            Which of them a row has, int64, shapes ``(n_rows, 1 or 2)`` and ``(n_rows,)``.

        Returns
        -------
        Standardised predictions, or logits, shape ``(n_members, n_rows)``.
        """
        return self.predict_rows(self.drugs(drugs), self.lines(lines), drugs_nd, lines_n)

    def predict_rows(
        self, drugs_dh: Tensor, lines_lh: Tensor, drugs_nd: Tensor, lines_n: Tensor
    ) -> Tensor:
        """Predict from drugs and lines that are encoded already.

        Parameters
        ----------
        drugs_dh, lines_lh
            Their vectors, shapes ``(n_drugs, n_hidden)`` and ``(n_lines, n_hidden)``.
        drugs_nd, lines_n
            See :meth:`forward`.

        Returns
        -------
        See :meth:`forward`.
        """
        picked_ndh = drugs_dh.index_select(0, drugs_nd.flatten()).view(*drugs_nd.shape, -1)
        return self.head(picked_ndh, lines_lh.index_select(0, lines_n))

    @torch.no_grad()
    def start_from_data(self, features_df: np.ndarray, is_trained_l: np.ndarray) -> None:
        """Set scales of drug features, and gene embeddings to principal components.

        Parameters
        ----------
        features_df
            Features of the drugs trained on.
        is_trained_l
            Which of the lines are trained on; others have no influence.
        """
        centered = features_df - features_df.mean(0)
        std = features_df.std(0)
        scale = np.where(std > 0, 1.0, 0.0)
        n_bits = self.n_fingerprint
        bits = slice(0, n_bits)
        length = np.sqrt((centered[:, bits] ** 2).sum(1).mean())
        scale[bits] *= 4 / max(length, 1e-6)  # all bits together weigh as 16 descriptors
        scale[n_bits:] /= np.maximum(std[n_bits:], 1e-6)
        self.drugs.feature_mean.copy_(torch.from_numpy(features_df.mean(0)))
        self.drugs.feature_scale.copy_(torch.from_numpy(scale))
        values = np.nan_to_num(self.line_values[:, self.read_genes].numpy()[is_trained_l])
        _, strength, genes = np.linalg.svd(values, full_matrices=False)
        weight = self.lines.tokens.gene.weight
        weight.mul_(0.3)
        n = min(weight.shape[1], int((strength > 1e-3 * strength[0]).sum()))
        unit = 2 * (len(genes.T) / weight.shape[1]) ** 0.5 / max(strength[0], 1e-6)
        weight[:, :n] = torch.from_numpy((genes[:n].T * strength[:n] * unit).copy())
