import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
from helpers import make_cells

from scxtrimo import pl


@pytest.fixture
def embedded():
    cells = make_cells()
    rng = np.random.default_rng(0)
    codes = cells.obs["cell_type"].astype("category").cat.codes.to_numpy()
    for name in ("X_xtrimo", "X_pca"):
        cells.obsm[name] = (4 * np.eye(3, 8)[codes] + rng.normal(size=(150, 8))).astype("f4")
    yield cells
    plt.close("all")


def test_it_is_computed_once_and_again_when_the_representation_changes(embedded, monkeypatch):
    pl.umap(embedded, "cell_type", show=False)
    first = embedded.obsm["X_xtrimo_umap"].copy()
    calls, compute = [], sc.tl.umap
    monkeypatch.setattr(sc.tl, "umap", lambda *a, **k: calls.append(1) or compute(*a, **k))
    pl.umap(embedded, show=False)
    assert not calls
    again = make_cells()
    again.obsm["X_xtrimo"] = embedded.obsm["X_xtrimo"]
    pl.umap(again, show=False)
    np.testing.assert_array_equal(again.obsm["X_xtrimo_umap"], first)  # a fixed seed
    embedded.obsm["X_xtrimo"] = embedded.obsm["X_xtrimo"][::-1].copy()
    pl.umap(embedded, show=False)
    assert len(calls) == 2
    assert not np.array_equal(embedded.obsm["X_xtrimo_umap"], first)


def test_what_others_have_made_stays(embedded):
    sc.pp.neighbors(embedded, use_rep="X_pca")
    mine = np.zeros((150, 2))
    embedded.obsm["X_umap"] = embedded.obsm["X_umap_pca"] = mine
    before = embedded.obsp["distances"].copy()
    pl.umap(embedded, use_rep=["X_pca", "X_xtrimo"], show=False)
    assert (embedded.obsp["distances"] != before).nnz == 0
    assert not embedded.obsm["X_umap"].any()
    assert not embedded.obsm["X_umap_pca"].any()
    assert embedded.obsm["X_xtrimo_umap"].any()
    assert embedded.uns["neighbors"]["params"]["use_rep"] == "X_pca"


def test_colors_are_rows_and_representations_columns(embedded):
    axes = pl.umap(embedded, ["cell_type", "GENE0"], ["X_pca", "X_xtrimo"], show=False)
    assert axes.shape == (2, 2)
    titles = [[ax.get_title() for ax in row] for row in axes]
    assert titles[0] == ["X_pca: cell_type", "X_xtrimo: cell_type"]
    assert [ax.get_legend() is not None for ax in axes[0]] == [False, True]
    for column, key in enumerate(("X_pca_umap", "X_xtrimo_umap")):
        for ax in axes[:, column]:
            drawn = np.sort(ax.collections[0].get_offsets()[:, 0])
            np.testing.assert_allclose(drawn, np.sort(embedded.obsm[key][:, 0]), rtol=1e-6)


def test_one_panel_goes_on_given_axes(embedded):
    own = plt.subplots()[1]
    assert pl.umap(embedded, "cell_type", ax=own, title="mine") is own
    assert own.get_title() == "mine"
    with pytest.raises(ValueError, match="not 2 x 1"):
        pl.umap(embedded, ["cell_type", "batch"], ax=own)
    with pytest.raises(ValueError, match=r"'X_scvi' is not in adata.obsm.*'X_pca'"):
        pl.umap(embedded, use_rep=["X_pca", "X_scvi"])
    assert "X_pca_umap" not in embedded.obsm  # nothing was computed in vain


def test_two_umaps_put_one_after_the_other_are_not_taken_for_one(embedded):
    import anndata

    pl.umap(embedded, show=False)
    both = anndata.concat([embedded, embedded[:20].copy()], index_unique="-")
    joined = both.obsm["X_xtrimo_umap"].copy()
    pl.umap(both, show=False)
    assert not np.array_equal(both.obsm["X_xtrimo_umap"], joined)
