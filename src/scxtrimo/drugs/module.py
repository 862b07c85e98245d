"""Networks of drugs and cell lines, their configuration, and closed-form response models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from .._validation import Validated
from ..nn.layers import Encoder, TokenEmbedding
from ..nn.ragged import max_per_cell, mean_per_cell
from ..nn.ranges import Fraction
from .molecules import FINGERPRINT_BITS, N_PER_ATOM, N_PER_BOND, N_PER_DRUG, need

N_GRAPH_HEADS = 4
STRENGTHS = (0.1, 0.25, 0.5, 1.0, 2.0)
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class DrugConfig(Validated):
    """Hyper-parameters of a model of drugs and cell lines.

    Parameters
    ----------
    n_genes, n_linear_genes
        Genes that the encoder and the linear part of a response model read: those that vary most.
    n_hidden
        Width of the vectors of drugs and lines.
    n_members
        Members of the ensemble. They share the encoders of drugs and lines.
    drug_input
        ``"graph"`` (attention over atoms), ``"fingerprint"`` (Morgan, and descriptors) or both.
    n_graph_hidden, n_graph_layers
        Width and depth of the attention over atoms.
    n_line_hidden, n_line_layers, n_line_heads, n_bins
        Encoder of cell lines; see :class:`~scxtrimo.model.XTrimoGeneConfig`.
    memory_dropout
        Probability with which a known drug or line is treated as a new one in training.
    gene_dropout
        Largest fraction of the genes left out of a line in training, as other panels lack some.
    dropout
        Dropout of the members; the encoders use half of it.

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
        line, heads, graph = self.n_line_hidden, self.n_line_heads, self.n_graph_hidden
        if line % heads:
            raise ValueError(f"n_line_hidden={line} must be a multiple of n_line_heads={heads}.")
        if graph % N_GRAPH_HEADS:
            raise ValueError(f"n_graph_hidden={graph} must be a multiple of {N_GRAPH_HEADS}.")


