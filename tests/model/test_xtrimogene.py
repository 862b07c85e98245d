"""What a user of the model is promised."""

import warnings

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_cells, train_tiny
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

import scxtrimo
from scxtrimo.data.vocabulary import COVERAGE_KEY
from scxtrimo.model.xtrimogene import XTrimoGene
from scxtrimo.tl._agreement import cluster_agreement


def test_planted_cell_types_are_recovered():
    cells = make_cells(n_cells=300, n_genes=120)
    model = train_tiny(cells, max_epochs=60, plan_kwargs={"lr": 3e-3})
    cells.obsm["X_xtrimo"] = model.get_latent_representation()
    assert cluster_agreement(cells, "cell_type", "X_xtrimo", seeds=(0,))["ari"] > 0.9


def test_training_lowers_the_loss_and_beats_the_trivial_predictions():
    model = train_tiny(make_cells(n_cells=300, n_genes=120), max_epochs=40)
    history = model.history
    for name in ("train_loss", "validation_loss", "reconstruction_loss_validation"):
        assert len(history[name]) == 40
        assert history[name][name].iloc[-1] < history[name][name].iloc[0]
    error = model.get_reconstruction_error()["mse"]
    assert error["cross_attention"] < error["gene mean"] < error["zero"]
    assert error["bottleneck"] < error["zero"]


def test_masked_genes_reach_neither_decoder(model):
    """A hidden count must not change any prediction, or the error would be dishonest."""
    cells = make_cells()
    first = model.get_reconstruction_error(cells, indices=[3], mask_rate=0.5)
    x = cells.X.toarray()
    from scxtrimo.nn.masking import mask_batch
    from scxtrimo.train.plan import MaskingConfig

    model._validate_anndata(cells)
    batch = next(iter(model._make_data_loader(cells, indices=[3])))
    masked = mask_batch(batch, MaskingConfig(0.5, 0.5, 2**30), 60, model.seed_, -1)
    changed = masked | {"counts": torch.where(masked["visible"], masked["counts"], 99.0)}
    assert (~masked["visible"]).any()
    with torch.no_grad():
        seen = model.module.encode(masked), model.module.encode(changed)
        assert torch.equal(seen[0].tokens_td, seen[1].tokens_td)
        assert torch.equal(seen[0].latent_cz, seen[1].latent_cz)
    assert set(first.index) == {"bottleneck", "cross_attention", "gene mean", "zero"}
    assert x[3].sum() == masked["library_size"].item()


def test_equal_seeds_give_equal_models_bit_for_bit():
    first, second = (train_tiny(make_cells(), dropout=0.1, seed=3) for _ in range(2))
    for a, b in zip(first.module.state_dict().values(), second.module.state_dict().values()):
        assert torch.equal(a, b)
    other = train_tiny(make_cells(), dropout=0.1, seed=4)
    assert not np.array_equal(first.get_latent_representation(), other.get_latent_representation())


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train_tiny(make_cells(), max_epochs=1, dropout=0.1)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_invariance(model, batch_size):
    cells = make_cells()
    order = np.random.default_rng(0).permutation(cells.n_obs)
    expected = model.get_latent_representation(cells)
    shuffled = model.get_latent_representation(cells, indices=order, batch_size=batch_size)
    assert_allclose(shuffled, expected[order], rtol=1e-5, atol=1e-5)
    for decoder in ("bottleneck", "cross_attention"):
        whole = model.get_normalized_expression(cells, decoder=decoder, return_numpy=True)
        part = model.get_normalized_expression(
            cells, order[:5], batch_size=batch_size, decoder=decoder, return_numpy=True
        )
        assert_allclose(part, whole[order[:5]], rtol=1e-5, atol=1e-6)


def test_genes_in_another_order_give_the_same_result(model):
    cells = make_cells()
    permuted = cells[:, np.random.default_rng(0).permutation(cells.n_vars)].copy()
    assert_allclose(
        model.get_latent_representation(permuted),
        model.get_latent_representation(cells),
        rtol=1e-5,
        atol=1e-5,
    )


