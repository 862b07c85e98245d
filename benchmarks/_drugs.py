"""Screens, features for baselines and splits that the benchmarks of drugs share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA

from scxtrimo.drugs.molecules import (
    FINGERPRINT_BITS,
    canonical_smiles,
    parent_smiles,
    read_molecules,
)

N_COMPONENTS = 24
MAX_COUNT = 3


class Split(NamedTuple):
    """What to learn from and what to predict: tables with drugs as canonical SMILES."""

    name: str
    train: pd.DataFrame
    test: pd.DataFrame
    lines: AnnData
    seed: int


def need_data(path: Path | None, *names: str) -> Path:
    """Return the directory with the files, or say which are missing."""
    if path is None or not path.is_dir():
        raise SystemExit("--data DIR: the directory with " + ", ".join(names))
    if missing := [name for name in names if not (path / name).is_file()]:
        raise SystemExit(f"{path} lacks {', '.join(missing)}")
    return path


def plain(names: pd.Series | pd.Index) -> list[str]:
    """Return names of cell lines as they compare: letters and digits."""
    return [re.sub("[^A-Z0-9]", "", str(name).upper()) for name in names]


def parents(smiles: pd.Series) -> np.ndarray:
    """Return the parent structures of drugs, by which they are split: salts are no new drugs."""
    distinct = pd.unique(smiles).tolist()
    lookup = dict(zip(distinct, parent_smiles(distinct), strict=True))
    return smiles.map(lookup).to_numpy(dtype=str)


def with_canonical(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return the table with canonical SMILES."""
    smiles = canonical_smiles(pd.unique(table[keys].to_numpy().ravel()))
    return table.assign(**{key: table[key].map(smiles) for key in keys})


def gdsc_expression(data: Path) -> AnnData:
    """Return the expression of the lines of GDSC, z-scores within a line."""
    stored = np.load(data / "gdsc_expression.npz", allow_pickle=False)
    lines = AnnData(stored["x"].astype(np.float32))
    lines.obs_names, lines.var_names = (
        plain(pd.Index(stored["cells"])),
        stored["genes"].astype(str),
    )
    if not lines.obs_names.is_unique:
        raise SystemExit("Two cell lines of GDSC have one name.")
    return lines


def grouped_folds(
    table: pd.DataFrame, groups: list[np.ndarray], n_folds: int, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield training and test rows; a group is never on both sides.

    With several groups per row (two drugs), test rows have at least one group of the fold and
    training rows none.
    """
    distinct = np.unique(np.concatenate(groups))
    np.random.default_rng(seed).shuffle(distinct)
    for part in np.array_split(distinct, n_folds):
        is_test = np.any([np.isin(group, part) for group in groups], axis=0)
        yield np.flatnonzero(~is_test), np.flatnonzero(is_test)


class Features:
    """Fingerprint counts and descriptors of drugs, principal components of expression.

    What varies, and the components, are those of training rows.

    Parameters
    ----------
    split
        The task.
    drug_keys
        Columns with the drugs.
    n_components
        Principal components of the expression.
    """

    def __init__(
        self, split: Split, drug_keys: list[str], n_components: int = N_COMPONENTS
    ) -> None:
        self.drug_keys = drug_keys
        both = pd.concat([split.train, split.test])
        smiles = pd.unique(both[drug_keys].to_numpy().ravel()).tolist()
        features = np.stack([molecule.features_f for molecule in read_molecules(smiles)])
        bits = np.minimum(features[:, :FINGERPRINT_BITS] ** 2, MAX_COUNT).round()
        trained = np.isin(smiles, split.train[drug_keys].to_numpy().ravel())
        _, kept = np.unique(bits[trained], axis=1, return_index=True)  # equal columns add nothing
        kept = kept[bits[trained][:, kept].std(0) > 0]
        self.drugs = np.column_stack([bits[:, kept], features[:, FINGERPRINT_BITS:]])
        self.drug_place = {text: i for i, text in enumerate(smiles)}
        x = np.asarray(split.lines.X, dtype=np.float64)
        is_tpm = x.min() >= 0
        x = np.log2(x + 1) if is_tpm else x
        trained_l = split.lines.obs_names.isin(split.train["cell"])
        n = min(n_components, int(trained_l.sum()) - 1)
        self.lines = PCA(n, random_state=0).fit(x[trained_l]).transform(x)
        self.line_place = {name: i for i, name in enumerate(split.lines.obs_names)}

    def __call__(self, table: pd.DataFrame, reverse: bool = False) -> np.ndarray:
        """Return features of rows, float32; drugs in the order of the columns or the reverse."""
        keys = self.drug_keys[::-1] if reverse else self.drug_keys
        drugs = [self.drugs[table[key].map(self.drug_place)] for key in keys]
        lines = self.lines[table["cell"].map(self.line_place)]
        return np.column_stack([*drugs, lines]).astype(np.float32)
