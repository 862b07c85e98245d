"""What is frozen stays, what is adapted is merged, and rates fall with the depth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_cells, train_tiny

from scxtrimo.config import XTrimoGeneConfig
from scxtrimo.model.xtrimogene import XTrimoGene
from scxtrimo.nn.xtrimogene import XTrimoGeneModule
from scxtrimo.train.plan import FinetuningConfig, finetuned, parameter_groups

ARGS = {"accelerator": "cpu", "enable_progress_bar": False}
CONFIG = XTrimoGeneConfig.from_size("tiny", n_layers=3)


def trained_names(module: XTrimoGeneModule) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("freeze", "n_frozen"), [("encoder", 3), ("all_but_last_1", 2), ("all_but_last_3", 0)]
)
def test_freezing(freeze, n_frozen):
    module = XTrimoGeneModule(20, (), CONFIG)
    everything = trained_names(module)
    with finetuned(module.net, FinetuningConfig(freeze=freeze)):
        trained = trained_names(module)
        assert not any(n.startswith(("net.embedding", "net.cell_token")) for n in trained)
        for i in range(3):
            layer = {n for n in everything if n.startswith(f"net.encoder.layers.{i}.")}
            assert (layer & trained == set()) if i < n_frozen else (layer <= trained)
        assert ("net.encoder.norm.weight" in trained) == (n_frozen < 3)
        assert any(n.startswith("net.pooling") for n in trained)
    assert trained_names(module) == everything


def test_everything_can_be_trained_again_when_training_fails():
    module = XTrimoGeneModule(20, (), CONFIG)
    everything = trained_names(module)
    for config in (FinetuningConfig("encoder"), FinetuningConfig(lora_rank=2)):
        with pytest.raises(RuntimeError, match="no luck"), finetuned(module.net, config):
            raise RuntimeError("no luck")
        assert trained_names(module) == everything


def test_adapters_are_all_that_is_trained_in_the_encoder_and_are_merged():
    pytest.importorskip("peft")
    module = XTrimoGeneModule(20, (), CONFIG)
    names = set(module.state_dict())
    before = {n: p.clone() for n, p in module.net.encoder.named_parameters()}
    with finetuned(module.net, FinetuningConfig(lora_rank=2)):
        trained = {n for n, p in module.net.encoder.named_parameters() if p.requires_grad}
        assert trained
        assert all(".lora_" in n for n in trained)
        assert len(trained) == 2 * 4 * 3  # two matrices at four maps of three layers
        x = torch.randn(9, CONFIG.n_hidden)
        cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)
        for n, p in module.net.encoder.named_parameters():
            if "lora_B" in n:
                torch.nn.init.normal_(p)
        adapted = module.net.encoder(x, cu_seqlens)
    assert set(module.state_dict()) == names
    torch.testing.assert_close(module.net.encoder(x, cu_seqlens), adapted, rtol=1e-4, atol=1e-4)
    changed = {
        n for n, p in module.net.encoder.named_parameters() if not torch.equal(p, before[n])
    }
    assert changed == {n for n in before if n.endswith("weight") and "norm" not in n}


@pytest.mark.parametrize(("n_inducing", "name"), [(4, "inducing.tokens"), (None, "cell_token")])
def test_learning_rates_fall_with_the_depth(n_inducing, name):
    module = XTrimoGeneModule(20, (), replace(CONFIG, n_inducing=n_inducing))
    groups = parameter_groups(module, 0.1, lr=1.0, layer_decay=0.5, n_layers=3)
    names = {id(p): n for n, p in module.named_parameters() if p.numel()}
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert set(rates) == set(names.values())
    assert rates["net.pooling.mlp.0.weight"] == 1
    assert rates["net.encoder.norm.weight"] == 0.5
    layers = [rates[f"net.encoder.layers.{i}.attention.qkv.weight"] for i in (2, 1, 0)]
    assert layers == [0.5, 0.25, 0.125]
    assert rates[f"net.{name}"] == 0.5**4
    assert rates["net.embedding.gene.weight"] == 0.5**4


def test_a_model_is_fine_tuned_on_other_cells_with_a_frozen_encoder():
    model = train_tiny(make_cells(), 2)
    before = {n: p.clone() for n, p in model.module.named_parameters()}
    model.train(2, finetuning=FinetuningConfig("encoder"), **ARGS)
    changed = {n for n, p in model.module.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert not any(n.startswith(("net.encoder", "net.embedding")) for n in changed)


def test_an_adapted_training_is_saved_like_any_other(tmp_path):
    pytest.importorskip("peft")
    model = train_tiny(make_cells(), 1)
    model.train(2, finetuning=FinetuningConfig(lora_rank=2), **ARGS)
    model.save(tmp_path / "model")
    loaded = XTrimoGene.load(tmp_path / "model", adata=make_cells())
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )


def test_a_frozen_encoder_keeps_nothing_for_the_backward_pass():
    module = XTrimoGeneModule(20, (), CONFIG)
    x = torch.randn(9, CONFIG.n_hidden)
    cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)
    free = module.net.encoder(x, cu_seqlens)
    with finetuned(module.net, FinetuningConfig("encoder")):
        frozen = module.net.encoder(x, cu_seqlens)
    assert free.requires_grad
    assert not frozen.requires_grad
    torch.testing.assert_close(frozen, free)


def test_what_was_not_trained_is_not_frozen():
    cells = make_cells()
    XTrimoGene.setup_anndata(cells)
    with pytest.raises(ValueError, match="trained before"):
        XTrimoGene(cells, size="tiny").train(1, finetuning=FinetuningConfig("encoder"), **ARGS)


def test_a_missing_peft_is_said_before_any_work(monkeypatch):
    monkeypatch.setattr("scxtrimo.train.plan.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'scxtrimo\[lora\]'"):
        train_tiny(make_cells(), 1).train(finetuning=FinetuningConfig(lora_rank=2), **ARGS)