class MoleculeAttention(nn.Module):
    """Graph attention over the atoms of molecules (GATv2), as in DeepDDS :cite:p:`Wang2021`."""

    def __init__(self, n_hidden: int, n_layers: int, n_out: int) -> None:
        super().__init__()
        geometric, n_each = need("torch_geometric.nn"), n_hidden // N_GRAPH_HEADS
        layer = partial(geometric.GATv2Conv, heads=N_GRAPH_HEADS, edge_dim=N_PER_BOND)
        self.embed = nn.Linear(N_PER_ATOM, n_hidden)
        self.layers = nn.ModuleList(layer(n_hidden, n_each) for _ in range(n_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(n_hidden) for _ in range(n_layers))
        self.out = nn.Sequential(nn.Linear(2 * n_hidden, n_out), nn.LayerNorm(n_out))

    def forward(self, drugs: dict[str, Tensor]) -> Tensor:
        """Return ``(n_drugs, n_out)`` of joined molecules."""
        x_ad = self.embed(drugs["atoms_af"])
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x_ad = x_ad + F.gelu(layer(norm(x_ad), drugs["bonds_2e"], drugs["bonds_ef"]))
        n_atoms_m = torch.bincount(drugs["molecule_of_a"])
        total_md = x_ad.new_zeros(len(n_atoms_m), x_ad.shape[1])
        total_md = total_md.index_add(0, drugs["molecule_of_a"], x_ad)
        most_md = torch.stack([x.amax(0) for x in x_ad.split(n_atoms_m.tolist())])
        return self.out(torch.cat([total_md / n_atoms_m[:, None], most_md], dim=1))


class DrugTower(nn.Module):
    """Vectors of drugs: graph, fingerprint and descriptors, and a memory of known drugs."""

    def __init__(self, n_drugs: int, config: DrugConfig) -> None:
        super().__init__()
        n_hidden, sizes = config.n_hidden, (config.n_graph_hidden, config.n_graph_layers)
        self.memory_dropout = config.memory_dropout
        self.dropout = nn.Dropout(config.dropout / 2)
        self.graph = self.fingerprint = None
        if config.drug_input != "fingerprint":
            self.graph = MoleculeAttention(*sizes, n_hidden)
        if config.drug_input != "graph":
            layers = nn.Linear(N_PER_DRUG, n_hidden), nn.GELU(), nn.LayerNorm(n_hidden)
            self.fingerprint = nn.Sequential(*layers)
        self.memory = nn.Embedding(n_drugs, n_hidden)
        self.feature_mean = nn.Buffer(torch.zeros(N_PER_DRUG))
        self.feature_scale = nn.Buffer(torch.zeros(N_PER_DRUG))

    def forward(self, drugs: dict[str, Tensor]) -> Tensor:
        """Return ``(n_drugs, n_hidden)`` of joined molecules."""
        x_dh = _recall(self.memory, drugs["known_d"], self.memory_dropout, self.training)
        if self.fingerprint is not None:
            scaled_df = (drugs["features_df"] - self.feature_mean) * self.feature_scale
            x_dh = x_dh + self.fingerprint(self.dropout(scaled_df.clamp(-5, 5)))
        if self.graph is not None:
            x_dh = x_dh + self.graph(drugs)
        return x_dh


def _recall(memory: nn.Embedding, known_n: Tensor, dropout: float, training: bool) -> Tensor:
    """Return the remembered vectors, 0 for new items (-1) and, in training, for those dropped."""
    is_known_n = known_n >= 0
    if training:
        is_known_n = is_known_n & (torch.rand(len(known_n), device=known_n.device) >= dropout)
    return memory(known_n.clamp(min=0)) * is_known_n[:, None]


class LineTower(nn.Module):
    """xTrimoGene's encoder in bulk mode: every measured gene, even a zero, is a token."""

    def __init__(self, n_genes: int, n_lines: int, config: DrugConfig) -> None:
        super().__init__()
        n_hidden, n_heads, n_out = config.n_line_hidden, config.n_line_heads, config.n_hidden
        self.memory_dropout = config.memory_dropout
        self.tokens = TokenEmbedding(n_genes, n_hidden, config.n_bins)
        self.encoder = Encoder(config.n_line_layers, n_hidden, n_heads, dropout=config.dropout / 2)
        self.pooled = nn.Linear(2 * n_hidden, n_out)
        self.linear = nn.Linear(n_hidden, n_out)
        self.norm = nn.LayerNorm(n_out)
        self.memory = nn.Embedding(n_lines, n_out)

    def forward(self, lines: dict[str, Tensor]) -> Tensor:
        """Return ``(n_lines, n_out)`` from what :meth:`DrugRows.lines` returns."""
        values_t, genes_t, cu_seqlens = lines["values_t"], lines["gene_ids_t"], lines["cu_seqlens"]
        linear_td = values_t[:, None] * self.tokens.gene(genes_t)
        x_td = self.encoder(self.tokens(values_t, genes_t) + linear_td, cu_seqlens)
        summaries = mean_per_cell(x_td, cu_seqlens), max_per_cell(x_td, cu_seqlens)
        # Values times gene embeddings bypass the encoder: principal components, as these start as
        # loadings. The mean over measured genes estimates the mean over all.
        component_ld = mean_per_cell(linear_td, cu_seqlens)
        component_ld = component_ld * self.tokens.gene.num_embeddings**0.5
        x_lh = 0.3 * self.pooled(torch.cat(summaries, dim=1)) + self.linear(component_ld)
        memory_lh = _recall(self.memory, lines["known_l"], self.memory_dropout, self.training)
        return self.norm(x_lh + memory_lh)


class PackedLinear(nn.Module):
    """A linear layer for each member of an ensemble."""

    def __init__(self, n_members: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_members, n_in, n_out) * n_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_members, 1, n_out))

    def forward(self, x_knd: Tensor) -> Tensor:
        """Map ``(n_members, n_rows, n_in)`` to ``(n_members, n_rows, n_out)``."""
        return torch.baddbmm(self.bias, x_knd, self.weight)