def test_genes_the_model_does_not_know_change_nothing(model):
    cells = make_cells()
    extra = make_cells(n_genes=200, seed=1)[:, 60:].copy()
    more = anndata.concat([extra, cells], axis=1, merge="first")
    more.obs = cells.obs.copy()
    assert_allclose(
        model.get_latent_representation(more),
        model.get_latent_representation(cells),
        rtol=1e-5,
        atol=1e-5,
    )
    assert more.uns[COVERAGE_KEY]["n_unused"] == 140


def test_missing_genes_do_less_harm_than_zeros_in_their_place(model):
    cells = make_cells()
    zeroed = cells.copy()
    x = zeroed.X.toarray()
    x[:, 50:] = 0
    zeroed.X = sparse.csr_matrix(x)
    fewer = cells[:, :50].copy()
    everything, of_fewer, of_zeroed = (
        model.get_latent_representation(data) for data in (cells, fewer, zeroed)
    )
    assert np.square(of_fewer - everything).sum() < np.square(of_zeroed - everything).sum()
    report = fewer.uns[COVERAGE_KEY]
    assert report["n_matched"] == 50
    assert len(report["missing"]) == len(model.vocabulary) - 50
    predicted = model.get_normalized_expression(fewer, gene_list=["GENE50"])
    assert predicted["GENE50"].gt(0).all()


def test_too_few_genes_are_refused(model):
    with pytest.raises(ValueError, match=r"Only 10\.0% of the model's 60 genes.*at least 25%"):
        model.get_latent_representation(make_cells()[:, :6].copy())
    few = make_cells()[:, :6].copy()
    few = few[np.asarray(few.X.sum(1)).ravel() > 0].copy()
    model.prepare_query_anndata(few, min_gene_overlap=0.05)
    assert len(model.get_latent_representation(few)) == few.n_obs


def test_no_matching_genes(model):
    cells = make_cells()
    cells.var_names = [f"other{i}" for i in range(60)]
    with pytest.raises(ValueError, match=r"Only 0\.0%.*'GENE0'.*'other0'.*gene_aliases"):
        model.get_latent_representation(cells)


def test_other_identifiers_through_aliases_and_columns(model):
    expected = model.get_latent_representation(make_cells())
    renamed, with_column = make_cells(), make_cells()
    renamed.var_names = [f"alias{i}" for i in range(60)]
    model.prepare_query_anndata(renamed, gene_aliases={f"alias{i}": f"GENE{i}" for i in range(60)})
    assert renamed.uns[COVERAGE_KEY]["n_renamed"] == 60
    with_column.var["symbol"] = with_column.var_names
    with_column.var_names = [str(i) for i in range(60)]
    for cells in (renamed, with_column):
        assert_array_equal(model.get_latent_representation(cells), expected)


def test_query_cells_without_known_genes_are_named(model):
    cells = make_cells(n_genes=70)
    x = cells.X.toarray()
    x[4, :60] = 0
    x[4, 65] = 3
    cells.X = sparse.csr_matrix(x)
    with pytest.raises(
        ValueError, match="1 of 150 cells have no counts of genes that the model knows.*'cell4'"
    ):
        model.get_latent_representation(cells)


def test_query_in_another_layer(model):
    cells = make_cells()
    expected = model.get_latent_representation(make_cells())
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X * 0.1
    with pytest.raises(ValueError, match="non-integer.*`layer='counts'` looks raw"):
        model.get_latent_representation(cells)
    model.prepare_query_anndata(cells, layer="counts")
    assert_array_equal(model.get_latent_representation(cells), expected)
    with pytest.raises(TypeError, match=r"Unknown arguments \['layers'\]"):
        model.prepare_query_anndata(cells, layers="counts")


def test_views_and_copies(model):
    cells = make_cells()
    expected = model.get_latent_representation(cells)
    assert_array_equal(model.get_latent_representation(cells[30:60]), expected[30:60])
    assert_array_equal(model.get_latent_representation(cells.copy()), expected)
    view = make_cells()[:100]
    XTrimoGene.setup_anndata(view)
    assert not view.is_view


