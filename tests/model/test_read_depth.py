"""Models that know the read depth, and published models from scratch."""

import numpy as np
import pytest
import torch
from helpers import make_cells, train_tiny
from scipy import sparse

import scxtrimo
from scxtrimo.config import SIZES, XTrimoGeneConfig
from scxtrimo.model.xtrimogene import XTrimoGene


@pytest.fixture(scope="module")
def aware():
    """Trained on depths; the cells have some 80 counts each."""
    cells = make_cells(500, 60)[:300].copy()
    return train_tiny(cells, max_epochs=40, plan_kwargs={"lr": 3e-3}, read_depth_aware=True)


def thinned(cells, rate: float):
    few = cells.copy()
    kept = np.random.default_rng(0).binomial(cells.X.toarray().astype(int), rate)
    kept[:, 0] += kept.sum(1) == 0
    few.X = sparse.csr_matrix(kept.astype(np.float32))
    return few


def test_the_depth_asked_for_matters_and_the_default_is_that_of_the_training_cells(aware):
    total = float(np.median(np.asarray(aware.adata.X[aware.train_indices].sum(1))))
    default = aware.get_normalized_expression(return_numpy=True)
    same = aware.get_normalized_expression(return_numpy=True, target_depth=total)
    np.testing.assert_allclose(default, same, rtol=1e-4, atol=1e-6)
    asked = [aware.get_latent_representation(target_depth=depth) for depth in (total, "f4")]
    assert np.abs(asked[0] - asked[1]).max() > 1e-3


def test_expression_of_thinned_cells_is_enhanced(aware):
    """Closer to what was there before than the thinned cells are."""
    cells = make_cells(500, 60)[300:].copy()  # other cells of the same types
    few = thinned(cells, 0.2)
    kwargs = {"target_depth": "f5", "return_numpy": True}
    before, left = (c.X.toarray() / c.X.toarray().sum(1, keepdims=True) for c in (cells, few))
    rates = aware.get_normalized_expression(few, **kwargs)  # the mean of what could be there
    assert np.square(rates - before).mean() < 0.85 * np.square(left - before).mean()
    imputed = aware.get_normalized_expression(
        few, log1p=True, decoder="cross_attention", **kwargs
    )  # the mean of its logarithm
    before, left = np.log1p(1e4 * before), np.log1p(1e4 * left)
    assert np.square(imputed - before).mean() < 0.8 * np.square(left - before).mean()


def test_thinning_changes_the_loss_and_can_be_switched_off(cells):
    losses = []
    for probability in (0.0, 1.0):
        model = train_tiny(
            cells,
            max_epochs=1,
            read_depth_aware=True,
            plan_kwargs={"thinning_probability": probability},
        )
        losses.append(model.history["validation_loss"].iloc[0].item())
    assert losses[0] != losses[1]


@pytest.fixture(scope="module")
def published_tiny():
    cells = make_cells(150, 60)
    types = cells.obs["cell_type"].astype("category").cat.codes.to_numpy()
    counts = cells.X.toarray()
    means = np.stack([counts[types == t].mean(0) for t in range(3)])
    deep = np.random.default_rng(0).poisson(5 * means[types]).astype(np.float32)
    cells.X = sparse.csr_matrix(deep)  # so that types, not chance, make the difference
    XTrimoGene.setup_anndata(cells)
    model = XTrimoGene(cells, size="published-tiny", redraw_features_every=7)
    # most genes of these cells are expressed: mask both kinds at the same rate
    plan = {"lr": 3e-3, "zero_rate": 0.3}
    model.train(max_epochs=40, batch_size=32, plan_kwargs=plan, enable_progress_bar=False)
    return model


def test_the_published_architecture_trains_and_is_used_like_any_other(published_tiny):
    model = published_tiny
    # in so few steps masked regression learns the genes, and little of the cells
    error = model.get_reconstruction_error()["mse"]
    assert error["performer"] < 0.15 * error["zero"]
    assert model.get_latent_representation().shape == (150, 128)
    assert model.get_normalized_expression(gene_list=["GENE3"]).shape == (150, 1)
    assert model.get_contextual_gene_embeddings(gene_list=["GENE3"]).shape == (1, 32)
    assert "performer" in repr(model)
    with pytest.raises(ValueError, match=r"this model has \['performer'\]"):
        model.get_normalized_expression(decoder="bottleneck")


