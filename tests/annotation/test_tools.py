"""From probabilities to labels, and what is said of them."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from scxtrimo import pl, tl

mpl.use("agg")

P = pd.DataFrame(
    {
        "B": [0.9, 0.1, 0.34, 0.0],
        "CD4 T": [0.1, 0.5, 0.33, 0.2],
        "CD8 T": [0.0, 0.4, 0.0, 0.2],
        "NK": [0.0, 0.0, 0.33, 0.6],
    },
    index=list("abcd"),
)
HIERARCHY = {"CD4 T": "T", "CD8 T": "T", "T": "lymphocyte", "NK": "lymphocyte", "B": "lymphocyte"}


def test_what_is_not_probable_is_not_called():
    assert tl.call_labels(P)["label"].tolist() == ["B", "CD4 T", "B", "NK"]
    called = tl.call_labels(P, 0.6, unknown="?")
    assert called["label"].tolist() == ["B", "?", "?", "NK"]
    assert called["confidence"].tolist() == [0.9, 0.5, 0.34, 0.6]
    assert called.index.tolist() == list("abcd")


def test_a_more_general_label_where_the_exact_one_is_not_sure():
    called = tl.call_labels(P, 0.8, hierarchy=HIERARCHY)
    assert called["label"].tolist() == ["B", "T", "lymphocyte", "lymphocyte"]
    np.testing.assert_allclose(called["confidence"], [0.9, 0.9, 1.0, 1.0])


def test_a_label_may_be_more_general_than_others_itself():
    p = pd.DataFrame({"T": [0.45, 0.5], "CD4 T": [0.45, 0.4], "B": [0.1, 0.1]})
    p.iloc[0, 1] += 0.001
    assert tl.call_labels(p, 0.8, hierarchy={"CD4 T": "T"})["label"].tolist() == ["T", "T"]


def test_impossible_hierarchies_and_thresholds_are_refused():
    with pytest.raises(ValueError, match="has a cycle"):
        tl.call_labels(P, 0.8, hierarchy={"B": "X", "X": "B"})
    with pytest.raises(ValueError, match="needs a min_confidence"):
        tl.call_labels(P, hierarchy=HIERARCHY)
    with pytest.raises(ValueError, match="min_confidence=-1"):
        tl.call_labels(P, -1)


def test_rare_labels_are_reported_by_name():
    labels = ["common"] * 100 + ["rare"] * 5 + [None]
    predicted = ["common"] * 98 + ["new"] * 2 + ["common"] * 3 + ["rare", "unknown", "rare"]
    report = tl.annotation_report(labels, predicted)
    assert report.index.tolist() == ["common", "rare", "new"]
    assert report["is_rare"].tolist() == [False, True, True]
    assert report.loc["rare", "recall"] == pytest.approx(0.2)
    assert report.loc["rare", "precision"] == 1
    assert report.loc["rare", "f1"] == pytest.approx(1 / 3)
    assert report.loc["rare", "most_confused_with"] == "common"
    assert report["n_unknown"].tolist() == [0, 1, 0]
    assert report.loc["new", "n_cells"] == 0
    assert np.isnan(report.loc["new", "f1"])


def test_a_label_that_is_never_predicted_has_f1_zero():
    report = tl.annotation_report(["a", "b"], ["b", "b"])
    assert report.loc["a", "f1"] == 0
    assert np.isnan(report.loc["a", "precision"])


def test_accuracy_rises_as_unsure_cells_are_left_out():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 2000)
    right = rng.random(2000) < confidence
    labels = np.where(right, "x", "y")
    curve = tl.coverage_accuracy(labels, np.full(2000, "x"), confidence)
    assert curve["coverage"].iloc[0] == 1
    assert (curve["coverage"].diff().dropna() < 0).all()
    assert curve["accuracy"].iloc[0] == right.mean()
    at_80 = curve[curve["min_confidence"] >= 0.8].iloc[0]
    assert at_80["accuracy"] == right[confidence >= 0.8].mean()
    ax = pl.calibration(labels, np.full(2000, "x"), confidence, show=False)
    assert float(ax.get_title().split()[-1]) < 0.04  # these are calibrated


def test_without_labels_there_is_nothing_to_compare():
    for function in (tl.annotation_report, pl.annotation_confusion):
        with pytest.raises(ValueError, match="None of the cells has a label"):
            function([None, np.nan], ["a", "b"])
    for function in (tl.coverage_accuracy, pl.coverage_accuracy, pl.calibration):
        with pytest.raises(ValueError, match="None of the cells has a label"):
            function([None, np.nan], ["a", "b"], [0.5, 0.5])


def test_the_confusion_matrix_shows_parts_of_each_label():
    import matplotlib.pyplot as plt

    labels = ["a"] * 4 + ["b"] * 2
    predicted = ["a", "a", "a", "b", "unknown", "c"]
    own = plt.subplots()[1]
    ax = pl.annotation_confusion(labels, predicted, ax=own, show=False)
    assert ax is own
    image = ax.images[0].get_array()
    np.testing.assert_allclose(image, [[0.75, 0.25, 0, 0], [0, 0, 0.5, 0.5]])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c", "unknown"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a (4)", "b (2)"]
    ax = pl.coverage_accuracy(labels, predicted, np.linspace(0.5, 1, 6), show=False)
    assert len(ax.lines) == 2
    plt.close("all")


def test_reports_compare_the_same_cells_whatever_their_order():
    names = [f"cell{i}" for i in range(4)]
    labels = pd.Series(["B", "T", "T", None], index=names)
    predicted = pd.Series(["B", "T", "B", "T"], index=names)
    confidence = pd.Series([0.9, 0.8, 0.4, 0.7], index=names)
    expected = tl.annotation_report(labels, predicted)
    assert tl.annotation_report(labels, predicted[::-1]).equals(expected)
    assert tl.annotation_report(labels, predicted.to_numpy()).equals(expected)
    by_threshold = tl.coverage_accuracy(labels, predicted[::-1], confidence.iloc[[2, 0, 3, 1]])
    assert by_threshold.equals(tl.coverage_accuracy(labels, predicted, confidence))


def test_reports_of_other_cells_are_refused():
    labels = pd.Series(["B", "T"], index=["cell0", "cell1"])
    with pytest.raises(ValueError, match="predicted has other cell names than label"):
        tl.annotation_report(labels, pd.Series(["B", "T"], index=["cell1", "cell2"]))
    with pytest.raises(ValueError, match="confidence 3"):
        tl.coverage_accuracy(labels.to_numpy(), labels.to_numpy(), [0.1, 0.2, 0.3])


def test_labels_are_compared_by_what_they_mean():
    report = tl.annotation_report(pd.Series([0, 1, np.nan]), np.array([0, 1, 1]))
    assert report.index.tolist() == ["0", "1"]
    assert (report["recall"] == 1).all()


def test_a_label_called_unknown_is_told_from_cells_without_one():
    with pytest.raises(ValueError, match="unknown='unknown' is the name of a label"):
        tl.annotation_report(["unknown", "B"], ["unknown", "B"])
    report = tl.annotation_report(["unknown", "B", "B"], ["unknown", "B", None], unknown=None)
    assert report["recall"].to_dict() == {"B": 0.5, "unknown": 1.0}
    assert report["n_unknown"].to_dict() == {"B": 1, "unknown": 0}
    probabilities = pd.DataFrame({"unknown": [0.9, 0.4], "B": [0.1, 0.6]})
    assert tl.call_labels(probabilities)["label"].tolist() == ["unknown", "B"]
    with pytest.raises(ValueError, match="is the name of a label"):
        tl.call_labels(probabilities, min_confidence=0.7)
    called = tl.call_labels(probabilities, min_confidence=0.7, unknown="unassigned")
    assert called["label"].tolist() == ["unknown", "unassigned"]


@pytest.mark.parametrize("min_confidence", [-0.1, 1.1, "0.8", None, float("nan")])
def test_impossible_confidences_are_refused(min_confidence):
    with pytest.raises(ValueError, match="min_confidence="):
        tl.call_labels(pd.DataFrame({"B": [1.0]}), min_confidence)


def test_a_hierarchy_of_other_labels_is_refused():
    with pytest.raises(ValueError, match="has none of the labels"):
        tl.call_labels(pd.DataFrame({"B": [0.6], "T": [0.4]}), 0.8, hierarchy={"CD4": "T cells"})