def test_unseen_batches_are_not_integrated_and_given_the_average(model):
    cells, unseen, without = make_cells(), make_cells(), make_cells()
    unseen.obs["batch"] = "never seen"
    del without.obs["batch"], without.obs["cell_type"]
    integrated = model.get_latent_representation(cells)
    as_it_is = model.get_latent_representation(unseen)
    assert not np.allclose(integrated, as_it_is)
    assert_array_equal(model.get_latent_representation(without), as_it_is)
    for other in (unseen, without):
        assert model.get_normalized_expression(other).to_numpy().min() > 0
    as_a, as_b = (model.get_normalized_expression(cells, transform_batch=b) for b in "ab")
    own = model.get_normalized_expression(cells)
    is_a = (cells.obs["batch"] == "a").to_numpy()
    assert_array_equal(own[is_a], as_a[is_a])
    assert_array_equal(own[~is_a], as_b[~is_a])
    assert not np.allclose(as_a, as_b)
    with pytest.raises(ValueError, match=r"transform_batch='c' is not a batch.*\['a', 'b'\]"):
        model.get_normalized_expression(cells, transform_batch="c")


def test_normalised_expression(model):
    cells = make_cells()
    everything = model.get_normalized_expression(cells)
    assert list(everything.columns) == list(model.vocabulary.gene_ids)
    assert list(everything.index) == list(cells.obs_names)
    assert_allclose(everything.sum(1), 1, rtol=1e-5)
    some = model.get_normalized_expression(
        cells, indices=[7, 2], gene_list=["GENE9", "GENE1"], library_size="observed"
    )
    totals = np.asarray(cells.X.sum(1)).ravel()[[7, 2]]
    expected = everything.iloc[[7, 2]][["GENE9", "GENE1"]].mul(totals, axis=0)
    pd.testing.assert_frame_equal(some, expected, rtol=1e-5)
    imputed = model.get_normalized_expression(cells, decoder="cross_attention", library_size=1e4)
    assert imputed.shape == everything.shape
    assert imputed.to_numpy().min() >= 0
    with pytest.raises(ValueError, match="decoder='performer' is unknown"):
        model.get_normalized_expression(cells, decoder="performer")
    with pytest.raises(ValueError, match="'CD3D'"):
        model.get_normalized_expression(cells, gene_list=["CD3D"])
    with pytest.raises(ValueError, match="library_size=-1"):
        model.get_normalized_expression(cells, library_size=-1)


def test_gene_embeddings(model):
    cells = make_cells()
    static = model.get_gene_embeddings(["GENE3", "GENE1"])
    assert list(static.index) == ["GENE3", "GENE1"]
    assert static.shape == (2, model.config.n_hidden)
    per_cell = model.get_contextual_gene_embeddings(
        cells, gene_list=["GENE3", "GENE1"], average=False
    )
    assert per_cell.shape == (150, 2, model.config.n_decoder_hidden)
    averaged = model.get_contextual_gene_embeddings(cells, gene_list=["GENE3", "GENE1"])
    assert_allclose(averaged, np.nanmean(per_cell, axis=0), rtol=1e-4, atol=1e-5)
    # in context: the same gene differs between cells
    assert np.nanstd(per_cell[:, 0], axis=0).max() > 1e-3


def test_the_encoder_embeds_the_genes_it_reads():
    cells = make_cells()
    model = train_tiny(cells, max_epochs=1, n_input_genes=20, n_inducing=None)
    unread = next(g for g in cells.var_names if g not in set(model.input_genes))
    genes = [unread, *model.input_genes[:2]]
    per_cell = model.get_contextual_gene_embeddings(cells, gene_list=genes, average=False)
    expressed = cells[:, genes].X.toarray() > 0
    expressed[:, 0] = False
    assert_array_equal(~np.isnan(per_cell[:, :, 0]), expressed)
    with pytest.raises(ValueError, match="source='encoder': this model has decoder only"):
        train_tiny(cells, 1).get_contextual_gene_embeddings(source="encoder")