class ResponseHead(nn.Module):
    """Ensemble on shared encoders; members differ in random starts and weights of the input."""

    def __init__(self, n_members: int, n_drugs: int, n_hidden: int, dropout: float) -> None:
        super().__init__()
        n_in = (2 + (1 if n_drugs == 1 else 3)) * n_hidden
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(n_members, 1, n_in))
        self.inner = PackedLinear(n_members, n_in, 2 * n_hidden)
        self.middle = PackedLinear(n_members, 2 * n_hidden, n_hidden)
        self.out = PackedLinear(n_members, n_hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, drugs_ndh: Tensor, lines_nh: Tensor) -> Tensor:
        """Return ``(n_members, n_rows)``, whatever the order of the drugs of a row."""
        drugs = drugs_ndh.unbind(1)
        if len(drugs) == 2:
            first, second = drugs
            drugs = (first + second, (first - second).abs(), first * second)
        x_nd = torch.cat([*drugs, lines_nh, drugs_ndh.sum(1) * lines_nh], dim=1)
        x_knd = self.dropout(x_nd[None] * self.scale)
        x_knd = self.dropout(F.gelu(self.inner(x_knd)))
        return self.out(self.dropout(F.gelu(self.middle(x_knd))))[..., 0]


class ScreenScale(nn.Module):
    """Mean and standard deviation of all rows: what scores of pairs are predicted relative to."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros((), dtype=torch.float64))
        self.std = nn.Buffer(torch.ones((), dtype=torch.float64))

    def fit(self, target_n: np.ndarray) -> None:
        """Set both from training rows."""
        self.mean.fill_(float(target_n.mean()))
        self.std.fill_(max(float(target_n.std()), 1e-6))


class ResponseBase(nn.Module):
    """Closed-form models of responses: means and scales of drugs, and a table of lines x drugs."""

    def __init__(self, n_drugs: int, n_lines: int, n_genes: int, n_fingerprint: int) -> None:
        super().__init__()
        # The last entry of means and scales is for new drugs.
        self.mean_d = nn.Buffer(torch.zeros(n_drugs + 1))
        self.scale_d = nn.Buffer(torch.zeros(n_drugs + 1))
        self.table_ld = nn.Buffer(torch.zeros(n_lines, n_drugs))
        self.gene_weights_gd = nn.Buffer(torch.zeros(n_genes, n_drugs))
        self.fingerprints_df = nn.Buffer(torch.zeros(n_drugs, n_fingerprint))
        self.mixing_dd = nn.Buffer(torch.zeros(n_drugs, n_drugs))
        self.is_known_d = nn.Buffer(torch.ones(n_drugs, dtype=torch.bool))

    def forward(
        self, features_df: Tensor, known_d: Tensor, values_lg: Tensor, known_l: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict all drugs in all lines, ``(n_lines, n_drugs)``, with the scale of every drug."""
        bits_df = features_df[:, : self.fingerprints_df.shape[1]]
        # New drugs get the column of similar ones, new lines a row by their expression.
        similar_qd = tanimoto(bits_df, self.fingerprints_df)
        is_new = (known_d < 0)[:, None]
        known_qd = F.one_hot(known_d.clamp(min=0), self.mixing_dd.shape[0]).float()
        weights_qd = torch.where(is_new, similar_qd @ self.mixing_dd, known_qd)
        mean_q = self.mean_d[-1] + weights_qd @ (self.mean_d[:-1] - self.mean_d[-1])
        by_genes_ld = values_lg.nan_to_num() @ self.gene_weights_gd
        known_ld = self.table_ld[known_l.clamp(min=0)]
        rows_ld = torch.where((known_l < 0)[:, None], by_genes_ld, known_ld)
        # A drug unlike all known ones has no weights and gets the average effect on the line.
        mean_l1 = rows_ld[:, self.is_known_d].mean(1, keepdim=True)
        scale_q = self.scale_d[known_d]  # -1 is the entry for new drugs
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
        """Fit to training rows; fingerprints and expression are those of all drugs and lines."""
        n_lines, n_drugs = self.table_ld.shape
        rng = np.random.default_rng(seed)
        mean_d, scale_d = _drug_scales(drug_n, target_n, n_drugs)
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
        self.mean_d.copy_(torch.from_numpy(mean_d))
        self.scale_d.copy_(torch.from_numpy(scale_d))
        self.table_ld.copy_(torch.from_numpy(completed))
        self.gene_weights_gd.copy_(torch.from_numpy(weights))
        self.fingerprints_df.copy_(torch.from_numpy(fingerprints_df))
        self.mixing_dd.copy_(torch.from_numpy(mixing))
        self.is_known_d.copy_(torch.from_numpy(trained_d))


