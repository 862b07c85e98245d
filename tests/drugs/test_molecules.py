"""What is read of a structure."""

import numpy as np
import pytest

from scxtrimo.drugs.molecules import (
    N_PER_ATOM,
    N_PER_BOND,
    N_PER_DRUG,
    canonical_smiles,
    collate_molecules,
    parent_smiles,
    read_molecules,
)

pytest.importorskip("rdkit")


def test_spellings_of_a_structure_are_one():
    assert canonical_smiles(["OCC", "CCO"]) == {"OCC": "CCO", "CCO": "CCO"}


def test_salts_and_stereoisomers_have_one_parent():
    assert parent_smiles(["C[C@H](N)C(=O)O.Cl", "C[C@@H](N)C(=O)O"]) == 2 * ["CC(N)C(=O)O"]


def test_bonds_are_read_in_both_directions():
    molecule = read_molecules(["CCO"])[0]
    np.testing.assert_array_equal(molecule.bonds_2e, [[0, 1, 1, 2], [1, 0, 2, 1]])
    assert molecule.atoms_af.shape == (3, N_PER_ATOM)
    assert molecule.bonds_ef.shape == (4, N_PER_BOND)
    assert molecule.features_f.shape == (N_PER_DRUG,)


def test_joined_molecules_have_no_bonds_between_them():
    joined = collate_molecules(read_molecules(["CCO", "[Pt]", "CC"]))
    assert joined["molecule_of_a"].tolist() == [0, 0, 0, 1, 2, 2]
    assert joined["bonds_2e"].tolist() == [[0, 1, 1, 2, 4, 5], [1, 0, 2, 1, 5, 4]]
