import numpy as np
import pytest

import scxtrimo


def test_calibrated_probabilities_lie_on_the_diagonal():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    truth = rng.random(len(p)) < p
    good = scxtrimo.pl.probability_calibration(truth, p, show=False)
    bad = scxtrimo.pl.probability_calibration(truth, p**3, show=False)
    errors = [float(ax.get_title().split()[-1]) for ax in (good, bad)]
    assert errors[0] < 0.02 < 0.1 < errors[1]
    assert len(good.lines[1].get_xdata()) == 10


def test_measured_and_predicted_are_drawn_on_given_axes():
    import matplotlib.pyplot as plt

    ax = plt.subplots()[1]
    assert scxtrimo.pl.observed_predicted([1.0, 2, 4], [2.0, 4, 8], ax=ax) is ax
    assert ax.get_title() == "Pearson 1.000"


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([0, 1], [0.5], "the same length"),
        ([], [], "at least 1"),
        ([0, np.nan], [0.5, 0.5], "1 rows"),
        ([0, 2], [0.5, 0.5], "0 and 1 only"),
    ],
)
def test_what_does_not_fit_is_refused(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        scxtrimo.pl.probability_calibration(truth, predicted, show=False)


@pytest.mark.parametrize(
    ("is_interactive", "on_given", "show", "is_shown"),
    [
        (False, False, None, False),
        (True, False, None, True),
        (True, True, None, False),
        (True, False, False, False),
        (False, True, True, True),
    ],
)
def test_a_figure_is_shown_if_asked_to_or_made_interactively(
    monkeypatch, is_interactive, on_given, show, is_shown
):
    import matplotlib.pyplot as plt

    shown = []
    ax = plt.subplots()[1] if on_given else None
    monkeypatch.setattr(plt, "isinteractive", lambda: is_interactive)
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    scxtrimo.pl.observed_predicted([1.0, 2, 4], [2.0, 4, 8], ax=ax, show=show)
    assert bool(shown) == is_shown
