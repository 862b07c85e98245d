"""Bulk expression: what is accepted, and what is read of it."""

import anndata
import numpy as np
import pytest
from scipy import sparse

from scxtrimo.drugs.screen import LinePanel, LineSetup, read_lines, setup_lines, setup_of


def make_lines(values) -> anndata.AnnData:
    lines = anndata.AnnData(np.asarray(values, dtype=np.float64))
    lines.obs_names = [f"LINE{i}" for i in range(lines.n_obs)]
    lines.var_names = [f"GENE{i}" for i in range(lines.n_vars)]
    return lines


POSITIVE = [[0.5, 200.0, 3.0], [10.0, 0.0, 1000.0]]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (POSITIVE, "tpm"),
        ([[0, 200, 3], [10, 0, 1000]], "counts"),
        ([[0.5, -1.0, 2.0]], "values"),
        ([[0.5, 12.0, 2.0]], "values"),
    ],
)
def test_the_kind_of_expression_is_guessed(values, kind):
    lines = make_lines(values)
    setup_lines(lines, LineSetup())
    assert setup_of(lines).expression == kind


def test_expression_is_read_on_the_scale_of_the_model():
    lines = make_lines([[1.0, 3.0], [0.0, 7.0]])
    np.testing.assert_allclose(read_lines(lines, LineSetup(None, "tpm", None)), [[1, 2], [0, 3]])
    np.testing.assert_allclose(read_lines(lines, LineSetup(None, "values", None)), lines.X)
    counts = read_lines(lines, LineSetup(None, "counts", None))
    np.testing.assert_allclose(counts, np.log2(np.array([[250001, 750001], [1, 1000001]])))
    lines.layers["z"] = sparse.csr_matrix(-lines.X)
    np.testing.assert_allclose(read_lines(lines, LineSetup("z", "values", None)), -lines.X)


def with_values(lines, **kwargs):
    for name, value in kwargs.items():
        setattr(lines, name, value)
    return lines


@pytest.mark.parametrize(
    ("lines", "kwargs", "message"),
    [
        (make_lines([[-1.0, 2.0]]), {"expression": "tpm"}, "smallest value is -1"),
        (make_lines([[-1.0, 2.0]]), {"expression": "counts"}, 'pass expression="values"'),
        (
            make_lines([[np.nan, 2.0]]),
            {},
            "1 expression values .* gene 'GENE0' in cell line 'LINE0'",
        ),
        (make_lines([[1.0, np.inf]]), {}, "NaN or infinite"),
        (make_lines([[1.0, 2.0]]), {"expression": "fpkm"}, "expression='fpkm'"),
        (make_lines([[1.0, 2.0]]), {"layer": "tpm"}, "layer='tpm' is not in"),
        (make_lines([[1.0, 2.0]]), {"gene_id_key": "id"}, "'id' is not a column"),
        (make_lines([[0.0, 0.0]]), {"expression": "counts"}, "no counts: 'LINE0'"),
        (
            with_values(make_lines([[1.0, 2.0]]), var_names=["A", "A"]),
            {},
            "lines.var_names has 1 duplicate gene identifiers, for instance 'A'",
        ),
        (
            with_values(make_lines([[1.0], [2.0]]), obs_names=["L", "L"]),
            {},
            "duplicate cell lines: 'L'",
        ),
        (make_lines(np.zeros((0, 3))), {}, "no expression: 0 lines"),
    ],
)
def test_what_is_wrong_with_lines_is_said(lines, kwargs, message):
    with pytest.raises(ValueError, match=message):
        setup_lines(lines, LineSetup(**kwargs))
    assert setup_of(lines) is None


def test_other_things_than_anndata_are_refused():
    with pytest.raises(TypeError, match="not ndarray"):
        setup_lines(np.ones((2, 2)), LineSetup())


def test_a_panel_has_the_genes_that_vary_and_marks_missing_ones():
    rng = np.random.default_rng(0)
    values = rng.normal(0, [0.01, 1, 2, 0.01, 3], (6, 5))
    lines = make_lines(values)
    setup = LineSetup(None, "values", None)
    panel = LinePanel.choose(lines, setup, np.arange(6) < 4, 3)
    assert panel.gene_ids == ("GENE1", "GENE2", "GENE4")
    np.testing.assert_allclose(panel.mean_g, values[:4, [1, 2, 4]].mean(0))
    other = lines[:, ["GENE4", "GENE0", "GENE1"]].copy()
    found = panel.standardize(other, setup, 0.5)
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_array_equal(
        found[:, [0, 2]], panel.standardize(lines, setup, 0.5)[:, [0, 2]]
    )
    with pytest.raises(ValueError, match="Only 33.3% of the 3 genes"):
        panel.standardize(lines[:, ["GENE4"]].copy(), setup, 0.5)


def test_identifiers_may_be_in_a_column():
    lines = make_lines(np.random.default_rng(0).normal(size=(4, 3)))
    lines.var["ensembl"] = ["ENSG00000000001.2", "ENSG00000000002.1", "ENSG00000000003.7"]
    setup = LineSetup(None, "values", "ensembl")
    panel = LinePanel.choose(lines, setup, np.ones(4, dtype=bool), 3)
    other = lines.copy()
    other.var_names = ["ENSG00000000001", "ENSG00000000002", "ENSG00000000003"]
    del other.var["ensembl"]
    found = panel.standardize(other, LineSetup(None, "values", None), 0.5)
    np.testing.assert_allclose(found, panel.standardize(lines, setup, 0.5))
