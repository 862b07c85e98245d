"""From SMILES to what networks read: graphs of atoms and bonds, fingerprints, descriptors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.vocabulary import preview

INSTALL = 'pip install "scxtrimo[drug]"'


def need(name: str) -> Any:
    """Import a module of RDKit or PyTorch Geometric.

    Parameters
    ----------
    name
        Such as ``"rdkit.Chem"`` or ``"torch_geometric.nn"``.

    Raises
    ------
    ImportError
        If it is not installed; the message says how to get it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = {"rdkit": "RDKit", "torch_geometric": "PyTorch Geometric"}[name.split(".")[0]]
        raise ImportError(
            f"Models of drugs need {package}, which cannot be imported ({error}): `{INSTALL}`."
        ) from error


FINGERPRINT_BITS = 1024
FINGERPRINT_RADIUS = 2
DESCRIPTORS = (
    *("MolWt", "MolLogP", "TPSA", "NumHDonors", "NumHAcceptors", "NumRotatableBonds"),
    *("FractionCSP3", "RingCount", "NumAromaticRings", "HeavyAtomCount", "qed", "LabuteASA"),
    *("NumAliphaticRings", "NumHeteroatoms"),
)
N_FEATURES = FINGERPRINT_BITS + len(DESCRIPTORS)
ELEMENTS = ("C", "N", "O", "S", "F", "Cl", "P", "B", "Br", "I")
HYBRIDIZATIONS = ("SP", "SP2", "SP3")
BOND_ORDERS = (1.0, 1.5, 2.0, 3.0)
N_ATOM_FEATURES = len(ELEMENTS) + 1 + 5 + 5 + len(HYBRIDIZATIONS) + 1 + 4
N_BOND_FEATURES = len(BOND_ORDERS) + 1 + 2


WIDTHS = (N_ATOM_FEATURES, N_BOND_FEATURES, FINGERPRINT_BITS, N_FEATURES)


class Molecule(NamedTuple):
    """One molecule as arrays.

    Parameters
    ----------
    atoms_af
        Features of its atoms without hydrogens, float32, ``(n_atoms, N_ATOM_FEATURES)``.
    bonds_2e
        Both directions of every bond, int64, ``(2, 2 * n_bonds)``.
    bonds_ef
        Features of these, float32, ``(2 * n_bonds, N_BOND_FEATURES)``.
    features_f
        Square roots of Morgan fingerprint counts, then descriptors, float32, ``(N_FEATURES,)``.
    """

    atoms_af: np.ndarray
    bonds_2e: np.ndarray
    bonds_ef: np.ndarray
    features_f: np.ndarray


def canonical_smiles(
    smiles: Iterable[object], where: str = "SMILES", names: Mapping[object, str] | None = None
) -> dict[str, str]:
    """Return the canonical SMILES of every distinct entry.

    Parameters
    ----------
    smiles
        SMILES as people write them.
    where
        What they are called in messages.
    names
        Names of drugs by their SMILES, for messages.

    Raises
    ------
    ValueError
        If RDKit cannot read some, or they are missing or empty; all of these are counted.
    ImportError
        If RDKit is not installed.

    Examples
    --------
    >>> canonical_smiles(["OCC", "CCO"])
    {'OCC': 'CCO', 'CCO': 'CCO'}
    """
    chem = need("rdkit.Chem")
    found: dict[str, str] = {}
    wrong: list[object] = []
    with _quiet():
        for text in dict.fromkeys(smiles):
            # RDKit would read what stands before a space, and take the rest for a name.
            is_one = isinstance(text, str) and len(text.split()) == 1
            molecule = chem.MolFromSmiles(str(text).strip()) if is_one else None
            if molecule is None or not molecule.GetNumAtoms():
                wrong.append(f"{text} of {names[text]}" if names else text)
            else:
                found[str(text)] = chem.MolToSmiles(molecule)
    if wrong:
        raise ValueError(
            f"{where}: {len(wrong)} of {len(wrong) + len(found)} cannot be read by RDKit: "
            f"{preview(wrong, 20)}. Correct or leave out the rows that have them; for names of "
            "drugs pass `drugs={name: SMILES, ...}`."
        )
    return found


