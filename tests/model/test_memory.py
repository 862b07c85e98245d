"""Embedding reads a file as a stream."""

import tracemalloc

import anndata
import pytest
from helpers import make_cells, train_tiny

from scxtrimo.data import counts

N_GENES, SMALL, LARGE = 500, 500, 3000


@pytest.mark.parametrize("dense", [False, True])
def test_memory_of_embedding_does_not_grow_with_the_cells(tmp_path, monkeypatch, dense):
    monkeypatch.setattr(counts, "CHUNK", 256)
    model = train_tiny(make_cells(n_genes=N_GENES), max_epochs=1)
    peak = {}
    for n_cells in (SMALL, SMALL, LARGE):  # the first fills caches
        cells = make_cells(n_cells=n_cells, n_genes=N_GENES)
        if dense:
            cells.X = cells.X.toarray()
        path = tmp_path / f"{n_cells}.h5ad"
        cells.write_h5ad(path)
        backed = anndata.read_h5ad(path, backed="r")
        tracemalloc.start()
        latent = model.get_latent_representation(backed, batch_size=64)
        peak[n_cells] = tracemalloc.get_traced_memory()[1] - latent.nbytes
        tracemalloc.stop()
        backed.file.close()
    per_cell = (peak[LARGE] - peak[SMALL]) / (LARGE - SMALL)
    # A cell of these data takes some 2,500 bytes as CSR and 2,000 dense, its row number 8.
    assert per_cell < 100
