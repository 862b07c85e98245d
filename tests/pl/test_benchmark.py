import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scxtrimo import pl


@pytest.fixture
def repeats():
    yield pd.DataFrame(
        {
            "method": ["PCA"] * 3 + ["xTrimoGene"] * 3 + ["scVI"],
            "ARI": [0.5, 0.6, 0.7, 0.8, 0.8, 0.9, 0.4],
            "seconds": [1.0, 1, 1, 100, 110, 120, 200],
        }
    )
    plt.close("all")


def names_of(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def spreads_of(ax):
    return [(b - a) / 2 for (a, _), (b, _) in ax.containers[1].lines[2][0].get_segments()]


def test_bars_are_means_with_deviations_and_repeats(repeats):
    ax = pl.benchmark(repeats, "ARI", show=False)
    assert names_of(ax) == ["xTrimoGene", "PCA", "scVI"]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [2.5 / 3, 0.6, 0.4])
    np.testing.assert_allclose(spreads_of(ax), [np.std([0.8, 0.8, 0.9], ddof=1), 0.1])
    dots = ax.collections[-1].get_offsets()
    assert sorted(dots[:, 0]) == sorted(repeats["ARI"])
    assert [round(y) for y in dots[:, 1]] == [1, 1, 1, 0, 0, 0, 2]
    colors = [bar.get_facecolor() for bar in ax.patches]
    assert colors[0] != colors[1] == colors[2]


def test_low_values_can_be_good(repeats):
    own = plt.subplots()[1]
    ax = pl.benchmark(repeats, "seconds", ax=own, lower_is_better=True)
    assert ax is own
    assert names_of(ax) == ["PCA", "xTrimoGene", "scVI"]


def test_records_of_benchmark_scripts_are_read():
    rows = [
        {"task": "embedding", "data": d, "method": m, "metric": k, "value": v} | more
        for d in ("a", "b")
        for k in ("ARI", "NMI")
        for m, v, more in (("PCA", 0.5, {}), ("xTrimoGene", 0.7, {"spread": 0.02}))
    ]
    table = pd.DataFrame(rows)
    ax = pl.benchmark(table[table["data"] == "b"], "ARI", show=False)
    assert names_of(ax) == ["xTrimoGene", "PCA"]
    assert ax.get_title() == "b"
    np.testing.assert_allclose(spreads_of(ax), [0.02])
    with pytest.raises(ValueError, match=r"several values of 'data'.*table\[table\['data'\]"):
        pl.benchmark(table, "ARI")
    with pytest.raises(ValueError, match="'ARI', 'NMI'"):
        pl.benchmark(table, "accuracy")


def test_records_of_single_repeats_are_drawn_as_such():
    row = {"task": "embedding", "data": "a", "metric": "ARI", "method": "PCA"}
    table = pd.DataFrame([row | {"value": v, "spread": np.nan} for v in (0.5, 0.7)])
    ax = pl.benchmark(table, "ARI", show=False)
    np.testing.assert_allclose(spreads_of(ax), [np.std([0.5, 0.7], ddof=1)])
    assert len(ax.collections[-1].get_offsets()) == 2


def test_what_is_not_there_is_an_error(repeats):
    with pytest.raises(ValueError, match=r"'ARI', 'seconds'"):
        pl.benchmark(repeats, "NMI")
    with pytest.raises(ValueError, match="group='model'"):
        pl.benchmark(repeats, "ARI", group="model")
    with pytest.raises(ValueError, match="no value"):
        pl.benchmark(repeats.assign(ARI=np.nan), "ARI")
