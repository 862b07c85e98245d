"""Pictures of what a model has learned."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import make_cells, train_tiny

import scxtrimo
from scxtrimo import pl


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_curves_are_those_of_the_history(model):
    ax = pl.training_curves(model, show=False)
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_array_equal(drawn["training"], model.history["train_loss"]["train_loss"])
    assert list(drawn) == ["training", "validation"]
    own = plt.subplots()[1]
    assert pl.training_curves(model, "imputation_mse_train", ax=own) is own
    assert own.get_ylabel() == "imputation mse train"


def test_curves_without_validation_and_without_training(cells):
    model = train_tiny(cells, 3, train_size=1.0)
    assert len(pl.training_curves(model, show=False).lines) == 1
    with pytest.raises(ValueError, match=r"\['accuracy'\].*'train_loss'"):
        pl.training_curves(model, ["accuracy", "train_loss"])
    with pytest.raises(ValueError, match=r"XTrimoGene has no history.*train\(\)"):
        pl.training_curves(scxtrimo.model.XTrimoGene(cells, size="tiny"))


def test_curves_of_a_history_of_series():
    class Model:
        history = {"train_loss": pd.Series([3.0, 2.0], pd.RangeIndex(2, name="epoch"))}

    ax = pl.training_curves(Model(), show=False)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [3, 2])


def test_masked_predictions_have_their_scores_in_the_title(model):
    table = model.get_masked_predictions()
    table = table[table["measured"] > 0]
    for decoder in ("bottleneck", "cross_attention"):
        ax = pl.masked_prediction(model, decoder=decoder, show=False)
        r = table["measured"].corr(table[decoder])
        mse = ((table["measured"] - table[decoder]) ** 2).mean()
        first, second = ax.get_title().split("\n")
        assert first == f"hidden genes: r = {r:.2f}, MSE = {mse:.2f}"
        assert second.startswith("gene mean: r = ")
        assert ax.collections[0].get_array().sum() == len(table)
    with pytest.raises(ValueError, match="decoder='performer' is unknown"):
        pl.masked_prediction(model, decoder="performer")


def test_bins_are_sorted_by_the_value_at_which_they_weigh_most(model):
    ax = pl.value_bins(model, show=False)
    weights = ax.images[0].get_array()
    assert weights.shape[0] == model.config.n_bins
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=1e-5)
    assert (np.diff(weights.argmax(axis=1)) >= 0).all()
    few = pl.value_bins(model, n_bins=7, show=False).images[0].get_array()
    np.testing.assert_array_equal(np.sort(few.max(axis=1)), np.sort(weights.max(axis=1))[-7:])
    with pytest.raises(ValueError, match="n_bins=0"):
        pl.value_bins(model, n_bins=0)


def test_genes_of_similar_attention_are_side_by_side():
    blocks = np.kron(np.eye(2), np.ones((3, 3)))
    mixed = [0, 3, 1, 4, 2, 5]
    names = [f"{'ab'[i // 3]}{i}" for i in mixed]
    table = pd.DataFrame(blocks[np.ix_(mixed, mixed)], names, names)
    ax = pl.attention(table, show=False)
    drawn = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(drawn) == sorted(names)
    assert "".join(name[0] for name in drawn) in ("aaabbb", "bbbaaa")
    expected = table.loc[drawn, drawn]
    np.testing.assert_array_equal(ax.images[0].get_array(), expected)


def test_attention_that_is_missing_keeps_the_order():
    names = ["a", "b", "c"]
    table = pd.DataFrame([[1.0, 2, 3], [4, np.nan, 6], [7, 8, 9]], names, names)
    ax = pl.attention(table, ax=plt.subplots()[1], show=False)
    assert [label.get_text() for label in ax.get_xticklabels()] == names
    with pytest.raises(ValueError, match="no value"):
        pl.attention(table * np.nan)
    with pytest.raises(ValueError, match="same genes"):
        pl.attention(table.iloc[:2])


def test_modules_are_coloured_and_their_central_genes_named():
    rng = np.random.default_rng(0)
    values = np.repeat(np.eye(2, 5), 30, axis=0) + 0.05 * rng.normal(size=(60, 5))
    embeddings = pd.DataFrame(values, index=[f"GENE{i}" for i in range(60)])
    modules = scxtrimo.tl.gene_modules(embeddings, resolution=0.3)
    ax = pl.gene_modules(embeddings, modules, n_labels=2, show=False)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    for name, text in zip(("0", "1"), texts, strict=True):
        first, second = modules.index[modules["module"] == name][:2]
        assert text == f"{name}: {first}, {second}"
    assert sum(len(points.get_offsets()) for points in ax.collections) == 60
    with pytest.raises(ValueError, match="lacks 1 of the 60 genes.*'GENE7'"):
        pl.gene_modules(embeddings, modules.drop(index="GENE7"))


def test_coverage_adds_up(model):
    query = make_cells(20)
    query.var_names = [
        n.lower() if i < 10 else f"x{n}" if i < 25 else n for i, n in enumerate(query.var_names)
    ]
    with pytest.raises(ValueError, match="prepare_query_anndata"):
        pl.gene_coverage(query)
    model.prepare_query_anndata(query)
    ax = pl.gene_coverage(query, show=False)
    assert [bar.get_width() for bar in ax.patches] == [35, 10, 15, 35, 10, 15]
    assert ax.get_title().startswith("75.0% of the model's 60 genes found")
