"""Each kind of bad input has its own error, before anything is computed."""

import anndata
import numpy as np
import pytest
from scipy import sparse

from scxtrimo.data.counts import RowReader
from scxtrimo.model.xtrimogene import XTrimoGene


def setup(adata, **kwargs):
    XTrimoGene.setup_anndata(adata, **kwargs)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (-2.0, r"adata\.X contains negative values \(lowest: -2\)"),
        (0.25, r"adata\.X contains non-integer values \(first: 0\.25\)"),
        (np.nan, r"adata\.X contains 1 NaN or infinite values \(first: nan\)"),
        (np.inf, r"adata\.X contains 1 NaN or infinite values \(first: inf\)"),
    ],
)
def test_values_that_are_no_counts(cells, bad, message, dense):
    x = cells.X.toarray()
    x[3, 5] = bad
    cells.X = x if dense else sparse.csr_matrix(x)
    with pytest.raises(ValueError, match=message):
        setup(cells)


def test_normalised_data_with_raw_counts_in_a_layer(cells):
    cells.layers["scaled"] = cells.X * 0.1
    cells.layers["raw_counts"] = cells.X.copy()
    cells.X = cells.X * 0.3
    with pytest.raises(ValueError, match="non-integer.*`layer='raw_counts'` looks raw"):
        setup(cells)


def test_normalised_data_with_raw_counts_in_raw(cells):
    cells.raw = cells.copy()
    cells.X = cells.X * 0.3
    with pytest.raises(
        ValueError, match=r"adata\.raw \(.*adata\.raw\[:, adata\.var_names\].*looks raw"
    ):
        setup(cells)


def test_a_normalised_layer_with_raw_counts_in_x(cells):
    cells.layers["normalised"] = cells.X * 0.3
    with pytest.raises(ValueError, match=r"adata\.X \(leave `layer` out\) looks raw"):
        setup(cells, layer="normalised")


def test_empty_cells_are_counted_and_named(cells):
    x = cells.X.toarray()
    x[[2, 9]] = 0
    cells.X = sparse.csr_matrix(x)
    with pytest.raises(
        ValueError, match="2 of 150 cells have no counts.*'cell2', 'cell9'.*filter_cells"
    ):
        setup(cells)


def test_no_counts_at_all(cells):
    cells.X = sparse.csr_matrix(cells.shape, dtype=np.float32)
    with pytest.raises(ValueError, match="holds no counts"):
        setup(cells)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_anndata(shape):
    with pytest.raises(ValueError, match="The AnnData is empty"):
        setup(anndata.AnnData(np.ones(shape, dtype=np.float32)))


def test_duplicate_genes(cells):
    cells.var_names = ["GENE0", "GENE0", *cells.var_names[2:]]
    with pytest.raises(
        ValueError, match=r"adata\.var_names has 1 duplicate.*'GENE0'.*make_unique"
    ):
        setup(cells)


def test_duplicate_genes_in_a_column(cells):
    cells.var["ensembl"] = ["E1", "E1", *cells.var_names[2:]]
    with pytest.raises(ValueError, match=r"adata\.var\['ensembl'\] has 1 duplicate"):
        setup(cells, gene_id_key="ensembl")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"layer": "nope"}, r"Layer 'nope' is not in adata\.layers, which has \[\]"),
        ({"batch_key": "nope"}, r"'nope' is not a column of adata\.obs, which has \['cell_type'"),
        ({"labels_key": "nope"}, r"'nope' is not a column of adata\.obs"),
        ({"categorical_covariate_keys": ["nope"]}, r"'nope' is not a column of adata\.obs"),
        ({"gene_id_key": "nope"}, r"'nope' is not a column of adata\.var"),
    ],
)
def test_keys_that_do_not_exist(cells, argument, message):
    with pytest.raises(ValueError, match=message):
        setup(cells, **argument)


@pytest.mark.parametrize("argument", ["labels_key", "batch_key"])
def test_missing_labels(cells, argument):
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    cells.obs.iloc[[1, 4], cells.obs.columns.get_loc("cell_type")] = None
    with pytest.raises(
        ValueError, match=r"adata\.obs\['cell_type'\] has 2 missing.*'cell1', 'cell4'"
    ):
        setup(cells, **{argument: "cell_type"})


