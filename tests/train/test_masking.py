import pytest
import torch
from torch.testing import assert_close

from scxtrimo.nn.masking import hashed_uniform, mask_batch
from scxtrimo.nn.ragged import lengths_of
from scxtrimo.train.plan import MaskingConfig

N_GENES = 400


def batch(n_cells: int = 60, n_expressed: int = 100, first_cell: int = 0) -> dict:
    generator = torch.Generator().manual_seed(first_cell)
    genes = [torch.randperm(N_GENES, generator=generator)[:n_expressed] for _ in range(n_cells)]
    counts = torch.randint(1, 9, (n_cells * n_expressed,), generator=generator).float()
    return {
        "counts": counts,
        "gene_ids": torch.cat(genes),
        "cu_seqlens": torch.arange(n_cells + 1, dtype=torch.int32) * n_expressed,
        "library_size": counts.view(n_cells, -1).sum(1),
        "cell_ids": torch.arange(first_cell, first_cell + n_cells),
    }


def masked(config: MaskingConfig, b: dict | None = None, seed: int = 0, epoch: int = 0) -> dict:
    return mask_batch(b or batch(), config, N_GENES, seed, epoch)


def test_the_fraction_of_masked_genes_is_the_one_asked_for():
    visible = masked(MaskingConfig(0.3, 0.3))["visible"]
    assert 1 - visible.float().mean() == pytest.approx(0.3, abs=0.02)


def test_the_fraction_varies_between_cells_within_its_limits():
    b = batch(n_cells=300)
    fractions = 1 - masked(MaskingConfig(0.2, 0.9), b)["visible"].view(300, -1).float().mean(1)
    assert fractions.min() < 0.35
    assert fractions.max() > 0.75
    assert fractions.mean() == pytest.approx(0.55, abs=0.05)


def test_targets_are_masked_genes_with_their_counts_and_unexpressed_genes():
    b = batch()
    m = masked(MaskingConfig(0.5, 0.5, max_targets=20), b)
    n_cells = len(b["cell_ids"])
    dense = torch.zeros(n_cells, N_GENES)
    cells = torch.arange(n_cells).repeat_interleave(100)
    dense[cells, b["gene_ids"]] = b["counts"]
    hidden = torch.zeros(n_cells, N_GENES, dtype=torch.bool)
    hidden[cells, b["gene_ids"]] = ~m["visible"]
    n_targets = lengths_of(m["target_cu_seqlens"])
    target_cells = torch.arange(n_cells).repeat_interleave(n_targets)
    truth = dense[target_cells, m["target_gene_ids"]]
    assert_close(m["target_counts"], truth)
    expressed = m["target_counts"] > 0
    assert hidden[target_cells, m["target_gene_ids"]][expressed].all()
    assert expressed.sum() / n_cells == pytest.approx(20, abs=2)
    # three quarters of the genes drawn for the zeros are unexpressed here
    assert (~expressed).sum() / n_cells == pytest.approx(15, abs=2)


def test_all_masked_genes_are_targets_if_there_is_room():
    m = masked(MaskingConfig(0.5, 0.5, max_targets=10**6))
    assert (m["target_counts"] > 0).sum() == (~m["visible"]).sum()


def test_masks_of_a_cell_do_not_depend_on_its_batch():
    config, both = MaskingConfig(), batch(2)
    alone = {k: v[:100] if k in ("counts", "gene_ids") else v[:1] for k, v in both.items()}
    alone["cu_seqlens"] = torch.tensor([0, 100], dtype=torch.int32)
    together, single = masked(config, both), masked(config, alone)
    assert torch.equal(together["visible"][:100], single["visible"])
    n = single["target_cu_seqlens"][1]
    assert together["target_cu_seqlens"][1] == n
    assert torch.equal(together["target_gene_ids"][:n], single["target_gene_ids"])


def test_masks_differ_between_seeds_epochs_and_cells():
    config = MaskingConfig(0.5, 0.5)
    first = masked(config)["visible"]
    assert torch.equal(first, masked(config)["visible"])
    for other in (masked(config, seed=1), masked(config, epoch=1)):
        assert (first == other["visible"]).float().mean() == pytest.approx(0.5, abs=0.03)


def test_the_published_masking_has_the_published_rates():
    b = batch(n_cells=300)
    m = masked(MaskingConfig.published(), b)
    assert 1 - m["visible"].float().mean() == pytest.approx(0.3, abs=0.01)
    expressed = m["target_counts"] > 0
    assert expressed.sum() == (~m["visible"]).sum()  # all of them are targets
    n_unexpressed = 300 * (N_GENES - 100)
    assert (~expressed).sum() / n_unexpressed == pytest.approx(0.03, abs=0.003)
    # what is hidden is what must be predicted; 80% of it is told as the mask
    assert torch.equal(m["hidden_gene_ids"], m["target_gene_ids"])
    assert torch.equal(m["hidden_cu_seqlens"], m["target_cu_seqlens"])
    assert m["hidden_values"].isnan().float().mean() == pytest.approx(0.8, abs=0.02)


