"""Molecules as networks read them: graphs of atoms and bonds, fingerprints, descriptors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.vocabulary import preview

FINGERPRINT_BITS = 1024
DESCRIPTORS = (
    *("MolWt", "MolLogP", "TPSA", "NumHDonors", "NumHAcceptors", "NumRotatableBonds"),
    *("FractionCSP3", "RingCount", "NumAromaticRings", "HeavyAtomCount", "qed", "LabuteASA"),
    *("NumAliphaticRings", "NumHeteroatoms"),
)
ELEMENTS = ("C", "N", "O", "S", "F", "Cl", "P", "B", "Br", "I")
# Numbers of features of an atom, a bond and a molecule
N_PER_ATOM, N_PER_BOND, N_PER_DRUG = 29, 7, FINGERPRINT_BITS + len(DESCRIPTORS)


class Molecule(NamedTuple):
    """A molecule without hydrogens; each bond is there in both directions."""

    atoms_af: np.ndarray
    bonds_2e: np.ndarray
    bonds_ef: np.ndarray
    features_f: np.ndarray  # square roots of Morgan counts, then descriptors


def need(name: str) -> Any:
    """Import a module of RDKit or PyTorch Geometric, or say how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        package = {"rdkit": "RDKit", "torch_geometric": "PyTorch Geometric"}[name.split(".")[0]]
        raise ImportError(
            f"Drug models need {package}, which cannot be imported ({error}). Install it: "
            '`pip install "scxtrimo[drug]"`.'
        ) from error


def canonical_smiles(
    smiles: Iterable[object], where: str = "SMILES", names: Mapping[object, str] | None = None
) -> dict[str, str]:
    """Return the canonical SMILES of every distinct entry; one error lists all invalid ones."""
    chem = need("rdkit.Chem")
    found: dict[str, str] = {}
    wrong: list[object] = []
    with need("rdkit.rdBase").BlockLogs():  # our error names all that RDKit complains of
        for text in dict.fromkeys(smiles):
            # RDKit would read "C vitamin" as methane with a name.
            is_one = isinstance(text, str) and len(text.split()) == 1
            molecule = chem.MolFromSmiles(str(text).strip()) if is_one else None
            if molecule is None or not molecule.GetNumAtoms():
                wrong.append(f"{text} of {names[text]}" if names else text)
            else:
                found[str(text)] = chem.MolToSmiles(molecule)
    if wrong:
        raise ValueError(
            f"{where}: {len(wrong)} of {len(wrong) + len(found)} cannot be read by RDKit: "
            f"{preview(wrong, 20)}. Correct or drop the rows that have them. If the columns hold "
            "names of drugs, pass `drugs={name: SMILES, ...}`."
        )
    return found


def parent_smiles(smiles: Sequence[str]) -> list[str]:
    """Return what salts and stereoisomers share: the largest fragment, without stereochemistry."""
    chem = need("rdkit.Chem")
    parents = []
    for text in smiles:
        fragments = chem.GetMolFrags(chem.MolFromSmiles(text), asMols=True)
        largest = max(fragments, key=lambda fragment: fragment.GetNumHeavyAtoms())
        chem.RemoveStereochemistry(largest)
        parents.append(chem.MolToSmiles(largest))
    return parents


def read_molecules(smiles: Sequence[str]) -> list[Molecule]:
    """Return the molecules of valid SMILES."""
    chem = need("rdkit.Chem")
    fingerprints = need("rdkit.Chem.rdFingerprintGenerator")
    generator = fingerprints.GetMorganGenerator(radius=2, fpSize=FINGERPRINT_BITS)
    functions = dict(need("rdkit.Chem.Descriptors").descList)
    with need("rdkit.rdBase").BlockLogs():
        return [_read(chem.MolFromSmiles(text), generator, functions) for text in smiles]


def _read(molecule: Any, generator: Any, functions: dict[str, Any]) -> Molecule:
    ends: list[tuple[int, int]] = []
    bonds: list[list[float]] = []
    for bond in molecule.GetBonds():
        first, second = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        ends += [(first, second), (second, first)]
        order = _one_hot(bond.GetBondTypeAsDouble(), (1.0, 1.5, 2.0, 3.0))
        bonds += 2 * [[*order, bond.GetIsConjugated(), bond.IsInRing()]]
    counts = generator.GetCountFingerprintAsNumPy(molecule).astype(np.float32)
    descriptors = np.array([functions[name](molecule) for name in DESCRIPTORS], dtype=np.float32)
    return Molecule(
        np.array([_atom_features(atom) for atom in molecule.GetAtoms()], dtype=np.float32),
        np.array(ends, dtype=np.int64).reshape(-1, 2).T.copy(),
        np.array(bonds, dtype=np.float32).reshape(-1, N_PER_BOND),
        np.concatenate([np.sqrt(counts), np.nan_to_num(descriptors)]),
    )


def _atom_features(atom: Any) -> list[float]:
    return [
        *_one_hot(atom.GetSymbol(), ELEMENTS),
        *_one_hot(atom.GetDegree(), (1, 2, 3, 4)),
        *_one_hot(atom.GetTotalNumHs(), (0, 1, 2, 3)),
        *_one_hot(str(atom.GetHybridization()), ("SP", "SP2", "SP3")),
        *(atom.GetIsAromatic(), atom.IsInRing(), atom.GetFormalCharge(), atom.GetMass() / 100),
    ]


def _one_hot(value: object, known: Sequence[object]) -> list[float]:
    """Return which known value it is; the last entry stands for all others."""
    return [float(value == k) for k in known] + [float(value not in known)]


def collate_molecules(molecules: Sequence[Molecule]) -> dict[str, Tensor]:
    """Join molecules into one graph; ``molecule_of_a`` is the molecule of every atom."""
    atoms, bonds, bond_features, features = zip(*molecules, strict=True)
    sizes = np.array([len(atoms_af) for atoms_af in atoms])
    starts = np.cumsum(sizes) - sizes
    shifted = [bonds_2e + start for bonds_2e, start in zip(bonds, starts, strict=True)]
    arrays = {
        "atoms_af": np.concatenate(atoms),
        "bonds_2e": np.concatenate(shifted, axis=1),
        "bonds_ef": np.concatenate(bond_features),
        "features_df": np.stack(features),
        "molecule_of_a": np.repeat(np.arange(len(molecules)), sizes),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
