import numpy as np
import scanpy as sc


def test_they_are_what_the_error_is_made_from(model):
    table = model.get_masked_predictions()
    error = model.get_reconstruction_error()
    truth = table["measured"]
    for name in ("bottleneck", "cross_attention", "gene mean"):
        squared = (table[name] - truth) ** 2
        np.testing.assert_allclose(squared.mean(), error.loc[name, "mse"], rtol=1e-4)
        np.testing.assert_allclose(
            squared[truth > 0].mean(), error.loc[name, "mse_expressed"], rtol=1e-4
        )
    assert len(table) == error.loc["zero", "n_genes"]


def test_they_are_named_by_cell_and_gene(model, cells):
    rows = [5, 3, 90]
    table = model.get_masked_predictions(cells, rows, mask_rate=0.5, batch_size=2)
    assert set(table["cell"]) == set(cells.obs_names[rows])
    logged = cells.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    expected = [logged[cell, gene].X.sum() for cell, gene in zip(table["cell"], table["gene"])]
    np.testing.assert_allclose(table["measured"], expected, rtol=1e-4)
    assert not table[["cell", "gene"]].duplicated().any()
    n_expressed = (cells.X.toarray()[rows] > 0).sum()
    assert 0.3 < (table["measured"] > 0).sum() / n_expressed < 0.7