def test_no_x(cells):
    adata = anndata.AnnData(None, obs=cells.obs, var=cells.var, layers={"counts": cells.X})
    with pytest.raises(ValueError, match=r"adata\.X is empty \(None\)"):
        setup(adata)


def test_something_else_than_anndata():
    with pytest.raises(TypeError, match="Expected an AnnData or a MuData, got ndarray"):
        setup(np.ones((3, 3)))


def test_an_anndata_that_was_not_set_up(cells):
    with pytest.raises(ValueError, match="setup_anndata"):
        XTrimoGene(cells)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"size": "giant"},
            ValueError,
            "size='giant' is unknown; choose 'auto' or one of .*'tiny'",
        ),
        ({"n_layer": 3}, TypeError, r"Unknown hyper-parameters \['n_layer'\].*'n_layers'"),
        (
            {"n_hidden": 30, "n_heads": 4},
            ValueError,
            "n_hidden=30 must be a multiple of n_heads=4",
        ),
        ({"n_latent": 0}, ValueError, "n_latent=0 must be positive"),
        ({"dropout": 1.5}, ValueError, "dropout=1.5 must be below 1"),
        ({"activation": "tanh"}, ValueError, "activation='tanh' must be"),
    ],
)
def test_impossible_hyper_parameters(cells, arguments, error, message):
    setup(cells)
    with pytest.raises(error, match=message):
        XTrimoGene(cells, **arguments)


def test_impossible_training_arguments(cells):
    setup(cells)
    model = XTrimoGene(cells, size="tiny")
    with pytest.raises(TypeError, match=r"Unknown plan_kwargs \['learning_rate'\].*'lr'"):
        model.train(1, plan_kwargs={"learning_rate": 1.0})
    with pytest.raises(ValueError, match="lr=-1 must be positive"):
        model.train(1, plan_kwargs={"lr": -1})
    with pytest.raises(ValueError, match="min_rate=0.5 must be at most max_rate=0.1"):
        model.train(1, plan_kwargs={"min_rate": 0.5, "max_rate": 0.1})
    with pytest.raises(ValueError, match="early_stopping=True needs validation cells"):
        model.train(1, train_size=1.0, early_stopping=True)
    with pytest.raises(FileNotFoundError, match=r"ckpt_path='nope\.ckpt' does not exist"):
        model.train(1, ckpt_path="nope.ckpt")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.uint16, np.int64, np.float32])
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix])
def test_repeated_entries_are_added_up_in_a_type_they_fit_into(dtype, form):
    parts = np.array([1, 1, 1] if dtype is bool else [100, 100, 100], dtype=dtype)
    repeated = sparse.coo_matrix((parts, (np.zeros(3, int), np.full(3, 2))), shape=(2, 4))
    matrix = form(repeated) if form is sparse.coo_matrix else _unsummed(repeated, form)
    read = RowReader(matrix).read(slice(0, 2)).toarray()
    assert read[0].tolist() == [0, 0, int(parts.astype(int).sum()), 0]
    assert not read[1].any()


def _unsummed(coo, form):
    """CSR or CSC with an entry in three parts, which converting from COO would add up."""
    major = coo.row if form is sparse.csr_matrix else coo.col
    minor = coo.col if form is sparse.csr_matrix else coo.row
    n_major = coo.shape[0 if form is sparse.csr_matrix else 1]
    indptr = np.searchsorted(major, np.arange(n_major + 1))
    return form((coo.data, minor, indptr), shape=coo.shape)


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">i4", ">u2", "f2", "f8", "u1"])
def test_counts_of_any_width_and_byte_order(dtype):
    counts = np.array([[0, 2, 1], [5, 0, 0]])
    read = RowReader(counts.astype(dtype)).read(np.array([1, 0])).toarray()
    assert read.tolist() == [[5, 0, 0], [0, 2, 1]]


@pytest.mark.parametrize("dtype", [object, complex, "U3"])
def test_what_cannot_be_counted_is_refused_by_its_type(dtype):
    with pytest.raises(ValueError, match=r"dtype .*astype\(np.float32\)"):
        RowReader(np.array([[1, 2]]).astype(dtype)).read(slice(0, 1))


def test_a_layer_that_cannot_be_read_does_not_hide_what_is_wrong_with_the_counts(cells):
    cells.X = cells.X * 0.3
    cells.layers["text"] = np.full(cells.shape, "?", dtype=object)
    with pytest.raises(ValueError, match="non-integer"):
        setup(cells)
