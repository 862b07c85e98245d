"""Gene embeddings start as what principal components of the cells say about genes."""

import numpy as np
from helpers import make_cells

from scxtrimo.latent import gene_statistics
from scxtrimo.model.xtrimogene import XTrimoGene


def statistics(adata, n_components=8, n_input_genes=None):
    XTrimoGene.setup_anndata(adata)
    manager = XTrimoGene(adata, size="tiny").adata_manager
    rows = np.arange(adata.n_obs)
    return gene_statistics(manager, rows, adata.n_vars, 4, n_components, n_input_genes, seed=0)


def test_markers_of_a_type_are_together_and_genes_of_none_are_near_zero():
    adata = make_cells(n_cells=400)
    embeddings = statistics(adata)["embeddings"].numpy()
    marked = np.arange(adata.n_vars) % 6  # 0 to 2 mark a type, the others none
    length = np.linalg.norm(embeddings, axis=1)
    assert np.isclose(np.square(length).mean(), 1, atol=1e-4)
    directions = embeddings / length[:, None]
    cosine = directions @ directions.T
    same = marked[:, None] == marked[None, :]
    is_marker = marked < 3
    markers = is_marker[:, None] & is_marker[None, :]
    off_diagonal = ~np.eye(len(marked), dtype=bool)
    assert cosine[markers & same & off_diagonal].mean() > 0.5
    assert cosine[markers & ~same].mean() < 0
    assert length[is_marker].mean() > 1.3 * length[~is_marker].mean()


def test_earlier_components_weigh_more():
    embeddings = statistics(make_cells(n_cells=400))["embeddings"].numpy()
    weights = np.linalg.norm(embeddings, axis=0)
    assert (weights[:2] > 1.5 * weights[2:].max()).all()  # three types make two components


def test_genes_that_are_not_read_have_places_but_do_not_make_components():
    adata = make_cells(n_cells=400, n_genes=120)
    result = statistics(adata, n_input_genes=40)
    is_read, embeddings = result["is_read"].numpy(), result["embeddings"].numpy()
    assert is_read.sum() == 40
    assert (np.linalg.norm(embeddings[~is_read], axis=1) > 0).all()


def test_latent_dimensions_start_as_components():
    adata = make_cells()
    XTrimoGene.setup_anndata(adata)
    model = XTrimoGene(adata, size="tiny", n_latent=5)
    model.train(max_epochs=1, plan_kwargs={"lr": 1e-9}, enable_progress_bar=False)
    queries = model.module.net.bottleneck.to_query.weight.detach().numpy()
    np.testing.assert_allclose(queries, np.eye(5, queries.shape[1]), atol=1e-5)


def test_as_many_genes_are_read_as_asked_for_however_few_the_cells():
    for n_cells in (1, 2, 5, 30):
        adata = make_cells(n_genes=300)[:n_cells].copy()
        is_read = statistics(adata, n_input_genes=50)["is_read"]
        assert is_read.sum() == min(50, (adata.X.getnnz(axis=0) >= min(3, n_cells)).sum())
