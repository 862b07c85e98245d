"""A published checkpoint gives the published results, whatever the order of cells and genes."""

from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from published import GENES, N_GENES, Reference, write_checkpoint
from scipy import sparse

from scxtrimo.data.gene_table import read_gene_index
from scxtrimo.model.xtrimogene import XTrimoGene
from scxtrimo.nn import performer

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "scfoundation_tiny"
ORDERS = {"one by one": None, "batch": list(range(6)), "shuffled": [3, 0, 5, 1, 4, 2]}


def close(result, expected) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def in_order(method, order, **kwargs) -> np.ndarray:
    """Call a method on six cells one at a time, or at once in some order."""
    if order is None:
        return np.concatenate([method(indices=[i], **kwargs) for i in range(6)])
    return method(indices=order, **kwargs)[np.argsort(order)]


@pytest.fixture(scope="module")
def expected():
    if not FIXTURE.is_dir():
        pytest.skip("the fixture scfoundation_tiny is not here")
    return np.load(FIXTURE / "expected.npz")


@pytest.fixture(scope="module")
def six_cells(expected, published_index):
    """The six cells with their genes in another order."""
    counts = sparse.load_npz(FIXTURE / "counts.npz").tocsr().astype(np.float32)
    adata = anndata.AnnData(counts)
    adata.var_names = read_gene_index(published_index, 19_264)
    return adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()


@pytest.fixture(scope="module")
def models(six_cells, published_index):
    return {
        version: XTrimoGene.from_scfoundation(
            FIXTURE / "models.ckpt", published_index, version, adata=six_cells
        )
        for version in ("cell", "gene", "rde")
    }


@pytest.mark.parametrize("order", ORDERS)
def test_cell_embeddings_are_the_published_ones(expected, models, order):
    names = [name for name in expected if name.startswith("cell_")]
    assert len(names) == 8
    for name in names:
        _, version, target, pool = name.split("_")
        embed = models[version].get_latent_representation
        close(in_order(embed, ORDERS[order], pool=pool, target_depth=target), expected[name])


def test_bulk_embeddings_are_the_published_ones(expected, models):
    for order in ORDERS.values():
        embedded = in_order(models["cell"].get_latent_representation, order, depth="bulk")
        close(embedded, expected["bulk_cell_F_all"])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("target", ["t4", "f1"])
def test_genes_are_the_published_ones(expected, models, target, order):
    model = models["gene"]
    some = np.asarray(model.vocabulary.gene_ids)[expected["gene_subset"]]
    kwargs = {"target_depth": target}
    values = in_order(
        model.get_normalized_expression, ORDERS[order], log1p=True, return_numpy=True, **kwargs
    )
    close(values, expected[f"gene_expression_{target}"])
    embeddings = in_order(
        model.get_contextual_gene_embeddings,
        ORDERS[order],
        gene_list=some,
        average=False,
        **kwargs,
    )
    close(embeddings, expected[f"gene_{target}"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("published") / "other.ckpt")


@pytest.fixture
def few_cells() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 2, (7, N_GENES))).astype(np.float32)
    counts[:, 0] += 1
    adata = anndata.AnnData(sparse.csr_matrix(counts))
    adata.obs_names = [f"cell{i}" for i in range(7)]
    adata.var_names = GENES
    return adata


def test_other_sizes_give_what_the_published_formulas_give(checkpoint, few_cells, monkeypatch):
    monkeypatch.setattr(performer, "CHUNK", 9)  # several chunks, the last one smaller
    reference, dense = Reference(checkpoint), few_cells.X.toarray()
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells[:, ::-1].copy())
    latent = model.get_latent_representation()
    strongest = model.get_latent_representation(pool="max", target_depth=10_000)
    expression = model.get_normalized_expression(target_depth="a1", log1p=True).to_numpy()
    genes = model.get_contextual_gene_embeddings(
        average=False, gene_list=["GENE7", "GENE2"], target_depth="f2"
    )
    bulk = model.get_latent_representation(depth="bulk")
    with torch.inference_mode():
        for c, counts in enumerate(dense):
            total = counts.sum()
            encoded = [reference.tokens(counts, t) for t in (4, np.log10(total) + 1)]
            h, h_more = (reference.encode(*tokens) for tokens in encoded)
            close(latent[c], reference.pool(h, "all"))
            close(strongest[c], reference.pool(h, "max"))
            more = reference.decode(h_more, encoded[1][1])
            close(expression[c], reference.predict(more))
            tokens = reference.tokens(counts, np.log10(2 * total))
            close(genes[c], reference.decode(reference.encode(*tokens), tokens[1])[[7, 2]])
            tokens = reference.tokens(counts, 0, scale=np.median(dense.sum(1)))
            close(bulk[c], reference.pool(reference.encode(*tokens), "all"))


