"""From a drug to a vector: attention over its atoms, its fingerprint, and what is remembered."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .extra import need

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
    >>> from scxtrimo.drugs.graphs import MoleculeWidths
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
    >>> from scxtrimo.drugs.graphs import MoleculeAttention, MoleculeWidths
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
    >>> from scxtrimo.drugs.graphs import DrugTower, MoleculeWidths
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