def _drug_scales(
    drug_n: np.ndarray, target_n: np.ndarray, n_drugs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and spread of every drug, shrunk if rows are few, and last of new drugs."""
    times_d, mean = np.bincount(drug_n, minlength=n_drugs), float(target_n.mean())
    mean_d = (np.bincount(drug_n, target_n, n_drugs) + 0.5 * mean) / (times_d + 0.5)
    residual_n = target_n - mean_d[drug_n]
    within = max(float(residual_n.std()), 1e-2 * float(target_n.std()))
    squares_d = np.bincount(drug_n, residual_n**2, n_drugs)
    scale_d = np.sqrt((squares_d + 5 * within**2) / (times_d + 5))
    return np.append(mean_d, mean), np.append(scale_d, np.median(scale_d[times_d > 0]))


def _complete(table_ld: np.ndarray, is_there: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Complete a table, with the shrinkage that predicts held-out entries best."""
    held_out = is_there & (rng.random(table_ld.shape) < 0.1)
    guesses = [_soft_impute(table_ld, is_there & ~held_out, strength) for strength in STRENGTHS]
    errors = [((guess - table_ld)[held_out] ** 2).sum() for guess in guesses]
    strength = STRENGTHS[int(np.argmin(errors))] if held_out.any() else 1.0
    return _soft_impute(table_ld, is_there, strength)


def _soft_impute(table_ld: np.ndarray, is_there: np.ndarray, strength: float) -> np.ndarray:
    """Complete a table by means of lines and soft-thresholded SVD :cite:p:`Mazumder2010`."""
    mean_l = np.where(is_there, table_ld, 0).sum(1) / (is_there.sum(1) + 2)
    residual = table_ld - mean_l[:, None]
    threshold = strength * sum(np.sqrt(table_ld.shape))  # 1 removes noise of unit variance
    low_rank = np.zeros_like(table_ld)
    for _ in range(15):
        left, s, right = np.linalg.svd(np.where(is_there, residual, low_rank), full_matrices=False)
        low_rank = (left * np.maximum(s - threshold, 0)) @ right
    return mean_l[:, None] + low_rank


def _ridge(x_lg: np.ndarray, rows_ld: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return weights that predict rows from expression; held-out lines choose the penalty."""
    if len(x_lg) < 10:
        return _solve_ridge(x_lg, rows_ld, max(RIDGES))
    held_out = rng.permutation(len(x_lg)) < 0.2 * len(x_lg)
    weights = [_solve_ridge(x_lg[~held_out], rows_ld[~held_out], ridge) for ridge in RIDGES]
    errors = [((x_lg[held_out] @ w_gd - rows_ld[held_out]) ** 2).sum() for w_gd in weights]
    return _solve_ridge(x_lg, rows_ld, RIDGES[int(np.argmin(errors))])


def _solve_ridge(x_lg: np.ndarray, rows_ld: np.ndarray, ridge: float) -> np.ndarray:
    kernel = x_lg.astype(np.float64) @ x_lg.T
    penalty = ridge * max(np.trace(kernel) / max(len(kernel), 1), 1e-6)
    return x_lg.T @ np.linalg.solve(kernel + penalty * np.eye(len(kernel)), rows_ld)


def tanimoto(x_df: Tensor, y_kf: Tensor) -> Tensor:
    """Return the Tanimoto similarity of count fingerprints, ``(n_x, n_y)``."""
    shared_dk = torch.stack([torch.minimum(x_f, y_kf).sum(1) for x_f in x_df])
    either_dk = torch.stack([torch.maximum(x_f, y_kf).sum(1) for x_f in x_df])
    return shared_dk / either_dk.clamp(min=1e-6)


class DrugModule(nn.Module):
    """Encodes drugs and lines, and predicts rows of one or two drugs and a line."""

    def __init__(
        self, n_drugs: int, n_lines: int, n_genes: int, drugs_per_row: int, config: DrugConfig
    ) -> None:
        super().__init__()
        self.config = config
        n_read = min(config.n_genes, n_genes)
        self.drugs = DrugTower(n_drugs, config)
        self.lines = LineTower(n_read, n_lines, config)
        self.head = ResponseHead(config.n_members, drugs_per_row, config.n_hidden, config.dropout)
        self.base: ScreenScale | ResponseBase = ScreenScale()
        if drugs_per_row == 1:
            self.base = ResponseBase(n_drugs, n_lines, n_genes, FINGERPRINT_BITS)
            nn.init.zeros_(self.head.out.weight)  # training starts from the closed-form base
        self.line_values = nn.Buffer(torch.full((n_lines, n_genes), torch.nan))
        self.read_genes = nn.Buffer(torch.arange(n_read))
        self.drug_is_known = nn.Buffer(torch.zeros(n_drugs, dtype=torch.bool))
        self.line_is_known = nn.Buffer(torch.zeros(n_lines, dtype=torch.bool))
        self.temperature = nn.Buffer(torch.ones(()))
        self.log_odds = nn.Buffer(torch.zeros(()))
        # For new drugs and for new lines; see `predict_members`.
        self.own_weight = nn.Buffer(torch.full((2,), 0.5))

    def forward(
        self, drugs_dh: Tensor, lines_lh: Tensor, drugs_nd: Tensor, lines_n: Tensor
    ) -> Tensor:
        """Return logits or standardised predictions ``(n_members, n_rows)`` of encoded inputs."""
        drugs_nd, lines_n = drugs_nd.to(drugs_dh.device), lines_n.to(drugs_dh.device)
        picked_ndh = drugs_dh.index_select(0, drugs_nd.flatten()).view(*drugs_nd.shape, -1)
        return self.head(picked_ndh, lines_lh.index_select(0, lines_n))

    @torch.no_grad()
    def start_from_data(self, features_df: np.ndarray) -> None:
        """Set scales of features of known drugs, and gene embeddings to principal components."""
        features_df = features_df[self.drug_is_known.numpy()]
        mean, std = features_df.mean(0), features_df.std(0)
        bits = (features_df - mean)[:, :FINGERPRINT_BITS]
        scale = (std > 0) / np.maximum(std, 1e-6)
        # All bits together weigh as much as 16 descriptors.
        length = max(np.sqrt((bits**2).sum(1).mean()), 1e-6)
        scale[:FINGERPRINT_BITS] = (std[:FINGERPRINT_BITS] > 0) * (4 / length)
        self.drugs.feature_mean.copy_(torch.from_numpy(mean))
        self.drugs.feature_scale.copy_(torch.from_numpy(scale))
        values = np.nan_to_num(self.line_values[self.line_is_known][:, self.read_genes].numpy())
        _, strength, genes = np.linalg.svd(values, full_matrices=False)
        weight = self.lines.tokens.gene.weight
        weight.mul_(0.3)
        n = min(weight.shape[1], int((strength > 1e-3 * strength[0]).sum()))
        unit = 2 * (len(genes.T) / weight.shape[1]) ** 0.5 / max(strength[0], 1e-6)
        weight[:, :n] = torch.from_numpy((genes[:n].T * strength[:n] * unit).copy())