def test_golden_values(checkpoint, few_cells):
    """The same numbers in every version of torch and of this package."""
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    latent = model.get_latent_representation()
    expression = model.get_normalized_expression(log1p=True, return_numpy=True)
    assert latent.shape == (7, 48)
    np.testing.assert_allclose(latent[[0, 3, 6], [0, 20, 47]], GOLDEN_LATENT, rtol=1e-4)
    np.testing.assert_allclose(expression[[0, 3, 6], [0, 20, 29]], GOLDEN_VALUES, rtol=1e-4)


GOLDEN_LATENT = [-1.26694, -0.200992, 1.75141]
GOLDEN_VALUES = [-5.47497, -5.57807, -5.71611]


def test_pools_are_parts_of_each_other(checkpoint, few_cells):
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    pools = {p: model.get_latent_representation(pool=p) for p in ("s", "t", "mean", "max")}
    full = model.get_latent_representation(pool="all")
    assert full.shape == (7, 48)
    np.testing.assert_allclose(full[:, :12], pools["s"])
    np.testing.assert_allclose(full[:, 12:24], pools["t"])
    np.testing.assert_allclose(full[:, 36:], pools["mean"])
    assert (pools["max"] >= full[:, 24:36] - 1e-6).all()  # it counts S and T as well


def test_a_saved_model_keeps_results_and_provenance(checkpoint, few_cells, tmp_path):
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    model.save(tmp_path / "ours")
    loaded = XTrimoGene.load(tmp_path / "ours", adata=few_cells)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    assert loaded.provenance == model.provenance
    assert loaded.provenance["version"] == "cell"
    assert len(loaded.provenance["sha256"]) == 64
    assert "non-commercial" in loaded.provenance["licence"]


def test_fine_tuning_goes_on_from_the_published_weights(checkpoint, few_cells):
    adata = anndata.concat([few_cells] * 10, index_unique="-", keys=range(10))
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=adata)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    mean_before = model.get_latent_representation().mean()
    model.train(max_epochs=8, plan_kwargs={"lr": 1e-3}, enable_progress_bar=False)
    losses = model.history["train_loss"]["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    after = model.module.state_dict()
    assert not torch.equal(after["net.imputation.mask"], before["net.imputation.mask"])
    moved = (after["net.embedding.gene.weight"] - before["net.embedding.gene.weight"]).abs().max()
    assert 0 < moved < 0.1  # not started anew
    assert model.get_latent_representation().mean() != mean_before
    assert model.provenance["source"] == "scFoundation"


def test_data_with_too_few_of_the_genes_are_refused(checkpoint, few_cells):
    with pytest.raises(ValueError, match="gene_aliases"):
        XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells[:, :5].copy())
    model = XTrimoGene.from_scfoundation(
        checkpoint, GENES, adata=few_cells[:, :5].copy(), min_gene_overlap=0.1
    )
    assert model.get_latent_representation().shape == (7, 48)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"target_depth": 4}, "is no read depth.*'t4'"),
        ({"target_depth": "x4"}, "is no read depth"),
        ({"target_depth": "f0"}, "is no read depth"),
        ({"target_depth": "t10000"}, "is no read depth"),
        ({"target_depth": float("inf")}, "is no read depth"),
        ({"target_depth": float("nan")}, "is no read depth"),
        ({"indices": [0.9]}, "must be row numbers or a boolean mask"),
        ({"indices": ["cell1"]}, "get_indexer"),
        ({"indices": [False] * 7}, "indices is empty"),
        ({"batch_size": 0}, "batch_size=0 must be positive"),
        ({"precision": "16"}, "must be '32-true' or 'bf16-mixed'"),
        ({"pool": "median"}, "pool='median' is unknown"),
        ({"depth": "bulk", "target_depth": "t4"}, "Bulk profiles have no target_depth"),
        ({"depth": "tissue"}, "must be 'cell' or 'bulk'"),
    ],
)
def test_arguments_that_make_no_sense(checkpoint, few_cells, kwargs, message):
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    with pytest.raises(ValueError, match=message):
        model.get_latent_representation(**kwargs)


