"""Annotation: what is learned from labels, and what happens when there are few or none."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_cells, train_tiny
from lightning.pytorch.callbacks import Callback
from published import GENES, N_GENES, write_checkpoint
from scipy import sparse

import scxtrimo
from scxtrimo.annotation.model import XTrimoGeneAnnotator, annotate_together
from scxtrimo.model.xtrimogene import XTrimoGene

ARGS = {"accelerator": "cpu", "enable_progress_bar": False}


def labelled_cells(n_cells: int = 200, **kwargs):
    """Cells of which a half has lost its label."""
    cells = make_cells(n_cells, **kwargs)
    cells.obs["truth"] = cells.obs["cell_type"]
    cells.obs.loc[cells.obs_names[::2], "cell_type"] = np.nan
    return cells


def make_annotator(cells, **kwargs) -> XTrimoGeneAnnotator:
    setup = {k: kwargs.pop(k) for k in ("batch_key", "unlabeled_category") if k in kwargs}
    XTrimoGeneAnnotator.setup_anndata(cells, labels_key="cell_type", **setup)
    return XTrimoGeneAnnotator(cells, size="tiny", **kwargs)


@pytest.fixture(scope="module")
def annotator() -> XTrimoGeneAnnotator:
    """Trained on half of the labels; do not change it."""
    model = make_annotator(labelled_cells())
    model.train(pretrain_epochs=3, **ARGS)
    return model


@pytest.fixture
def fresh(annotator, tmp_path) -> XTrimoGeneAnnotator:
    """A copy that may be changed."""
    annotator.save(tmp_path / "fresh")
    return XTrimoGeneAnnotator.load(tmp_path / "fresh", adata=labelled_cells())


def accuracy(model, cells) -> float:
    return (model.predict(cells) == cells.obs["truth"]).mean()


def test_cells_without_a_label_get_the_right_one(annotator):
    cells = annotator.adata
    unlabelled = cells.obs["cell_type"].isna().to_numpy()
    predicted = annotator.predict(indices=unlabelled)
    assert (predicted == cells.obs["truth"][unlabelled]).mean() > 0.9
    assert annotator.labels.tolist() == ["type0", "type1", "type2"]


def test_probabilities_add_up_and_agree_with_the_labels(annotator):
    soft = annotator.predict(soft=True)
    assert list(soft.columns) == annotator.labels.tolist()
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-5)
    assert (soft.idxmax(axis=1) == annotator.predict()).all()
    one_by_one = annotator.predict(soft=True, batch_size=1)
    pd.testing.assert_frame_equal(soft, one_by_one, rtol=1e-4, atol=1e-5)


def test_new_data_with_other_genes_in_another_order(annotator):
    query = make_cells(80, seed=1)
    query.obs["truth"] = query.obs["cell_type"]
    query.obs["cell_type"] = "a label nobody knows"
    assert accuracy(annotator, query) > 0.9
    some = query[:, np.random.default_rng(0).permutation(60)[:45]].copy()
    assert accuracy(annotator, some) > 0.85
    assert some.uns["scxtrimo_gene_coverage"]["overlap"] == 0.75


def test_missing_genes_count_as_average(annotator):
    """Leaving out a gene changes the scores less than pretending it is not expressed."""
    module = annotator.module
    measured = torch.ones(60, dtype=torch.bool)
    assert not module.label_panel(measured).gene_offset_l.any()
    measured[7] = False
    expected = module.mean_expression[7] * module.gene_classifier.weight[7]
    torch.testing.assert_close(module.label_panel(measured).gene_offset_l, expected)


def test_labels_that_follow_one_gene_are_learned_from_genes(caplog):
    cells = make_cells(300)
    switch = np.random.default_rng(0).random(300) < 0.5  # says nothing about the other genes
    counts = cells.X.toarray()
    counts[:, 59] = np.where(switch, 1, 0)
    cells.X = sparse.csr_matrix(counts)
    cells.obs["cell_type"] = np.where(switch, "on", "off")
    model = make_annotator(cells)
    with caplog.at_level("INFO", "scxtrimo"):
        model.train(pretrain_epochs=1, **ARGS)
    assert float(model.module.gene_weight) == 1
    assert "by genes alone, which are used" in caplog.text
    assert (model.predict() == cells.obs["cell_type"]).all()


def test_a_fine_tuning_changes_what_is_predicted():
    """Also where the linear models would be chosen so that the network does not count."""
    cells = make_cells(200)
    switch = np.random.default_rng(0).random(200) < 0.5
    counts = cells.X.toarray()
    counts[:, 59] = switch
    cells.X = sparse.csr_matrix(counts)
    cells.obs["cell_type"] = np.where(switch, "on", "off")
    model = make_annotator(cells)
    model.train(pretrain_epochs=1, **ARGS)
    before = model.predict(soft=True)
    model.train(3, plan_kwargs={"lr": 1e-2}, **ARGS)
    assert 0 < float(model.module.gene_weight) < 1
    assert np.abs(model.predict(soft=True) - before).to_numpy().max() > 0.01


def test_labels_of_types_are_learned_from_the_representation(annotator):
    assert float(annotator.module.gene_weight) < 1


@pytest.mark.parametrize("recipe", ["linear", "finetune", "published"])
def test_a_saved_annotator_predicts_the_same(recipe, tmp_path):
    model = make_annotator(labelled_cells(80), gene_weight=0.3)
    model.train(1 if recipe != "linear" else None, recipe, pretrain_epochs=1, **ARGS)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = XTrimoGeneAnnotator.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
    assert loaded.config == model.config
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    with pytest.raises(ValueError, match="class XTrimoGeneAnnotator, not XTrimoGene"):
        XTrimoGene.load(tmp_path / "model")
    with pytest.raises(ValueError, match="not trained since it was loaded"):
        loaded.held_out  # noqa: B018


@pytest.mark.parametrize("recipe", ["finetune", "published"])
def test_equal_seeds_give_equal_annotators(recipe):
    soft = []
    for _ in range(2):
        model = make_annotator(labelled_cells(60), seed=3)
        torch.rand(5)  # the global state does not matter
        model.train(2, recipe, pretrain_epochs=1, **ARGS)
        soft.append(model.predict(soft=True))
    pd.testing.assert_frame_equal(*soft, check_exact=True)


def test_made_of_a_trained_model_and_leaves_it_alone():
    cells = labelled_cells()
    model = train_tiny(cells.copy(), 2)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    annotator = XTrimoGeneAnnotator.from_xtrimogene_model(
        model, labels_key="cell_type", adata=cells
    )
    np.testing.assert_array_equal(
        annotator.get_latent_representation(), model.get_latent_representation()
    )
    with pytest.raises(ValueError, match=r"Call `annotator.train\(\)`"):
        annotator.predict()
    annotator.train(**ARGS)
    assert not annotator.history  # nothing was trained by gradients
    assert accuracy(annotator, cells) > 0.9
    annotator.train(2, **ARGS)
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_model_with_labels_needs_no_key_and_its_batches_stay(model):
    annotator = XTrimoGeneAnnotator.from_xtrimogene_model(model)
    annotator.train(**ARGS)
    np.testing.assert_array_equal(
        annotator.get_latent_representation(), model.get_latent_representation()
    )
    assert annotator.registry["setup_args"]["batch_key"] == "batch"
    assert (annotator.predict() == model.adata.obs["cell_type"]).mean() > 0.9


def test_made_of_a_published_checkpoint(tmp_path):
    cells = make_cells(100, N_GENES + 5)
    cells.obs["truth"] = cells.obs["cell_type"]
    checkpoint = write_checkpoint(tmp_path / "models.ckpt")
    published = XTrimoGene.from_scfoundation(checkpoint, GENES)
    annotator = XTrimoGeneAnnotator.from_xtrimogene_model(
        published, labels_key="cell_type", adata=cells
    )
    annotator.train(**ARGS)
    assert accuracy(annotator, cells) > 0.9
    assert annotator.provenance == published.provenance
    annotator.train(1, "published", **ARGS)
    annotator.save(tmp_path / "model")
    loaded = XTrimoGeneAnnotator.load(tmp_path / "model", adata=cells)
    pd.testing.assert_frame_equal(loaded.predict(soft=True), annotator.predict(soft=True))


def test_a_fine_tuning_sees_cells_as_predictions_do(tmp_path):
    """With tokens of the depth as well."""
    cells = make_cells(60, N_GENES)
    published = XTrimoGene.from_scfoundation(write_checkpoint(tmp_path / "models.ckpt"), GENES)
    annotator = XTrimoGeneAnnotator.from_xtrimogene_model(
        published, labels_key="cell_type", adata=cells, gene_weight=0.0
    )
    logits = []

    class Listen(Callback):
        def on_train_start(self, trainer, pl_module):
            classifier = pl_module.module.classifier
            classifier.register_forward_hook(lambda _, __, output: logits.append(output.detach()))

    frozen = {"freeze": "encoder", "plan_kwargs": {"lr": 1e-12}, "train_size": 1.0}
    annotator.train(1, batch_size=60, callbacks=[Listen()], **frozen, **ARGS)
    expected = annotator.predict(soft=True).to_numpy()
    seen = logits[0].softmax(1).numpy()
    np.testing.assert_allclose(np.sort(seen[:, 0]), np.sort(expected[:, 0]), rtol=1e-3, atol=1e-5)


def test_genes_that_a_published_model_lacks_in_the_query_count_as_average(tmp_path):
    cells = make_cells(100, N_GENES)
    published = XTrimoGene.from_scfoundation(write_checkpoint(tmp_path / "models.ckpt"), GENES)
    annotator = XTrimoGeneAnnotator.from_xtrimogene_model(
        published, labels_key="cell_type", adata=cells
    )
    annotator.train(**ARGS)
    assert annotator.module.mean_expression.all()


def test_the_published_recipe_trains_the_last_layer_and_the_perceptron_alone(fresh):
    before = {n: p.clone() for n, p in fresh.module.named_parameters()}
    fresh.train(1, "published", **ARGS)
    changed = {n for n, p in fresh.module.named_parameters() if not torch.equal(p, before[n])}
    parts = {".".join(name.split(".")[:2]) for name in changed}
    assert parts == {"net.encoder", "net.pooling", "classifier.mlp", "classifier.linear"}
    assert float(fresh.module.gene_weight) == 0
    assert fresh.history["cross_entropy_train"].index.tolist() == [3]  # after the pretraining
    assert len(fresh.history["imputation_mse_train"]) == 3  # not part of this


def test_labels_alone_decide_what_is_trained_without_the_masked_objective(fresh):
    fresh.train(2, freeze="encoder", reconstruction_weight=0, **ARGS)
    names = {"cross_entropy_train", "cross_entropy_validation", "macro_f1_validation"}
    assert names <= fresh.history.keys()
    np.testing.assert_allclose(
        fresh.history["train_loss"].to_numpy()[-2:],
        fresh.history["cross_entropy_train"].to_numpy(),
    )


def test_early_stopping_goes_back_to_the_best_epoch(fresh):
    class Spoil(Callback):
        """Ruin the classifier from the second epoch on."""

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch >= 1:
                pl_module.module.classifier.linear.bias.data[0] += 1e3

    fresh.train(6, early_stopping=True, early_stopping_patience=2, callbacks=[Spoil()], **ARGS)
    f1 = fresh.history["macro_f1_validation"]["macro_f1_validation"]
    assert f1.iloc[-1] < f1.max()
    assert len(f1) < 6
    assert fresh.module.classifier.linear.bias.abs().max() < 100


def test_held_out_cells_were_not_learned_from(fresh):
    """With labels that mean nothing, held-out cells are predicted at random."""
    cells = labelled_cells()
    known = cells.obs["cell_type"].notna()
    rng = np.random.default_rng(0)
    cells.obs.loc[known, "cell_type"] = rng.permutation(cells.obs.loc[known, "cell_type"])
    model = make_annotator(cells)
    model.train(pretrain_epochs=1, **ARGS)
    for train_size in (None, 0.5):
        model.train(train_size=train_size, **ARGS)
        held_out = model.held_out
        assert len(held_out) >= (known.sum() if train_size is None else known.sum() // 2 - 3)
        right = held_out.idxmax(axis=1) == cells.obs.loc[held_out.index, "cell_type"]
        assert right.mean() < 0.6
        seen = model.predict(indices=np.flatnonzero(known)) == cells.obs.loc[known, "cell_type"]
        assert seen.mean() > right.mean() + 0.15
    assert model.module.temperature > 1.2  # nobody should be sure of these


def test_an_interrupted_training_goes_on_where_it_was(tmp_path):
    class Interrupt(Callback):
        def __init__(self, epoch):
            self.epoch = epoch

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == self.epoch:
                raise RuntimeError("interrupted")

    def new():
        return make_annotator(labelled_cells(100))

    args = ARGS | {"pretrain_epochs": 3, "batch_size": 32}
    whole = new()
    whole.train(4, **args)
    for phase, epoch in (("XTrimoGenePlan", 2), ("AnnotatorPlan", 3)):
        killed = new()
        path = tmp_path / phase
        with pytest.raises(RuntimeError, match="interrupted"):
            killed.train(4, checkpoint_dir=path, callbacks=[Interrupt(epoch)], **args)
        checkpoint = path / "last.ckpt"
        assert torch.load(checkpoint, weights_only=True)["scxtrimo_plan"] == phase
        resumed = new()
        resumed.train(4, ckpt_path=checkpoint, **args)
        for name, tensor in resumed.module.state_dict().items():
            torch.testing.assert_close(tensor, whole.module.state_dict()[name], msg=name)


def test_labels_only_in_one_batch_reach_the_other():
    """A batch that is deeper and shifted in many genes, and has no labels."""
    cells = make_cells(300, 60)
    rng = np.random.default_rng(0)
    is_b = (cells.obs["batch"] == "b").to_numpy()
    counts = cells.X.toarray()
    counts[is_b] = rng.poisson(counts[is_b] * rng.lognormal(0, 0.5, 60)[None] * 2)
    counts[:, 0] += 1
    cells.X = sparse.csr_matrix(counts.astype(np.float32))
    cells.obs["truth"] = cells.obs["cell_type"]
    cells.obs.loc[is_b, "cell_type"] = "?"
    model = make_annotator(cells, batch_key="batch", unlabeled_category="?")
    model.train(pretrain_epochs=3, **ARGS)
    assert (model.predict(indices=is_b) == cells.obs["truth"][is_b]).mean() > 0.9


def test_a_training_that_fails_leaves_what_was_trained(annotator, fresh):
    class Fail(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            raise MemoryError("too much")

    made = XTrimoGeneAnnotator.from_xtrimogene_model(
        train_tiny(labelled_cells(60), 1), labels_key="cell_type"
    )
    for model in (fresh, made):
        before = model.get_latent_representation()
        with pytest.raises(MemoryError):
            model.train(2, callbacks=[Fail()], **ARGS)
        assert model.is_trained_
        np.testing.assert_array_equal(model.get_latent_representation(), before)
        model.train(**ARGS)
        np.testing.assert_array_equal(model.get_latent_representation(), before)


def test_the_linear_recipe_forgets_a_fine_tuning_of_the_head(fresh):
    fresh.train(**ARGS)
    soft = fresh.predict(soft=True)
    fresh.train(1, freeze="encoder", reconstruction_weight=0, plan_kwargs={"lr": 1e-9}, **ARGS)
    fresh.train(**ARGS)
    pd.testing.assert_frame_equal(fresh.predict(soft=True), soft, rtol=1e-4, atol=1e-5)


def test_adapters_rates_and_masking_reach_the_fine_tuning(fresh):
    pytest.importorskip("peft")
    names = set(fresh.module.state_dict())
    masking = scxtrimo.train.MaskingConfig()
    fresh.train(1, lora_rank=2, layer_decay=0.5, masking=masking, **ARGS)
    assert set(fresh.module.state_dict()) == names
    assert accuracy(fresh, fresh.adata) > 0.9


def test_cells_held_out_by_the_user_are_not_learned_from():
    cells = make_cells(120)
    rng = np.random.default_rng(0)
    cells.obs["cell_type"] = rng.permutation(cells.obs["cell_type"].to_numpy())
    model = make_annotator(cells)
    rows = np.arange(120)
    for indexing in ([rows[:80], rows[80:110], rows[110:]], [rows[:80], rows[80:], None]):
        split = {"external_indexing": indexing}
        model.train(pretrain_epochs=1, datasplitter_kwargs=split, **ARGS)
        right = model.predict() == cells.obs["cell_type"]
        assert right[:80].mean() > right[80:].mean() + 0.15
        assert len(model.held_out) == len(indexing[1])


@pytest.mark.parametrize("labels", [[1, 2, 3], [True, False]], ids=["numbers", "booleans"])
def test_labels_that_are_not_text(tmp_path, labels):
    cells = make_cells(120, n_types=len(labels))
    cells.obs["truth"] = cells.obs["cell_type"].map(
        {f"type{i}": label for i, label in enumerate(labels)}
    )
    cells.obs["cell_type"] = cells.obs["truth"]
    model = make_annotator(cells)
    model.train(pretrain_epochs=2, **ARGS)
    assert accuracy(model, cells) > 0.9
    model.save(tmp_path / "model")
    loaded = XTrimoGeneAnnotator.load(tmp_path / "model", adata=cells)
    assert (loaded.predict() == model.predict()).all()
    loaded.annotate(min_confidence=0.9)
    cells.write_h5ad(tmp_path / "cells.h5ad")


@pytest.mark.parametrize("n", [1, 2])
def test_a_few_labelled_cells_are_enough(n):
    cells = make_cells(120)
    truth = cells.obs["cell_type"].copy()
    chosen = pd.Series(range(120)).groupby(truth.to_numpy()).head(n).to_numpy()
    cells.obs["cell_type"] = np.nan
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    cells.obs.iloc[chosen, cells.obs.columns.get_loc("cell_type")] = truth.iloc[chosen]
    model = make_annotator(cells)
    model.train(pretrain_epochs=5, **ARGS)
    assert (model.predict() == truth).mean() > (0.5 if n == 1 else 0.6)
    if n == 1:
        assert model.module.temperature == 1
        with pytest.raises(ValueError, match="No cells were held out"):
            model.held_out  # noqa: B018


def test_one_of_two_labels_with_one_cell():
    cells = make_cells(60, n_types=2)
    cells.obs["cell_type"] = ["rare"] + ["common"] * 59
    model = make_annotator(cells)
    model.train(pretrain_epochs=1, **ARGS)
    assert np.isfinite(model.predict(soft=True).to_numpy()).all()


def test_labels_of_other_data_that_the_model_does_not_know_are_named(annotator, tmp_path, caplog):
    annotator.save(tmp_path / "model")
    cells = make_cells(50)
    cells.obs["cell_type"] = cells.obs["cell_type"].str.replace("type", "other")
    with caplog.at_level("INFO", logger="scxtrimo"):
        loaded = XTrimoGeneAnnotator.load(tmp_path / "model", adata=cells)
    assert "50 cells have labels" in caplog.text
    loaded.adata.obs["cell_type"] = "one"
    with pytest.raises(ValueError, match="single label 'one'; at least two"):
        loaded.train(**ARGS)


def test_a_mudata_and_a_backed_file(tmp_path):
    from mudata import MuData

    cells = labelled_cells(80)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    model = make_annotator(cells)
    model.train(pretrain_epochs=1, **ARGS)
    import anndata

    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    pd.testing.assert_frame_equal(model.predict(backed, soft=True), model.predict(soft=True))
    mdata = MuData({"rna": labelled_cells(80)})
    XTrimoGeneAnnotator.setup_anndata(mdata, "cell_type", modality="rna")
    other = XTrimoGeneAnnotator(mdata, size="tiny")
    other.train(pretrain_epochs=1, **ARGS)
    assert len(other.predict(mdata)) == 80


def test_annotate_writes_where_scanpy_looks(annotator):
    query = make_cells(50, seed=2)
    annotator.annotate(query, key_added="type", min_confidence=0.9)
    assert isinstance(query.obs["type"].dtype, pd.CategoricalDtype)
    soft = annotator.predict(query, soft=True)
    sure = (soft.max(axis=1) >= 0.9).to_numpy()
    assert (query.obs["type"][~sure] == "unknown").all()
    assert (query.obs["type"][sure] == soft.idxmax(axis=1)[sure]).all()
    np.testing.assert_allclose(query.obs["type_confidence"], soft.max(axis=1), rtol=1e-6)


def test_the_markers_of_a_type_drive_its_label(annotator):
    pytest.importorskip("captum")
    import scanpy as sc

    cells = annotator.adata.copy()
    genes = annotator.rank_label_genes(cells, max_cells=20)
    for i in range(3):
        top = genes[genes["group"] == f"type{i}"].head(5)
        markers = [f"GENE{g}" for g in range(60) if g % 6 == i]
        assert top["names"].isin(markers).sum() >= 4
        assert (top["scores"] > 0).all()
        assert (top["logfoldchanges"] > 0).all()
    assert cells.uns["xtrimo_label_genes"]["params"]["max_error"] < 0.05
    table = sc.get.rank_genes_groups_df(cells, "type1", key="xtrimo_label_genes")
    assert table["names"].tolist() == genes["names"][genes["group"] == "type1"].tolist()


def test_a_class_with_one_cell(caplog):
    cells = make_cells(90)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    cells.obs.iloc[4, cells.obs.columns.get_loc("cell_type")] = "lonely"
    model = make_annotator(cells)
    with caplog.at_level("INFO", logger="scxtrimo"):
        model.train(2, pretrain_epochs=1, **ARGS)
    assert "'lonely' (1)" in caplog.text
    assert "lonely" in model.labels
    assert 4 in model.train_indices
    assert np.isfinite(model.predict(soft=True).to_numpy()).all()
    model.train(**ARGS)
    assert np.isfinite(model.held_out.to_numpy()).all()


def test_two_labels():
    cells = labelled_cells(100, n_types=2)
    model = make_annotator(cells)
    model.train(pretrain_epochs=2, class_weight="balanced", **ARGS)
    assert accuracy(model, cells) > 0.9
    model.train(1, **ARGS)
    assert accuracy(model, cells) > 0.9


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.nan, "no labels; at least two"),
        ("?", "no labels beside unlabeled_category='\\?'"),
        (["only", "?"], "the single label 'only' beside unlabeled_category"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(labels, message):
    cells = make_cells(40)
    cells.obs["cell_type"] = np.resize(np.atleast_1d(np.array(labels, dtype=object)), 40)
    unlabelled = None if message.startswith("no labels;") else "?"
    with pytest.raises(ValueError, match=message):
        XTrimoGeneAnnotator.setup_anndata(cells, "cell_type", unlabeled_category=unlabelled)


def test_wrong_arguments_are_named(annotator, fresh, model):
    cells = make_cells(30)
    with pytest.raises(ValueError, match="'nothing' is not a column"):
        XTrimoGeneAnnotator.setup_anndata(cells, "nothing")
    with pytest.raises(ValueError, match="gene_weight=2 must be at most 1"):
        make_annotator(cells, gene_weight=2)
    with pytest.raises(TypeError, match="n_layers"):
        XTrimoGeneAnnotator.from_xtrimogene_model(model, n_layers=3)
    with pytest.raises(TypeError, match="unlabeled_category must be a label, not data"):
        XTrimoGeneAnnotator.from_xtrimogene_model(model, cells, labels_key="cell_type")
    with pytest.raises(ValueError, match=r"labels_key=\"cell_type\""):
        XTrimoGeneAnnotator.from_xtrimogene_model(train_tiny(cells, 1))
    for arguments, message in [
        ({"recipe": "other"}, "recipe='other'"),
        ({"recipe": "linear", "max_epochs": 3}, "leave out .*max_epochs"),
        ({"recipe": "published", "freeze": "encoder"}, "recipe='published' fixes what is trained"),
        ({"freeze": "decoder"}, "freeze='decoder'"),
        ({"freeze": "all_but_last_2"}, "the encoder has 1 layers only"),
        ({"lora_rank": 4, "freeze": "encoder"}, "leave freeze='encoder' out"),
        ({"layer_decay": 0.0}, "layer_decay=0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        (
            {"recipe": "published", "reconstruction_weight": 0.5},
            "recipe='published' fixes what is trained",
        ),
        ({"class_weight": "heavy"}, "class_weight='heavy'"),
        ({"train_size": 0.0}, "train_size=0.0"),
        ({"early_stopping": True, "train_size": 1.0}, "needs labelled validation cells"),
    ]:
        with pytest.raises(ValueError, match=message):
            fresh.train(**(ARGS | arguments))
    assert accuracy(fresh, fresh.adata) == accuracy(annotator, annotator.adata)  # unharmed
    with pytest.raises(FileNotFoundError, match=r"none.ckpt"):
        fresh.train(2, ckpt_path="none.ckpt", **ARGS)
    with pytest.raises(ValueError, match="min_confidence=3"):
        annotator.predict(min_confidence=3)
    with pytest.raises(ValueError, match="None of the labels"):
        annotator.rank_label_genes(annotator.adata.copy(), groupby="batch")


def test_hyperparameters_of_the_head_are_kept(tmp_path):
    model = make_annotator(make_cells(40), n_classifier_hidden=7, gene_weight=0.0)
    assert model.config.n_classifier_hidden == 7
    model.train(pretrain_epochs=1, **ARGS)
    assert not model.module.gene_classifier.weight.any()
    assert "XTrimoGeneAnnotator 'tiny'" in repr(model)


def test_a_reference_and_a_query_that_is_shifted_are_trained_on_together():
    reference, query = make_cells(150), make_cells(100, seed=1)
    reference.layers["counts"], query.layers["raw"] = reference.X.copy(), query.X.copy()
    query.layers["raw"] = sparse.csr_matrix(query.X.toarray() * ([3] * 20 + [1] * 40))
    reference.X, query.X = reference.X * 0.5, query.X * 0.5  # neither is raw
    reference.var["id"] = [f"ID{i}" for i in range(60)]
    query.var_names = [f"ID{i}" for i in range(60)]
    query = query[:, ::-1].copy()
    truth, names = query.obs.pop("cell_type"), query.obs_names.copy()
    layers = {"reference_layer": "counts", "query_layer": "raw", "gene_id_key": "id"}
    args = {"size": "tiny", "seed": 1, "pretrain_epochs": 3} | ARGS
    annotator = annotate_together(
        reference, query, "cell_type", "type2", **layers, key_added="new", **args
    )
    assert query.obs_names.equals(names)
    assert list(query.obs) == ["batch", "new", "new_confidence"]
    known = (truth != "type2").to_numpy()
    assert (query.obs["new"][known] == truth[known]).mean() > 0.9
    assert query.obs["new"].cat.categories.tolist() == ["type0", "type1"]
    assert annotator.adata.n_obs == 250
    assert annotator.registry["setup_args"]["batch_key"] == "scxtrimo_batch"
    assert len(annotator.held_out) == (reference.obs["cell_type"] != "type2").sum()
    for wrong, message in [
        ({"labels_key": "nothing"}, "'nothing' is not a column of reference.obs"),
        ({"key_added": "cell_type"}, "key_added='cell_type'"),
        ({"gene_id_key": None}, "no gene in common: the reference has 'GENE0'.* the query 'ID59'"),
        ({"min_confidence": 0.5, "unknown": "type1"}, "is the name of a label"),
    ]:
        arguments = {"labels_key": "cell_type"} | layers | args | wrong
        with pytest.raises(ValueError, match=message):
            annotate_together(reference, query, **arguments)


def test_real_cells_with_a_tenth_of_the_labels(shared_cells):
    """What was measured in benchmarks/annotation.py, on less."""
    cells = shared_cells("pbmc3k")
    cells = cells[cells.obs["cell_type"].notna()][:1200].copy()
    truth = cells.obs["cell_type"].astype(str)
    cells.obs["cell_type"] = truth.where(np.random.default_rng(0).random(1200) < 0.1)
    model = make_annotator(cells)
    model.train(pretrain_epochs=5, **ARGS)
    hidden = cells.obs["cell_type"].isna().to_numpy()
    assert (model.predict(indices=hidden) == truth[hidden]).mean() > 0.88
    report = scxtrimo.tl.annotation_report(truth[hidden], model.predict(indices=hidden))
    assert report.loc["B cells", "f1"] > 0.9
