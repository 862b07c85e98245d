"""Networks of drugs and cell lines, with their configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from .._validation import Fraction, Validated
from .graphs import DrugTower, MoleculeWidths
from .head import ResponseHead
from .lines import LineTower
from .response_base import ResponseBase, ScreenScale


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
    >>> from scxtrimo.drugs.graphs import MoleculeWidths
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
