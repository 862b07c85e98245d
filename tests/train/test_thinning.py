"""Counts are taken away as Hao et al. describe it, reproducibly and cell by cell."""

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from scxtrimo.nn.masking import binomial, mask_batch, thin_batch
from scxtrimo.train.plan import MaskingConfig

N_GENES = 500


def batch(n_cells: int = 400, n_expressed: int = 100, high: int = 9, first: int = 0) -> dict:
    generator = torch.Generator().manual_seed(0)
    genes = [torch.randperm(N_GENES, generator=generator)[:n_expressed] for _ in range(n_cells)]
    counts = torch.randint(1, high, (n_cells, n_expressed), generator=generator).float()
    return {
        "counts": counts.flatten(),
        "gene_ids": torch.cat(genes),
        "cu_seqlens": torch.arange(n_cells + 1, dtype=torch.int32) * n_expressed,
        "library_size": counts.sum(1),
        "cell_ids": torch.arange(first, first + n_cells),
    }


def thin(b: dict, probability: float = 0.5, seed: int = 0, epoch: int = 0) -> dict:
    return thin_batch(b, probability, N_GENES, seed, epoch)


def test_half_of_the_cells_lose_counts_at_rates_from_beta_2_2():
    b = batch(n_cells=1500)
    kept = thin(b)
    rate = kept["input_library_size"] / b["library_size"]
    is_thinned = rate < 1
    assert is_thinned.float().mean() == pytest.approx(0.5, abs=0.05)
    # observed rates have binomial noise of about 0.02 on top
    assert stats.kstest(rate[is_thinned].numpy(), stats.beta(2, 2).cdf).pvalue > 1e-3
    assert (kept["input_counts"] <= b["counts"]).all()
    assert_close(kept["input_counts"].view(1500, -1).sum(1), kept["input_library_size"])
    assert torch.equal(thin(b, 0.0)["input_counts"], b["counts"])


def test_molecules_are_kept_independently():
    """Given the rate, what is kept of a count is binomial, also where it is approximated."""
    generator = torch.Generator().manual_seed(0)
    for count, n in ((5, 20_000), (256, 5_000), (1_000, 5_000)):
        kept = binomial(
            torch.full((n,), float(count)),
            torch.full((n,), 0.3),
            lambda key: torch.rand(len(key), generator=generator),
            torch.arange(n),
        )
        assert kept.mean() == pytest.approx(0.3 * count, rel=0.02)
        assert kept.var() == pytest.approx(0.21 * count, rel=0.1)
        assert torch.equal(kept, kept.round())


def test_draws_of_a_cell_do_not_depend_on_its_batch():
    both = batch(2)
    alone = {k: v[100:] if k in ("counts", "gene_ids") else v[1:] for k, v in both.items()}
    alone["cu_seqlens"] = torch.tensor([0, 100], dtype=torch.int32)
    for seed in range(5):
        together = thin(both, 1.0, seed)["input_counts"][100:]
        assert torch.equal(together, thin(alone, 1.0, seed)["input_counts"])
    assert not torch.equal(thin(both, 1.0)["input_counts"], thin(both, 1.0, 1)["input_counts"])
    assert not torch.equal(
        thin(both, 1.0)["input_counts"], thin(both, 1.0, epoch=1)["input_counts"]
    )


def test_a_cell_never_loses_all_counts():
    kept = thin(batch(2000, n_expressed=1, high=2), 1.0)
    assert (kept["input_library_size"] == 1).all()
    assert (kept["input_counts"] == 1).all()


def test_targets_are_what_was_there_before():
    """The encoder sees what is left; what it must predict are the counts before."""
    b = thin(batch(), 1.0)
    m = mask_batch(b, MaskingConfig.published(), N_GENES, seed=0, epoch=0)
    n_cells = len(b["cell_ids"])
    cells = torch.arange(n_cells).repeat_interleave(100)
    before, left = (torch.zeros(n_cells, N_GENES) for _ in range(2))
    before[cells, b["gene_ids"]] = b["counts"]
    left[cells, b["gene_ids"]] = b["input_counts"]
    target_cells = torch.arange(n_cells).repeat_interleave(m["target_cu_seqlens"].diff())
    genes = m["target_gene_ids"]
    assert_close(m["target_counts"], before[target_cells, genes])
    taken_away = (left[target_cells, genes] == 0) & (m["target_counts"] > 0)
    assert taken_away.any()
    # among the expressed, those with counts left are masked at 30%
    masked = ~m["visible"]
    assert (b["input_counts"][masked] > 0).all()
    rate = masked.sum() / (b["input_counts"] > 0).sum()
    assert rate == pytest.approx(0.3, abs=0.02)
