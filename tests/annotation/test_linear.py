"""The classifiers of an annotator, and how cells are split to fit them."""

import numpy as np
import torch

from scxtrimo.annotation.module import CellClassifier, GeneClassifier, average_log_probabilities
from scxtrimo.annotation.training import Choice, choose, label_weights, split_labelled


def test_cells_are_split_within_each_label():
    codes = np.array([0] * 20 + [1] * 4 + [-1] * 10)
    train, validation, test = split_labelled(codes, 0.9, seed=0)
    assert np.bincount(codes[validation] + 1).tolist() == [1, 2]  # too few cells have label 1
    assert sorted([*train, *validation]) == list(range(34))
    assert len(test) == 0


def test_balanced_weights_leave_labels_without_cells_at_one():
    weights = label_weights(np.array([0, 0, 0, 1]), 3, "balanced")
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2.0, 1.0]))
    assert (label_weights(np.array([0, 0, 0, 1]), 3, None) == 1).all()


def test_all_labels_are_equally_probable_before_the_fit():
    classifier = CellClassifier(n_features=8, n_labels=4, n_inner=16, dropout=0.1)
    torch.testing.assert_close(classifier(torch.randn(5, 8)).softmax(1), torch.full((5, 4), 0.25))
    classifier.start_at_random(seed=0)
    scores = classifier.eval()(torch.ones(1, 8))
    assert scores.std() > 0
    classifier.start_at_random(seed=0)
    assert torch.equal(classifier(torch.ones(1, 8)), scores)


def test_genes_add_up_cell_by_cell():
    classifier = GeneClassifier(n_genes=100, n_labels=2)
    classifier.weight[3], classifier.weight[99] = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    values, gene_ids = torch.tensor([0.5, 2.0, 1.0]), torch.tensor([3, 99, 3])
    found = classifier(values, gene_ids, torch.tensor([0, 2, 3]))
    scores = torch.tensor([[0.5, 3.5], [1.0, -1.0]])
    torch.testing.assert_close(found, torch.nn.functional.logsigmoid(scores).log_softmax(1))


def test_probabilities_are_averaged_with_the_weight_of_the_genes():
    by_cell, by_genes = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]]).log()
    for weight, expected in ((0.0, 0.8), (0.5, 0.6), (0.75, 0.5), (1.0, 0.4)):
        average = average_log_probabilities(by_cell, by_genes, torch.tensor(weight)).exp()
        torch.testing.assert_close(average, torch.tensor([[expected, 1 - expected]]))


def of_label(probability, codes):
    """Log-probabilities of two labels, of which the true one has a given probability."""
    p = np.asarray(probability, dtype=np.float64)
    return np.log(np.where(codes[:, None] == np.arange(2), p[:, None], 1 - p[:, None]))


def test_the_choice_makes_held_out_labels_most_likely():
    codes, rng = np.arange(400) % 2, np.random.default_rng(0)
    good, poor, genes = (rng.beta(a, 2, 400) for a in (20, 5, 5))
    log_p = {
        Choice(1.0, 0.5): of_label(good, codes),
        Choice(0.1, 0.0): of_label(poor, codes),
        Choice(1.0, 1.0): of_label(genes, codes),
    }
    assert choose(log_p, codes) == Choice(1.0, 0.5)


def test_genes_alone_are_preferred_where_they_are_as_good():
    codes, rng = np.arange(400) % 2, np.random.default_rng(0)
    genes = rng.beta(8, 2, 400)
    nearly = np.clip(genes + rng.normal(0.001, 0.05, 400), 0.01, 0.99)
    log_p = {
        Choice(1.0, 0.5): of_label(nearly, codes),
        Choice(1.0, 1.0): of_label(genes, codes),
    }
    assert choose(log_p, codes) == Choice(1.0, 1.0)
    assert choose({Choice(1.0, 0.5): log_p[Choice(1.0, 0.5)]}, codes) == Choice(1.0, 0.5)


def test_of_choices_that_are_as_good_the_most_even_average_is_taken():
    codes, rng = np.arange(400) % 2, np.random.default_rng(0)
    good, genes = rng.beta(8, 2, 400), rng.beta(3, 2, 400)
    log_p = {
        Choice(1.0, 0.0): of_label(good, codes),
        Choice(1.0, 0.25): of_label(rng.permutation(good), codes),
        Choice(1.0, 0.5): of_label(genes, codes),
    }
    log_p[Choice(1.0, 1.0)] = of_label(genes, codes)
    assert choose(log_p, codes) == Choice(1.0, 0.25)
