"""Split halves: they add up, planted signal is recovered, and scores are those of a regression."""

import numpy as np
import pytest
import torch
from helpers import make_cells, train_tiny
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from scxtrimo.latent import LEAST_WEIGHT, explained, measured_weights, trust_in_components
from scxtrimo.nn.masking import split_counts
from scxtrimo.nn.ragged import sum_per_cell


def test_halves_add_up_and_repeat():
    torch.manual_seed(0)
    batch = {
        "counts": torch.randint(1, 400, (3000,)).float(),
        "gene_ids": torch.arange(1000).repeat(3),
        "cu_seqlens": torch.tensor([0, 1000, 2000, 3000], dtype=torch.int32),
        "cell_ids": torch.tensor([4, 2, 9]),
    }
    inside = sum_per_cell(batch["counts"], batch["cu_seqlens"])
    batch["library_size"] = inside + torch.tensor([0.0, 10.0, 100.0])  # genes outside
    halves = split_counts(batch, 1000, seed=1)
    whole = torch.zeros(3, 1000)
    for half in halves:
        assert (half["counts"] > 0).all()
        cell = torch.repeat_interleave(torch.arange(3), half["cu_seqlens"].diff())
        whole[cell, half["gene_ids"]] += half["counts"]
        share = half["library_size"] / batch["library_size"]
        torch.testing.assert_close(share, torch.full((3,), 0.5), rtol=0.02, atol=0)
    assert torch.equal(whole.flatten(), batch["counts"])
    torch.testing.assert_close(sum(h["library_size"] for h in halves), batch["library_size"])
    again = split_counts(batch, 1000, seed=1)
    assert all(torch.equal(a["counts"], b["counts"]) for a, b in zip(halves, again))
    other = split_counts(batch, 1000, seed=2)
    assert not torch.equal(other[0]["counts"].sum(), halves[0]["counts"].sum())


def test_weights_are_the_part_of_the_variance_that_is_signal():
    rng = np.random.default_rng(0)
    n_cells, signal = 20_000, np.array([0.0, 0.3, 0.6, 0.8, 1.0])  # of what all counts measure
    shared = rng.normal(size=(n_cells, 5)) * np.sqrt(signal)
    noise = rng.normal(size=(2, n_cells, 5)) * np.sqrt(2 * (1 - signal))  # twice that of the whole
    halves = torch.from_numpy(shared + noise + [[[3.0]], [[-2.0]]])
    weights = measured_weights(*halves)
    np.testing.assert_allclose(weights, signal.clip(LEAST_WEIGHT), atol=0.02)


def test_few_cells_say_little_of_single_components():
    rng = np.random.default_rng(0)
    halves = torch.from_numpy(rng.normal(size=(2, 20, 30)) + 2 * rng.normal(size=(20, 30)))
    assert measured_weights(*halves).std() < 0.06
    assert measured_weights(torch.zeros(20, 3), torch.zeros(20, 3)).isfinite().all()


def test_explained_is_the_score_of_a_regression_on_other_cells():
    rng = np.random.default_rng(0)
    known, new = rng.normal(size=(400, 3)), rng.normal(size=(2500, 3))
    weights = rng.normal(size=(3, 20))
    counts, new_counts = (
        sparse.csr_matrix(rng.poisson(np.exp(0.3 * x @ weights))).astype(np.float32)
        for x in (known, new)
    )
    score = explained(known, counts, new, new_counts)
    model = Ridge(alpha=1.0).fit(known, counts.toarray())
    expected = r2_score(new_counts.toarray(), model.predict(new), multioutput="variance_weighted")
    assert score == pytest.approx(expected, abs=0.005)
    assert score > 0.2
    assert explained(rng.normal(size=(400, 3)), counts, new, new_counts) < 0.01


def test_weights_are_found_kept_and_can_be_given(tmp_path):
    cells = make_cells(400, 80)
    model = train_tiny(cells, 3)
    found = model.module.latent_space.measured_weight
    trust = trust_in_components(360)  # nine tenths are trained on
    assert ((found >= trust * LEAST_WEIGHT) & (found <= trust)).all()
    assert found.std() > 0
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", adata=cells)
    assert torch.equal(loaded.module.latent_space.measured_weight, found)
    given = train_tiny(cells, 3, measured_weight=0.5)
    assert (given.module.latent_space.measured_weight == 0.5).all()
    nobody = train_tiny(cells, 3, train_size=1.0)  # without validation cells: the usual weight
    usual = LEAST_WEIGHT * trust_in_components(400)
    np.testing.assert_allclose(nobody.module.latent_space.measured_weight, usual, rtol=1e-6)


def test_components_of_few_cells_are_trusted_less():
    trust = [trust_in_components(n) for n in (30, 300, 3000)]
    assert trust == pytest.approx([0.01, 0.5, 0.99], abs=0.001)


def test_the_representation_says_more_of_held_out_counts_than_components(caplog):
    cells = make_cells(600, 100)
    with caplog.at_level("INFO", logger="scxtrimo"):
        model = train_tiny(cells, 15, plan_kwargs={"lr": 3e-3})
    table = model.get_reconstruction_error(hidden="counts")
    assert list(table.index) == ["latent representation", "32 principal components"]
    ours, pca = table["explained"]
    assert 0 < pca < ours < 1
    assert f"predicts {ours:.2%}" in caplog.text
    assert f"principal components {pca:.2%}" in caplog.text
    with pytest.raises(ValueError, match="hidden='both' must be"):
        model.get_reconstruction_error(hidden="both")
    with pytest.raises(ValueError, match="leave `adata` and `indices` out"):
        model.get_reconstruction_error(indices=[1], hidden="counts")
