"""Rows of a screen of drugs and cell lines, as networks read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cell_lines import collate_lines
from .molecules import Molecule, collate_molecules


@dataclass
class DrugRows:
    """Rows of a screen as tensors, with the drugs and lines they refer to.

    Parameters
    ----------
    molecules
        The distinct drugs.
    known_d
        Their places among the drugs of the model, int64, -1 for new ones.
    values_lg
        Standardised expression of the lines, NaN where not measured.
    known_l
        Their places among the lines of the model, int64, -1 for new ones.
    read_genes
        Which of the genes the encoder reads, int64.
    drugs_nd, lines_n
        Drugs and line of every row, int64.
    target_n
        Classes or standardised responses, float32, if they are known.
    """

    molecules: Sequence[Molecule]
    known_d: Tensor
    values_lg: Tensor
    known_l: Tensor
    read_genes: Tensor
    drugs_nd: Tensor
    lines_n: Tensor
    target_n: Tensor | None = None

    def drugs(self, which_d: Tensor) -> dict[str, Tensor]:
        """Return some of the drugs as the network reads them."""
        collated = collate_molecules([self.molecules[i] for i in which_d.tolist()])
        return collated | {"known_d": self.known_d[which_d]}

    def lines(self, which_l: Tensor, gene_dropout: float = 0.0) -> dict[str, Tensor]:
        """Return some of the lines as the network reads them."""
        values_lg = self.values_lg[which_l][:, self.read_genes]
        keep_lg = None
        if gene_dropout:
            dropped_l = gene_dropout * torch.rand(len(values_lg), 1)
            keep_lg = torch.rand(values_lg.shape) >= dropped_l
        return collate_lines(values_lg, keep_lg) | {"known_l": self.known_l[which_l]}
