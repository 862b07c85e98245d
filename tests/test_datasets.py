"""Public data: local copies, what is done to them, and what is said when there is none."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED_DATA
from helpers import make_cells
from scipy import sparse

import scxtrimo
from scxtrimo.datasets import recover_counts


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A folder of local copies."""
    monkeypatch.setenv("SCXTRIMO_DATA", str(tmp_path))
    (tmp_path / "cells").mkdir()
    return tmp_path


def test_counts_are_recovered_from_log_normalised_values():
    counts = make_cells().X
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    counts.eliminate_zeros()
    assert np.minimum.reduceat(counts.data, counts.indptr[:-1]).max() == 1
    counts = sparse.vstack([counts, [2.0, 3.0] + [0.0] * 58]).tocsr()
    scale = 1e4 / np.asarray(counts.sum(axis=1)).ravel()
    values = sparse.csr_matrix(sparse.diags(scale) @ counts).log1p()
    assert abs(recover_counts(values) - counts).max() == 0


def test_values_that_are_no_counts_are_refused():
    values = sparse.csr_matrix(np.array([[0.3, 0.7, 1.1]]))
    with pytest.raises(RuntimeError, match="log-normalised counts"):
        recover_counts(values)


def test_stored_zeros_and_values_that_are_no_numbers():
    values = sparse.csr_matrix(np.log1p([[2.0, 4.0, 6.0]]))
    values.data[0] = 0  # stored all the same
    assert recover_counts(values).toarray().tolist() == [[0, 2, 3]]
    values.data[0] = np.nan
    with pytest.raises(RuntimeError, match="not finite"):
        recover_counts(values)


def test_unlabelled_cells_are_left_out(local):
    cells = make_cells()
    cells.obs["cell_type"] = pd.Categorical(cells.obs["cell_type"])
    cells.obs.loc[cells.obs_names[:5], "cell_type"] = np.nan
    cells.write_h5ad(local / "cells" / "pbmc3k.h5ad")
    pbmc = scxtrimo.datasets.pbmc3k()
    assert list(pbmc.obs_names) == list(cells.obs_names[5:])
    assert (pbmc.obs["cell_type"] == cells.obs["cell_type"][5:]).all()


def test_as_many_cells_as_asked_for_and_the_same_again(local):
    cells = make_cells()
    cells.obs["condition"] = cells.obs["batch"]
    cells.write_h5ad(local / "kang_ifnb.h5ad")
    few = scxtrimo.datasets.kang(40)
    assert few.shape == (40, cells.n_vars)
    assert list(few.obs_names) == list(scxtrimo.datasets.kang(40).obs_names)
    assert list(few.obs_names) != list(scxtrimo.datasets.kang(40, seed=1).obs_names)
    assert scxtrimo.datasets.kang(None).n_obs == cells.n_obs


def test_the_public_file_is_read_under_the_name_of_the_local_copy(local):
    cells = make_cells()
    cells.obs["label"] = np.where(np.arange(cells.n_obs) % 2, "ctrl", "stim")
    cells.write_h5ad(local / "kang_ifnb.h5ad")
    conditions = scxtrimo.datasets.kang(None).obs["condition"]
    assert list(conditions[:2]) == ["stimulated", "control"]


def test_measurements_that_disagree_are_left_out(local):
    screen = pd.DataFrame(
        [("C", "N", "A", 1), ("N", "C", "A", 1), ("C", "O", "A", 1), ("O", "C", "A", 0)],
        columns=["drug1", "drug2", "cell", "label"],
    )
    screen.to_csv(local / "new_labels_0_10.csv", index=False)
    lines = pd.DataFrame(
        [("transcript_id", "t1", "t2"), ("A", 1.5, 2.0)], columns=["gene_id", "g1", "g2"]
    )
    lines.to_csv(local / "new_cell_features_954.csv", index=False)
    read_lines, read = scxtrimo.datasets.deepdds()
    assert read.to_numpy().tolist() == [["C", "N", "A", 1]]
    assert (list(read_lines.obs_names), list(read_lines.var_names)) == (["A"], ["g1", "g2"])


def test_without_network_it_is_said_where_a_copy_goes(monkeypatch):
    import pooch

    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.delenv("SCXTRIMO_DATA", raising=False)
    monkeypatch.setattr(pooch, "retrieve", fail)
    with pytest.raises(RuntimeError, match=r"kang_ifnb.h5ad could not .* SCXTRIMO_DATA"):
        scxtrimo.datasets.kang()


def test_folder_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("SCXTRIMO_DATA", "nowhere")
    with pytest.raises(FileNotFoundError, match="SCXTRIMO_DATA='nowhere'"):
        scxtrimo.datasets.norman()


def test_copies_of_the_real_files(monkeypatch):
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data is not here")
    monkeypatch.setenv("SCXTRIMO_DATA", str(SHARED_DATA))
    assert scxtrimo.datasets.pbmc3k().shape == (2638, 32738)
    kang = scxtrimo.datasets.kang(None)
    assert set(kang.obs["condition"]) == {"control", "stimulated"}
    norman = scxtrimo.datasets.norman()
    path = SHARED_DATA / "perturbation" / "norman_mcfaline.h5ad"
    known = anndata.read_h5ad(path)[norman.obs_names].layers["counts_recovered"]
    # in two cells the smallest value is two counts, not one
    assert len(np.unique((known != norman.X).nonzero()[0])) == 2
    lines, screen = scxtrimo.datasets.deepdds()
    assert set(screen["cell"]) == set(lines.obs_names)
    assert len(screen) == 12415 - 185 - 26
