"""Ragged batches hold what the matrix holds, whatever the matrix is."""

import anndata
import h5py
import numpy as np
import pytest
from helpers import make_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from scipy import sparse

from scxtrimo.data.counts import RowReader
from scxtrimo.data.dataset import RaggedDataset, to_ragged
from scxtrimo.model.xtrimogene import XTrimoGene

FORMATS = {
    "csr_matrix": sparse.csr_matrix,
    "csr_array": sparse.csr_array,
    "csc_matrix": sparse.csc_matrix,
    "csc_array": sparse.csc_array,
    "dense": np.asarray,
    "int32": lambda x: sparse.csr_matrix(x.astype(np.int32)),
    "uint16": lambda x: x.astype(np.uint16),
    "float64": lambda x: sparse.csr_matrix(x.astype(np.float64)),
}


def densify(batch: dict, n_genes: int) -> np.ndarray:
    cu = batch["cu_seqlens"]
    dense = np.zeros((len(cu) - 1, n_genes))
    for c in range(len(cu) - 1):
        part = slice(cu[c], cu[c + 1])
        dense[c, batch["gene_ids"][part]] = batch["counts"][part]
    return dense


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 3)),
    st.data(),
)
def test_tokens_are_the_positive_counts_of_known_genes(x, data):
    n_columns = x.shape[1]
    order = data.draw(st.permutations(range(n_columns)))
    n_known = data.draw(st.integers(0, n_columns))
    column_to_gene = np.array([g if g < n_known else -1 for g in order])
    counts = sparse.csr_matrix(x)
    if counts.nnz:
        counts.data[0] = 0  # an explicit zero is no token
        x = counts.toarray()
    batch = to_ragged(counts, column_to_gene)
    expected = np.zeros((len(x), n_columns))
    for column, gene in enumerate(column_to_gene):
        if gene >= 0:
            expected[:, gene] = x[:, column]
    assert_array_equal(densify(batch, n_columns), expected)
    assert_array_equal(batch["library_size"], expected.sum(1))
    assert (batch["counts"] > 0).all()


@settings(max_examples=25)
@given(st.lists(st.integers(0, 29), min_size=1, max_size=20))
def test_rows_come_in_the_order_asked_for(rows):
    x = np.random.default_rng(0).poisson(1.0, (30, 7)).astype(np.float32)
    with h5py.File("rows.h5", "w", driver="core", backing_store=False) as file:
        matrices = [sparse.csr_matrix(x), x, file.create_dataset("x", data=x)]
        for matrix in matrices:
            assert_array_equal(RowReader(matrix).read(np.array(rows)).toarray(), x[rows])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("layer", [None, "counts"])
def test_all_formats_give_the_same_batch(cells, name, layer):
    expected = cells.X.toarray()
    matrix = FORMATS[name](expected)
    if layer is None:
        cells.X = matrix
    else:
        cells.layers[layer] = matrix
        cells.X = cells.X * 0.5
    XTrimoGene.setup_anndata(cells, layer=layer)
    manager = XTrimoGene._get_most_recent_anndata_manager(cells)
    rows = [5, 3, 80]
    batch = manager.create_torch_dataset()[rows]
    assert_array_equal(densify(batch, cells.n_vars), expected[rows])
    assert batch["counts"].dtype == np.float32
    assert batch["cell_ids"].tolist() == rows
    preloaded = RaggedDataset(manager, preload=True)[rows]
    assert preloaded.keys() == batch.keys()
    for key, value in batch.items():
        assert_array_equal(preloaded[key], value)
        assert preloaded[key].dtype == value.dtype


@pytest.mark.parametrize("to_format", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_backed_files(tmp_path, to_format):
    cells = make_cells()
    expected = cells.X.toarray()
    cells.X = to_format(expected)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    XTrimoGene.setup_anndata(backed)
    dataset = XTrimoGene._get_most_recent_anndata_manager(backed).create_torch_dataset()
    for rows in ([9, 2, 2, 140], [10, 11, 12]):
        assert_array_equal(densify(dataset[rows], 60), expected[rows])


def test_entries_that_a_matrix_has_twice_are_added_up(cells):
    x = sparse.csr_matrix(
        (np.float32([1, 2, 4]), np.array([3, 3, 0]), np.array([0, 2, 3])), shape=(2, 5)
    )
    before = x.data.copy()
    for rows in (np.array([0, 1]), slice(0, 2)):
        assert_array_equal(RowReader(x).read(rows).toarray(), [[0, 0, 0, 3, 0], [4, 0, 0, 0, 0]])
        assert RowReader(x).read(rows).nnz == 2
    assert_array_equal(x.data, before)


def test_genes_without_counts_are_not_in_the_vocabulary(cells):
    x = cells.X.toarray()
    x[:, [3, 7]] = 0
    cells.X = sparse.csr_matrix(x)
    XTrimoGene.setup_anndata(cells)
    model = XTrimoGene(cells, size="tiny")
    assert set(cells.var_names) - set(model.vocabulary.gene_ids) == {"GENE3", "GENE7"}


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="of type list, which is not supported"):
        RowReader([[1]])


def test_large_data_are_not_preloaded(cells, monkeypatch):
    monkeypatch.setattr("scxtrimo.data.dataset.MAX_PRELOADED_BYTES", 1000)
    XTrimoGene.setup_anndata(cells)
    manager = XTrimoGene._get_most_recent_anndata_manager(cells)
    dataset = RaggedDataset(manager, preload=True)
    assert dataset.preloaded is None
    assert_array_equal(densify(dataset[[3]], cells.n_vars), cells.X.toarray()[[3]])


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_rows_are_read_whatever_the_types_of_a_sparse_matrix(kind):
    """Boundaries of another type than the indices come from large files."""
    x = np.random.default_rng(0).poisson(0.5, (30, 8)).astype(np.float32)
    matrix = sparse.csr_matrix(x)
    matrix.indptr = matrix.indptr.astype(kind)
    reader = RowReader(matrix)
    for rows in (slice(3, 17), slice(25, 40), slice(0, 20, 3), slice(5, 5), slice(None)):
        assert_array_equal(reader.read(rows).toarray(), x[rows])
    for chosen in ([7, 2, 2, 29], [0], [], [-1, 3, -30]):
        rows = np.array(chosen, dtype=np.int64)
        assert_array_equal(reader.read(rows).toarray(), x[rows])
    for rows in (np.arange(30) % 3 == 0, np.array([3, 29], dtype=np.uint8)):
        assert_array_equal(reader.read(rows).toarray(), x[rows])