def test_a_model_that_knows_no_depths_says_so(model, cells):
    with pytest.raises(ValueError, match="read_depth_aware=True"):
        model.get_latent_representation(cells, target_depth="t4")
    with pytest.raises(ValueError, match="needs the encoded depth tokens"):
        model.get_latent_representation(cells, pool="all")
    assert model.get_latent_representation(cells, pool="mean").shape == (150, 32)
    with pytest.raises(ValueError, match="source='encoder': this model has decoder only"):
        model.get_contextual_gene_embeddings(cells, source="encoder")


def test_results_are_streamed_to_a_store_that_anndata_reads(checkpoint, few_cells, tmp_path):
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    kwargs = {"indices": [5, 0, 3], "batch_size": 2}
    model.get_latent_representation(out=tmp_path / "latent.zarr", **kwargs)
    model.get_normalized_expression(
        out=tmp_path / "x.zarr", gene_list=["GENE4", "GENE1"], **kwargs
    )
    model.get_contextual_gene_embeddings(
        average=False, out=tmp_path / "genes.zarr", gene_list=["GENE4", "GENE1"], **kwargs
    )
    latent, x, genes = (
        anndata.io.read_zarr(tmp_path / f"{name}.zarr") for name in ("latent", "x", "genes")
    )
    assert list(latent.obs_names) == ["cell5", "cell0", "cell3"]
    np.testing.assert_allclose(
        latent.obsm["X_xtrimo"], model.get_latent_representation(**kwargs), rtol=1e-6
    )
    assert list(x.var_names) == ["GENE4", "GENE1"]
    expected = model.get_normalized_expression(gene_list=["GENE4", "GENE1"], **kwargs)
    np.testing.assert_allclose(x.X, expected, rtol=1e-6)
    assert list(genes.uns["genes"]) == ["GENE4", "GENE1"]
    expected = model.get_contextual_gene_embeddings(
        average=False, gene_list=["GENE4", "GENE1"], **kwargs
    )
    np.testing.assert_allclose(genes.obsm["gene_embeddings"], expected, rtol=1e-6)
    with pytest.raises(FileExistsError, match="Choose another path"):
        model.get_latent_representation(out=tmp_path / "latent.zarr")


def test_gene_embeddings_are_averaged_over_cells(checkpoint, few_cells):
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    each = model.get_contextual_gene_embeddings(average=False, batch_size=3)
    mean = model.get_contextual_gene_embeddings(batch_size=2)
    assert each.shape == (7, N_GENES, 24)
    np.testing.assert_allclose(mean.to_numpy(), each.mean(0), rtol=1e-4, atol=1e-5)
    encoded = model.get_contextual_gene_embeddings(average=False, source="encoder")
    assert encoded.shape == (7, N_GENES, 12)
    np.testing.assert_array_equal(np.isnan(encoded).all(-1), few_cells.X.toarray() == 0)


def test_denoising_writes_a_layer(checkpoint, few_cells):
    few_cells = few_cells[:, ::-1].copy()
    few_cells.var_names = [*few_cells.var_names[:-1], "UNHEARD_OF"]
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    model.denoise(target_depth="f10", layer_added="deep")
    layer = few_cells.layers["deep"]
    expected = model.get_normalized_expression(target_depth="f10", log1p=True)
    assert np.isnan(layer[:, -1]).all()
    names = few_cells.var_names[:-1]
    np.testing.assert_allclose(layer[:, :-1], expected[names].clip(lower=0), rtol=1e-5)


def test_totals_may_be_numbers_of_numpy(checkpoint, few_cells):
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    expected = model.get_latent_representation(target_depth=10_000)
    for total in (np.float32(10_000), np.int64(10_000)):
        np.testing.assert_array_equal(
            model.get_latent_representation(target_depth=total), expected
        )