def test_contextual_embeddings_that_would_not_fit_are_refused(model, monkeypatch):
    monkeypatch.setattr("scxtrimo.model.base.MAX_RESULT_BYTES", 1000)
    with pytest.raises(
        ValueError, match="would take .* GiB. Name fewer genes or cells .* or stream it"
    ):
        model.get_contextual_gene_embeddings(make_cells(), average=False)


def test_the_encoder_reads_the_chosen_number_of_genes():
    model = train_tiny(make_cells(), max_epochs=1, n_input_genes=20)
    assert len(model.input_genes) == 20
    cells = make_cells()
    unread = [g for g in cells.var_names if g not in set(model.input_genes)]
    assert model.get_normalized_expression(cells, gene_list=unread).shape == (150, 40)


def test_indices(model):
    cells = make_cells()
    mask = np.arange(150) % 3 == 0
    expected = model.get_latent_representation(cells)[mask]
    assert_allclose(model.get_latent_representation(cells, indices=mask), expected, atol=1e-5)
    for bad, message in [
        ([150], "between 0 and 149"),
        ([], "indices is empty"),
        (mask[:10], "mask of 10 cells, the data have 150"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.get_latent_representation(cells, indices=bad)


def test_mudata(model):
    cells = make_cells()
    protein = anndata.AnnData(np.ones((150, 3), dtype=np.float32))
    protein.obs_names = cells.obs_names
    mdata = mudata.MuData({"rna": cells, "protein": protein})
    mdata.obs["sample"] = np.where(np.arange(150) < 75, "s1", "s2")
    with pytest.raises(ValueError, match=r"modality=None is not in the MuData, which has \['rna'"):
        XTrimoGene.setup_anndata(mdata)
    XTrimoGene.setup_anndata(mdata, modality="rna", batch_key="sample")
    trained = XTrimoGene(mdata, size="tiny")
    trained.train(1, accelerator="cpu", enable_progress_bar=False)
    assert trained.summary_stats.n_batch == 2
    assert trained.get_latent_representation(mdata).shape == (150, 32)
    assert trained.get_latent_representation().shape == (150, 32)


def test_several_covariates():
    cells = make_cells()
    cells.obs["donor"] = [f"d{i % 4}" for i in range(cells.n_obs)]
    model = train_tiny(
        cells,
        max_epochs=1,
        setup={"batch_key": "batch", "categorical_covariate_keys": ["donor"]},
    )
    assert [table.num_embeddings for table in model.module.net.covariates] == [2, 4]
    assert model.get_latent_representation().shape == (150, 32)


def test_repr_says_what_the_model_is(model):
    text = str(model)
    for part in ("XTrimoGene 'tiny'", "parameters", "vocabulary: 60 genes", "trained", "batch"):
        assert part in text
    untrained = XTrimoGene(model.adata, size="tiny")
    assert "not trained" in str(untrained)
    with pytest.warns(UserWarning, match="Call `model.train"):
        untrained.get_latent_representation()


def test_size_is_chosen_from_the_data(cells, caplog):
    XTrimoGene.setup_anndata(cells)
    assert XTrimoGene(cells).size_ == "small"
    assert scxtrimo.config.choose_size(200_000, on_gpu=True) == "base"
    assert scxtrimo.config.choose_size(200_000, on_gpu=False) == "small"


def test_named_sizes_have_about_the_parameters_they_are_named_for():
    from scxtrimo.config import SIZES
    from scxtrimo.nn.xtrimogene import XTrimoGeneModule

    for name, millions in (("1m", 1), ("3m", 3), ("10m", 10), ("100m", 100)):
        with torch.device("meta"):
            module = XTrimoGeneModule(19_264, (), SIZES[name])
        n_parameters = sum(p.numel() for p in module.parameters())
        assert 0.7 < n_parameters / (millions * 1e6) < 1.6


def test_a_normal_run_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = train_tiny(make_cells(), max_epochs=1)
        model.get_latent_representation()
        model.get_normalized_expression()


def test_few_cells_can_be_trained_on():
    model = train_tiny(make_cells(n_cells=5), max_epochs=1)
    assert model.get_latent_representation().shape == (5, 32)
    assert np.isfinite(model.get_latent_representation()).all()


def test_early_stopping_stops():
    model = train_tiny(
        make_cells(),
        max_epochs=30,
        early_stopping=True,
        early_stopping_patience=1,
        plan_kwargs={"lr": 1e-9},
    )
    assert len(model.history["train_loss"]) < 30


def test_mixed_precision_trains_with_gradient_clipping():
    model = train_tiny(make_cells(), max_epochs=2, precision="bf16-mixed")
    assert np.isfinite(model.get_latent_representation()).all()
    single = train_tiny(make_cells(), max_epochs=2)
    losses = [m.history["train_loss"]["train_loss"].iloc[-1] for m in (model, single)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_without_validation_cells_the_error_is_that_of_all_cells(caplog):
    model = train_tiny(make_cells(), max_epochs=1, train_size=1.0)
    with caplog.at_level("INFO", logger="scxtrimo"):
        model.get_reconstruction_error()
    assert "no validation cells" in caplog.text


def test_asking_for_many_genes_is_done_in_parts(model, monkeypatch):
    cells = make_cells()
    expected = model.get_normalized_expression(cells, decoder="cross_attention")
    monkeypatch.setattr("scxtrimo.nn.xtrimogene.CrossAttentionDecoder.max_queries", 500)
    parts = model.get_normalized_expression(cells, decoder="cross_attention")
    pd.testing.assert_frame_equal(parts, expected, rtol=1e-5)


def test_a_compiled_model_trains_embeds_and_is_saved(tmp_path):
    cells = make_cells()
    XTrimoGene.setup_anndata(cells)
    plain, compiled = XTrimoGene(cells, size="tiny"), XTrimoGene(cells, size="tiny")
    compiled.compile(backend="eager")
    for model in (plain, compiled):
        model.train(max_epochs=1, enable_progress_bar=False)
    expected = plain.get_latent_representation()
    np.testing.assert_allclose(compiled.get_latent_representation(), expected, atol=1e-4)
    compiled.save(tmp_path / "m")
    loaded = XTrimoGene.load(tmp_path / "m", adata=cells)
    np.testing.assert_allclose(loaded.get_latent_representation(), expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_training_on_batches_prepared_ahead_is_the_same_training():
    losses = []
    for pinned in (False, True):
        cells = make_cells()
        model = train_tiny(cells, datasplitter_kwargs={"pin_memory": pinned})
        losses.append(model.history["train_loss"].to_numpy().astype(float))
    np.testing.assert_array_equal(*losses)


def test_every_result_can_be_had_from_an_encoder_in_bfloat16(model, monkeypatch):
    exact = model.get_latent_representation()
    encode = type(model)._encode
    monkeypatch.setattr(
        type(model), "_encode", lambda self, batch, precision="": encode(self, batch, "bf16-mixed")
    )
    half = model.get_latent_representation()
    assert np.abs(half - exact).max() < 0.05 * np.abs(exact).max()
    for decoder in ("bottleneck", "cross_attention"):
        predicted = model.get_normalized_expression(decoder=decoder, return_numpy=True)
        assert predicted.dtype == np.float32
        assert np.isfinite(predicted).all()
    assert np.isfinite(model.get_contextual_gene_embeddings()).any(axis=None)
    assert np.isfinite(model.get_reconstruction_error()["mse"]).all()


def test_arguments_after_the_indices_are_given_by_name(model):
    with pytest.warns(FutureWarning, match="give batch_size, pool by name"):
        former = model.get_latent_representation(None, [0, 1], 1, "mean")
    np.testing.assert_array_equal(
        former, model.get_latent_representation(indices=[0, 1], batch_size=1, pool="mean")
    )
    with pytest.warns(
        FutureWarning, match="give gene_list, library_size, transform_batch by name"
    ):
        former = model.get_normalized_expression(None, None, ["GENE1"], 1e4, "a")
    pd.testing.assert_frame_equal(
        former,
        model.get_normalized_expression(
            transform_batch="a", gene_list=["GENE1"], library_size=1e4
        ),
    )
