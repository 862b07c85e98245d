import pytest
from torch import nn

from scxtrimo.model.training import default_batch_size, default_max_epochs
from scxtrimo.nn.xtrimogene import XTrimoGeneNet
from scxtrimo.train.plan import OptimizerConfig, parameter_groups
from scxtrimo.train.splitter import EpochShuffler


def test_learning_rate_warms_up_and_follows_a_cosine():
    config = OptimizerConfig(warmup_steps=10, final_lr_fraction=0.1)
    rates = [config.lr_fraction(step, 110) for step in range(111)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[0] > 0
    assert max(rates) == rates[10] == 1
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_warm_up_is_a_tenth_of_a_short_training():
    assert OptimizerConfig(warmup_steps=50).lr_fraction(2, 20) == 1


def test_only_weights_of_linear_layers_decay():
    net = XTrimoGeneNet(20, n_hidden=8, n_layers=1, n_heads=2, n_categories=(2,))
    decayed, others = parameter_groups(net, 0.1)
    n_linear = sum(isinstance(part, nn.Linear) for part in net.modules())
    assert len(decayed["params"]) == n_linear
    assert len(decayed["params"]) + len(others["params"]) == len(list(net.parameters()))
    assert others["weight_decay"] == 0
    assert any(p is net.embedding.gene.weight for p in others["params"])


def test_every_cell_is_seen_once_an_epoch_in_another_order():
    sampler = EpochShuffler(range(10, 20), batch_size=4, seed=0)
    first = [row for rows in sampler for row in rows]
    sampler.set_epoch(1)
    second = [row for rows in sampler for row in rows]
    assert sorted(first) == sorted(second) == list(range(10, 20))
    assert first != second
    sampler.set_epoch(0)
    assert [row for rows in sampler for row in rows] == first
    assert len(sampler) == 3


def test_defaults_grow_with_the_data_more_slowly_than_the_data():
    sizes = [300, 3_000, 30_000, 300_000, 3_000_000]
    steps = [
        default_max_epochs(n, default_batch_size(n)) * n / default_batch_size(n) for n in sizes
    ]
    assert steps == sorted(steps)
    assert steps[-1] / steps[0] < sizes[-1] / sizes[0]