def test_a_wrong_argument_leaves_no_store_behind(checkpoint, few_cells, tmp_path):
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    out = tmp_path / "latent.zarr"
    for method in (
        model.get_latent_representation,
        model.get_normalized_expression,
        lambda **kwargs: model.get_contextual_gene_embeddings(average=False, **kwargs),
    ):
        with pytest.raises(ValueError, match="no read depth"):
            method(out=out, target_depth="f0")
        assert list(tmp_path.iterdir()) == []


def test_an_unfinished_store_is_not_taken_for_a_finished_one(
    checkpoint, few_cells, tmp_path, monkeypatch
):
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    encode, calls = model._encode, []

    def fail_later(*args):
        calls.append(args)
        if len(calls) > 2:
            raise RuntimeError("interrupted")
        return encode(*args)

    monkeypatch.setattr(model, "_encode", fail_later)
    out = tmp_path / "latent.zarr"
    with pytest.raises(RuntimeError, match="interrupted"):
        model.get_latent_representation(out=out, batch_size=2)
    assert not out.exists()
    partial = anndata.io.read_zarr(tmp_path / "latent.zarr.partial").obsm["X_xtrimo"]
    assert np.isnan(partial).any(1).tolist() == [False] * 4 + [True] * 3
    monkeypatch.undo()
    model.get_latent_representation(out=out)
    assert not np.isnan(anndata.io.read_zarr(out).obsm["X_xtrimo"]).any()


def test_names_of_genes_are_kept_when_the_model_is_saved(checkpoint, few_cells, tmp_path):
    other = few_cells.copy()
    other.var_names = [f"new{i}" for i in range(N_GENES)]
    aliases = {f"new{i}": f"GENE{i}" for i in range(N_GENES)}
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=other, gene_aliases=aliases)
    expected = model.get_latent_representation()
    model.save(tmp_path / "m", save_anndata=True)
    loaded = XTrimoGene.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.get_latent_representation(), expected)
    np.testing.assert_allclose(  # a subset is other data
        loaded.get_latent_representation(other[:3].copy()), expected[:3], rtol=1e-5, atol=1e-6
    )
    plain = XTrimoGene.from_scfoundation(checkpoint, GENES)
    plain.save(tmp_path / "plain")
    with pytest.raises(ValueError, match="gene_aliases"):
        XTrimoGene.load(tmp_path / "plain", adata=other.copy())
    loaded = XTrimoGene.load(tmp_path / "plain", adata=other.copy(), gene_aliases=aliases)
    np.testing.assert_allclose(loaded.get_latent_representation(), expected, rtol=1e-5)


def test_a_wrong_gene_id_key_is_an_error(checkpoint, few_cells):
    with pytest.raises(ValueError, match="'ensmbl' is not a column of adata.var"):
        XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells, gene_id_key="ensmbl")


def test_the_mean_of_genes_is_compared_with_only_where_it_is_known(checkpoint, few_cells):
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    assert list(model.get_reconstruction_error().index) == ["performer", "zero"]
    model.train(max_epochs=1, enable_progress_bar=False)
    error = model.get_reconstruction_error()["mse"]
    assert error["gene mean"] != error["zero"]
    assert float(model.module.typical_depth) == 4.0


def test_a_gene_that_is_asked_for_twice_is_there_twice(checkpoint, few_cells):
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    for source in ("encoder", "decoder"):
        twice = model.get_contextual_gene_embeddings(
            gene_list=["GENE5", "GENE0", "GENE5"], source=source
        )
        np.testing.assert_array_equal(twice.iloc[0], twice.iloc[2])
        assert twice.iloc[1].notna().all()
    with pytest.raises(ValueError, match="gene_list is empty"):
        model.get_contextual_gene_embeddings(gene_list=[])


def test_bf16_is_close(checkpoint, few_cells):
    model = XTrimoGene.from_scfoundation(checkpoint, GENES, adata=few_cells)
    exact = model.get_latent_representation()
    fast = model.get_latent_representation(precision="bf16-mixed")
    assert 0 < np.abs(fast - exact).max() < 0.05 * np.abs(exact).max()
