"""Models that start from a pretrained network: which genes, what changes, what is kept."""

import anndata
import numpy as np
import pytest
import torch
from helpers import make_cells

import scxtrimo
from scxtrimo.checkpoint.pretrained import PretrainedNetwork

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
N_GENES = 600


def known_cells(seed: int = 1, n_cells: int = 300) -> anndata.AnnData:
    return make_cells(n_cells, N_GENES, seed=seed)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A network trained on other cells of the same types."""
    cells = known_cells(seed=0, n_cells=600)
    scxtrimo.model.XTrimoGene.setup_anndata(cells)
    model = scxtrimo.model.XTrimoGene(
        cells, size="tiny", n_latent=12, n_components=8, n_input_genes=None
    )
    model.train(max_epochs=8, **QUIET)
    directory = tmp_path_factory.mktemp("models") / "planted"
    model.save(directory)
    return directory


def started(cells, directory, **kwargs) -> scxtrimo.model.XTrimoGene:
    scxtrimo.model.XTrimoGene.setup_anndata(cells)
    return scxtrimo.model.XTrimoGene(cells, pretrained=directory, **kwargs)


def fitted(cells, directory, **kwargs) -> scxtrimo.model.XTrimoGene:
    model = started(cells, directory, **kwargs)
    model.train(adapt="fit", **QUIET)
    return model


def test_known_genes_have_their_weights_wherever_they_are(directory):
    cells = known_cells()
    order = np.random.default_rng(0).permutation(N_GENES)
    model = started(cells[:, order].copy(), directory)
    network = PretrainedNetwork.read(directory)
    genes = list(model.vocabulary.gene_ids)
    places = network.vocabulary.index_of(genes)
    torch.testing.assert_close(
        model.module.net.gene_embeddings.detach(),
        network.tensors["net.embedding.gene.weight"][places],
    )
    assert (model.size_, model.pretrained_) == ("planted", "planted")
    assert model.config.n_representation == 8


def test_the_order_of_genes_does_not_matter(directory):
    cells = known_cells()
    order = np.random.default_rng(0).permutation(N_GENES)
    one = fitted(cells, directory).get_latent_representation()
    other = fitted(cells[:, order].copy(), directory).get_latent_representation()
    distances = [((z[:, None] - z[None]) ** 2).sum(-1).ravel() for z in (one, other)]
    assert np.corrcoef(*distances)[0, 1] > 0.999


def test_fitting_calibrates_decoders_and_leaves_the_network_as_it_is(directory):
    model = started(known_cells(), directory)
    before = {k: v.clone() for k, v in model.module.net.state_dict().items()}
    model.train(adapt="fit", **QUIET)
    after = model.module.net.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    last = ["imputation.to_value.weight", "imputation.to_value.bias"]
    assert changed == ["bottleneck.log_baseline", *last]
    assert model.is_trained
    assert model.history == {}
    assert len(model.train_indices) + len(model.validation_indices) == 300


def test_planted_types_are_found_in_few_cells(directory):
    cells = known_cells(n_cells=60)
    model = fitted(cells, directory)
    cells.obsm["X_xtrimo"] = model.get_latent_representation()
    assert scxtrimo.tl.cluster_agreement(cells, "cell_type", "X_xtrimo")["ari"] > 0.9


def test_predicted_rates_are_those_of_the_cells_in_the_mean(directory):
    cells = known_cells()
    cells.X[:, :100] *= 5  # another protocol
    model = fitted(cells, directory)
    predicted = model.get_normalized_expression(return_numpy=True).mean(0)
    observed = np.asarray(cells.X.sum(0)).ravel() / cells.X.sum()
    assert np.abs(np.log(predicted[:100].sum() / observed[:100].sum())) < 0.1


def test_masked_genes_have_the_level_that_they_have_in_the_cells(directory):
    cells = known_cells()
    cells = cells[:, :520].copy()  # values per 10,000 counts are larger in a panel
    model = fitted(cells, directory)
    held_out = model.get_masked_predictions(indices=model.validation_indices)
    found = held_out[["measured", "cross_attention"]].mean()
    assert found["cross_attention"] == pytest.approx(found["measured"], rel=0.05)
    before = started(cells, directory)
    before.is_trained_ = True
    errors = [
        ((table["cross_attention"] - table["measured"]) ** 2).mean()
        for table in (held_out, before.get_masked_predictions(indices=model.validation_indices))
    ]
    assert errors[0] < errors[1]


def test_unknown_genes_are_embedded_like_known_ones_that_they_follow(directory):
    cells = known_cells()
    names = cells.var_names.to_numpy().copy()
    names[:60] = [f"NEW{i}" for i in range(60)]
    cells.var_names = names
    model = fitted(cells, directory)
    assert model.input_genes.tolist() == names[60:].tolist()
    own = PretrainedNetwork.read(directory).tensors["net.embedding.gene.weight"][:60]
    found = model.module.net.gene_embeddings[:60].detach()
    r = np.corrcoef(own.numpy().ravel(), found.numpy().ravel())[0, 1]
    assert r > 0.2


def test_other_names_of_genes_are_those_of_the_network(directory, tmp_path):
    network = scxtrimo.model.XTrimoGene.load(directory)
    network._remember_names({f"mouse{i}".upper(): f"GENE{i}" for i in range(N_GENES)}, None)
    network.save(tmp_path / "with-names")
    cells = known_cells()
    plain = fitted(cells.copy(), directory).get_latent_representation()
    cells.var_names = [f"Mouse{i}" for i in range(N_GENES)]
    renamed = fitted(cells, tmp_path / "with-names").get_latent_representation()
    np.testing.assert_allclose(plain, renamed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trained", [False, True])
def test_saving_keeps_where_it_started(directory, tmp_path, trained):
    cells = known_cells()
    model = (fitted if trained else started)(cells, directory)
    model.save(tmp_path / "model")
    loaded = scxtrimo.model.XTrimoGene.load(tmp_path / "model", adata=cells)
    assert loaded.pretrained_ == "planted"
    if not trained:
        model.train(adapt="fit", **QUIET)
        loaded.train(adapt="fit", **QUIET)
    np.testing.assert_array_equal(
        model.get_latent_representation(), loaded.get_latent_representation()
    )


def test_from_scratch_is_as_if_there_were_no_network(directory):
    one = started(known_cells(), directory, seed=3)
    one.train(adapt="scratch", **QUIET)
    cells = known_cells()
    scxtrimo.model.XTrimoGene.setup_anndata(cells)
    other = scxtrimo.model.XTrimoGene(cells, pretrained=None, seed=3)
    other.train(**QUIET)
    assert one.pretrained_ is None
    assert one.size_ == other.size_
    np.testing.assert_array_equal(
        one.get_latent_representation(), other.get_latent_representation()
    )


def test_fine_tuning_goes_on_from_the_weights(directory):
    model = started(known_cells(), directory)
    before = model.module.net.pooling.mlp[0].weight.detach().clone()
    model.train(max_epochs=2, **QUIET)
    after = model.module.net.pooling.mlp[0].weight.detach()
    assert not torch.equal(before, after)
    assert (before - after).abs().mean() < 0.2 * before.abs().mean()
    assert len(model.history["validation_loss"]) == 2
    assert model.pretrained_ == "planted"


def test_a_useless_network_gives_way_to_one_from_scratch(directory, tmp_path, caplog):
    useless = scxtrimo.model.XTrimoGene.load(directory)
    with torch.no_grad():
        for parameter in useless.module.net.parameters():
            parameter.normal_()
    useless.save(tmp_path / "useless")
    model = started(known_cells(), tmp_path / "useless")
    model.train(**QUIET)
    assert model.pretrained_ is None
    assert "Kept: trained from scratch" in caplog.text
    assert len(model.history["validation_loss"])


def test_an_interrupted_comparison_leaves_the_model_as_it_was(directory, tmp_path, monkeypatch):
    model = started(known_cells(), directory)
    before = model.module

    class Stop(scxtrimo.train.trainer.Callback):
        def on_train_start(self, *args):
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        model.train(adapt="scratch", callbacks=[Stop()], **QUIET)
    assert model.module is before
    assert model.pretrained_ == "planted"
    assert not model.is_trained


def test_data_of_other_genes_are_refused_or_trained_from_scratch(directory, caplog):
    cells = known_cells()
    cells.var_names = [f"OTHER{i}" for i in range(N_GENES)]
    with pytest.raises(ValueError, match="knows 0 of the 600 genes, at least 500 are needed"):
        started(cells, directory)
    scxtrimo.model.XTrimoGene.setup_anndata(cells)
    assert scxtrimo.model.XTrimoGene(cells).pretrained_ is None
    assert "Training from scratch: 'scxtrimo-immune' knows 0 of the 600 genes" in caplog.text


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [({"size": "tiny"}, "`size` and `config`"), ({"n_latent": 8}, "leave n_latent out")],
)
def test_what_a_network_brings_cannot_be_chosen(directory, kwargs, named):
    with pytest.raises(TypeError, match=named):
        started(known_cells(), directory, **kwargs)


def test_adapting_needs_a_network_to_adapt(model):
    with pytest.raises(ValueError, match="adapt='fit' is for a model that starts from a pre"):
        model.train(adapt="fit")


def test_weights_come_with_the_package():
    model = scxtrimo.model.XTrimoGene.from_pretrained("scxtrimo-immune")
    assert "scxtrimo-immune" in scxtrimo.checkpoint.bundled()
    cells = scxtrimo.datasets.pbmc68k()
    cells.obsm["X_xtrimo"] = model.get_latent_representation(cells)
    found = scxtrimo.tl.neighbor_agreement(cells, "bulk_labels", "X_xtrimo")
    assert found["knn_accuracy"] > 0.7
    assert {"terms", "seed", "store_sha256", "recipe_sha256"} <= model.provenance.keys()


def test_the_default_starts_from_the_weights_of_the_package():
    cells = scxtrimo.datasets.pbmc68k()
    scxtrimo.model.XTrimoGene.setup_anndata(cells)
    model = scxtrimo.model.XTrimoGene(cells)
    model.train(**QUIET)
    assert model.size_ == "scxtrimo-immune"
    assert model.get_latent_representation().shape == (700, 32)


def test_a_name_of_no_network_is_an_error():
    with pytest.raises(FileNotFoundError, match="neither a directory nor one of"):
        scxtrimo.model.XTrimoGene.from_pretrained("scxtrimo-imune")


def test_batches_are_integrated(directory):
    cells = known_cells(n_cells=600)
    cells.obs["half"] = np.where(np.arange(600) % 2, "a", "b")
    cells.X[1::2, :200] *= 3  # the second batch
    scxtrimo.model.XTrimoGene.setup_anndata(cells, batch_key="half")
    model = scxtrimo.model.XTrimoGene(cells, pretrained=directory)
    model.train(adapt="fit", **QUIET)
    cells.obsm["X_xtrimo"] = model.get_latent_representation()
    by_type = scxtrimo.tl.neighbor_agreement(cells, "cell_type", "X_xtrimo")
    by_batch = scxtrimo.tl.neighbor_agreement(cells, "half", "X_xtrimo")
    assert by_type["knn_accuracy"] > 0.9
    assert by_batch["silhouette"] < 0.1


def test_the_annotator_starts_there(directory):
    cells = known_cells()
    model = fitted(cells, directory)
    annotator = scxtrimo.model.XTrimoGeneAnnotator.from_xtrimogene_model(
        model, labels_key="cell_type"
    )
    annotator.train(**QUIET)
    assert (annotator.predict() == cells.obs["cell_type"]).mean() > 0.9