def test_random_features_are_redrawn_in_training_and_then_fixed(published_tiny):
    def features(model):
        return model.module.net.imputation.performer.layers[0].attention.features

    model = XTrimoGene(published_tiny.adata, size="published-tiny", redraw_features_every=10**6)
    start = features(model).clone()
    model.train(max_epochs=3, enable_progress_bar=False)
    assert torch.equal(features(model), start)
    assert not torch.equal(features(published_tiny), start)
    now = features(published_tiny).clone()
    first = published_tiny.get_normalized_expression(gene_list=["GENE3"])
    assert published_tiny.get_normalized_expression(gene_list=["GENE3"]).equals(first)
    assert torch.equal(features(published_tiny), now)


def test_a_performer_can_stand_beside_the_bottleneck(cells):
    XTrimoGene.setup_anndata(cells)
    model = XTrimoGene(cells, size="tiny", imputation_decoder="performer")
    model.train(max_epochs=2, enable_progress_bar=False)
    assert list(model.get_reconstruction_error().index)[:2] == ["bottleneck", "performer"]
    assert model.get_latent_representation().shape == (150, 32)
    assert model.get_contextual_gene_embeddings(source="encoder").shape == (60, 32)


def test_every_size_exists_as_published():
    for name in ("tiny", "small", "1m", "3m", "10m", "100m"):
        ours, published = SIZES[name], SIZES[f"published-{name}"]
        assert (published.n_hidden, published.n_layers) == (ours.n_hidden, ours.n_layers)
        assert not published.has_bottleneck
        assert not published.norm_first
        assert published.imputation_decoder == "performer"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"objective": "masked"}, "read_depth_aware=True is needed"),
        ({"likelihood_weight": 0, "imputation_weight": 0}, "nothing to train"),
        ({"decoder_head_width": 8}, "imputation_decoder='performer' only"),
        ({"imputation_decoder": "mlp"}, "must be one of"),
        ({"activation": "tanh"}, "must be one of"),
    ],
)
def test_impossible_configurations_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        XTrimoGeneConfig(**kwargs)


@pytest.mark.parametrize(
    ("weight", "objective"), [("likelihood_weight", "masked"), ("imputation_weight", "counts")]
)
def test_a_weight_of_zero_still_stands_for_an_objective(weight, objective):
    with pytest.warns(
        FutureWarning, match=f"{weight}=0 is deprecated: use objective='{objective}"
    ):
        config = XTrimoGeneConfig(**{weight: 0.0}, read_depth_aware=True)
    assert config == XTrimoGeneConfig(objective=objective, read_depth_aware=True)


def test_denoising_needs_no_depths(model):
    cells = make_cells()
    model.denoise(cells)
    assert cells.layers["denoised"].shape == cells.shape
    with pytest.raises(ValueError, match="read_depth_aware"):
        model.denoise(cells, target_depth="f2")
    scxtrimo.model.XTrimoGene.setup_anndata(cells)
    cells.layers["counts"] = cells.X.copy()
    model.prepare_query_anndata(cells, layer="counts")
    with pytest.raises(ValueError, match="holds the counts"):
        model.denoise(cells, layer_added="counts")


def test_a_decoder_that_is_not_trained_does_not_exist():
    cells = make_cells(80)
    model = train_tiny(cells, 2, read_depth_aware=True, objective="counts")
    assert list(model.module.net.decoders) == ["bottleneck"]
    with pytest.raises(ValueError, match="decoder='cross_attention' is unknown"):
        model.get_normalized_expression(decoder="cross_attention")
    model.denoise(target_depth="f1")
    truth = np.log1p(1e4 * cells.X.toarray() / cells.X.sum(1))
    error = np.square(cells.layers["denoised"] - truth).mean()
    assert error < np.square(truth).mean()  # that of predicting zero
    assert list(model.get_reconstruction_error().index) == ["bottleneck", "gene mean", "zero"]