def parent_smiles(smiles: Sequence[str]) -> list[str]:
    """Return the largest part of every structure, without stereochemistry.

    Salts of a drug, and drugs that differ in stereochemistry only, have one parent: what is known
    of one is known of the others.

    Parameters
    ----------
    smiles
        Valid SMILES, see :func:`canonical_smiles`.

    Examples
    --------
    >>> parent_smiles(["C[C@H](N)C(=O)O.Cl", "C[C@@H](N)C(=O)O"])
    ['CC(N)C(=O)O', 'CC(N)C(=O)O']
    """
    chem = need("rdkit.Chem")
    parents = []
    for text in smiles:
        parts = chem.GetMolFrags(chem.MolFromSmiles(text), asMols=True)
        largest = max(parts, key=lambda part: part.GetNumHeavyAtoms())
        chem.RemoveStereochemistry(largest)
        parents.append(chem.MolToSmiles(largest))
    return parents


def read_molecules(smiles: Sequence[str]) -> list[Molecule]:
    """Return molecules as arrays.

    Parameters
    ----------
    smiles
        Valid SMILES, see :func:`canonical_smiles`.

    Examples
    --------
    >>> read_molecules(["CCO"])[0].bonds_2e
    array([[0, 1, 1, 2],
           [1, 0, 2, 1]])
    """
    chem = need("rdkit.Chem")
    generator = need("rdkit.Chem.rdFingerprintGenerator").GetMorganGenerator(
        radius=FINGERPRINT_RADIUS, fpSize=FINGERPRINT_BITS
    )
    functions = dict(need("rdkit.Chem.Descriptors").descList)
    with _quiet():
        return [_read(chem.MolFromSmiles(text), generator, functions) for text in smiles]


def _quiet() -> Any:
    """Keep RDKit's own messages from the screen: ours name all invalid SMILES at once."""
    return need("rdkit.rdBase").BlockLogs()


def _read(molecule: Any, generator: Any, functions: dict[str, Any]) -> Molecule:
    atoms = [_atom(atom) for atom in molecule.GetAtoms()]
    ends: list[tuple[int, int]] = []
    bonds: list[list[float]] = []
    for bond in molecule.GetBonds():
        order = bond.GetBondTypeAsDouble()
        features = _one_of(order, BOND_ORDERS) + [bond.GetIsConjugated(), bond.IsInRing()]
        first, second = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        ends += [(first, second), (second, first)]
        bonds += [features, features]
    counts = generator.GetCountFingerprintAsNumPy(molecule).astype(np.float32)
    descriptors = np.array([functions[name](molecule) for name in DESCRIPTORS], dtype=np.float32)
    return Molecule(
        np.array(atoms, dtype=np.float32),
        np.array(ends, dtype=np.int64).reshape(-1, 2).T.copy(),
        np.array(bonds, dtype=np.float32).reshape(-1, N_BOND_FEATURES),
        np.concatenate([np.sqrt(counts), np.nan_to_num(descriptors)]),
    )


def _atom(atom: Any) -> list[float]:
    return [
        *_one_of(atom.GetSymbol(), ELEMENTS),
        *_one_of(atom.GetDegree(), (1, 2, 3, 4)),
        *_one_of(atom.GetTotalNumHs(), (0, 1, 2, 3)),
        *_one_of(str(atom.GetHybridization()), HYBRIDIZATIONS),
        *(atom.GetIsAromatic(), atom.IsInRing(), atom.GetFormalCharge(), atom.GetMass() / 100),
    ]


def _one_of(value: object, known: Sequence[object]) -> list[float]:
    """Return which of the known values it is; the last entry is for all others."""
    return [float(value == k) for k in known] + [float(value not in known)]


def collate_molecules(molecules: Sequence[Molecule]) -> dict[str, Tensor]:
    """Join molecules to one graph without edges between them.

    Parameters
    ----------
    molecules
        One or more.

    Returns
    -------
    ``atoms_af``, ``bonds_2e``, ``bonds_ef`` and ``features_df`` of all, and ``molecule_of_a``,
    int64, the molecule of every atom.
    """
    sizes = np.array([len(molecule.atoms_af) for molecule in molecules])
    starts = np.cumsum(sizes) - sizes
    shifted = [m.bonds_2e + start for m, start in zip(molecules, starts, strict=True)]
    arrays = {
        "atoms_af": np.concatenate([molecule.atoms_af for molecule in molecules]),
        "bonds_2e": np.concatenate(shifted, axis=1),
        "bonds_ef": np.concatenate([molecule.bonds_ef for molecule in molecules]),
        "features_df": np.stack([molecule.features_f for molecule in molecules]),
        "molecule_of_a": np.repeat(np.arange(len(molecules)), sizes),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
