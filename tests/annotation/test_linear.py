"""The classifiers of an annotator, and how cells are split to fit them."""

import numpy as np
import torch

from scxtrimo.annotation.module import CellClassifier, GeneClassifier, average_log_probabilities
from scxtrimo.annotation.training import label_weights, split_labelled


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