def test_of_masked_genes_some_are_told_as_they_are_and_some_as_another():
    b = batch(n_cells=100)
    m = masked(MaskingConfig.published(), b)
    cells = torch.arange(100).repeat_interleave(lengths_of(m["hidden_cu_seqlens"]))
    true = torch.log1p(m["target_counts"] * (1e4 / b["library_size"][cells]))
    told = m["hidden_values"]
    known = ~told.isnan()
    is_true = torch.isclose(told[known], true[known], rtol=1e-6)
    # a tenth is told as it is, a tenth as another gene, which may have the same count
    assert 0.5 < is_true.float().mean() < 0.65
    possible = torch.log1p(
        torch.arange(1, 9)[None] * (1e4 / b["library_size"])[cells[known]][:, None]
    )
    is_other = (told[known][:, None] - possible).abs().min(1).values < 1e-4
    assert (is_true | is_other).all()


def test_the_value_told_is_of_the_same_cell_in_large_batches(monkeypatch):
    """Offsets beyond what float32 counts exactly must not reach into the next cell."""
    n_cells, n = 300, 300
    b = batch(n_cells, n)
    b["counts"] = (1.0 + torch.arange(n_cells)).repeat_interleave(n)  # one value per cell
    b["library_size"] = torch.full((n_cells,), 1e4)
    highest = 1 - 2.0**-24
    monkeypatch.setattr(
        "scxtrimo.nn.masking.hashed_uniform",
        lambda key, seed, epoch, stream: (
            torch.full(key.shape, highest) if stream == 5 else hashed_uniform(key, seed, 0, stream)
        ),
    )
    m = masked(MaskingConfig(0.3, 0.3, None, replace_rate=0.0, random_rate=1.0), b)
    cells = torch.arange(n_cells).repeat_interleave(lengths_of(m["hidden_cu_seqlens"]))
    assert_close(m["hidden_values"], torch.log1p(1.0 + cells))


def test_no_gene_is_masked_twice():
    m = masked(MaskingConfig(0.3, 0.3, None, zero_rate=0.5), batch(20))
    cells = torch.arange(20).repeat_interleave(lengths_of(m["hidden_cu_seqlens"]))
    keys = cells * N_GENES + m["hidden_gene_ids"]
    assert len(keys.unique()) == len(keys)
    zeros = (m["target_counts"] == 0).sum() / (20 * (N_GENES - 100))
    assert zeros == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("zero_rate", [None, 0.05])
def test_natural_weights_give_means_over_all_genes_the_encoder_does_not_see(zero_rate):
    b = batch(n_cells=400)
    config = MaskingConfig(0.5, 0.5, 10, zero_rate=zero_rate, natural_weights=True)
    m = masked(config, b)
    unseen_total = b["counts"][~m["visible"]].sum()
    n_unseen = (~m["visible"]).sum() + 400 * (N_GENES - 100)
    weighted = (m["target_weights"] * m["target_counts"]).sum() / m["target_weights"].sum()
    assert weighted.item() == pytest.approx((unseen_total / n_unseen).item(), rel=0.05)
    unweighted = m["target_counts"].mean()
    assert unweighted > 1.5 * weighted


def test_a_hidden_gene_that_is_no_target_is_told_as_hidden():
    m = masked(MaskingConfig(0.5, 0.5, max_targets=5))
    assert len(m["hidden_gene_ids"]) > 3 * len(m["target_gene_ids"])
    assert m["hidden_values"].isnan().all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"min_rate": 0.5, "max_rate": 0.4}, "min_rate=0.5 must be at most max_rate=0.4"),
        ({"max_targets": 0}, "max_targets=0 must be positive"),
        ({"zero_rate": 1.0}, "zero_rate=1.0"),
        ({"replace_rate": 0.8, "random_rate": 0.3}, "add up to at most 1"),
        ({"thinning_probability": -1}, "thinning_probability=-1"),
    ],
)
def test_impossible_rates_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MaskingConfig(**kwargs)


def test_hashed_numbers_are_uniform_and_uncorrelated():
    key = torch.arange(100_000)
    u = hashed_uniform(key, 3, 1, 0)
    assert (u >= 0).all()
    assert (u < 1).all()
    histogram = torch.histc(u, 20, 0, 1)
    chi_square = ((histogram - 5000) ** 2 / 5000).sum()
    assert chi_square < 50  # 19 degrees of freedom, p < 1e-4
    for other in (hashed_uniform(key + 1, 3, 1, 0), hashed_uniform(key, 3, 1, 1)):
        assert abs(torch.corrcoef(torch.stack([u, other]))[0, 1]) < 0.02
