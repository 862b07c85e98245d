"""Studies as batches, lighter cells, cells that must not be in a store, and releases."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_cells
from scipy import sparse

import scxtrimo
from scxtrimo.nn.masking import FEWEST_COUNTS, lighten_batch
from scxtrimo.nn.ragged import lengths_of, sum_per_cell
from scxtrimo.pretraining import CellStore, DataConfig, PretrainConfig, RecordConfig
from scxtrimo.pretraining.stream import StoreDataModule, ragged_batch

pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two studies of unequal size; the second has three times the counts of some genes."""
    directory = tmp_path_factory.mktemp("studies")
    large, small = make_cells(300, seed=0), make_cells(100, seed=1)
    small.X[:, 20:40] *= 3
    large.write_h5ad(directory / "large.h5ad")
    small.write_h5ad(directory / "small.h5ad")
    files = [directory / "large.h5ad", directory / "small.h5ad"]
    return scxtrimo.pretraining.write_store(
        files, directory / "store.zarr", min_genes=1, validation_size=0.05
    )


def test_a_column_as_codes_and_names(store):
    codes, names = store.categories("source")
    assert [name.rsplit("/")[-1] for name in names] == ["large.h5ad", "small.h5ad"]
    sources = store.origin(np.arange(store.n_cells))["source"].to_numpy()
    assert np.array_equal(np.array(names)[codes], sources)
    with pytest.raises(ValueError, match="no column 'donor' of obs; it has \\['source'\\]"):
        store.categories("donor")


def test_batches_say_their_study_and_weigh_it(store):
    data = StoreDataModule(store.path, batch_size=32, study_key="source", balance=1.0)
    codes = data.store.categories("source")[0]
    weights, studies = [], []
    for batch in data.train_dataloader():
        assert np.array_equal(batch["categories"][:, 0], codes[batch["cell_ids"]])
        weights.append(batch["cell_weights"])
        studies.append(batch["categories"][:, 0])
    weights, studies = torch.cat(weights), torch.cat(studies)
    total = [float(weights[studies == study].sum()) for study in (0, 1)]
    assert total[0] == pytest.approx(total[1], rel=1e-4)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-4)
    held_out = next(iter(data.val_dataloader()))
    assert (held_out["categories"] == -1).all()
    with pytest.raises(ValueError, match="balance=0.5 needs a study_key"):
        DataConfig("cells.zarr", balance=0.5)


def test_a_part_of_the_cells_is_all_that_training_sees(store):
    data = StoreDataModule(store.path, batch_size=16, study_key="source", max_cells=50)
    assert (data.store.n_cells, data.validation_store.n_cells) == (
        50,
        CellStore(store.path, "validation").n_cells,
    )
    seen = torch.cat([batch["cell_ids"] for batch in data.train_dataloader()])
    assert sorted(seen.tolist()) == list(range(50))
    assert len(data.codes) == len(data.store.n_tokens) == 50
    few = data.store.sample(1000, seed=0)
    assert np.array_equal(few.X.toarray(), store.read([slice(0, 50)]).toarray())
    assert CellStore(store.path, max_cells=10_000).n_cells == store.n_cells


def test_weights_of_cells_are_those_of_the_objective(store):
    cells = make_cells(40)
    scxtrimo.model.XTrimoGene.setup_anndata(cells)
    module = scxtrimo.model.XTrimoGene(cells, size="tiny", seed=0).module
    plan = scxtrimo.train.plan.XTrimoGenePlan(
        module, scxtrimo.train.OptimizerConfig(), scxtrimo.train.MaskingConfig(), seed=0
    )
    batch = plan.prepare(ragged_batch(cells.X, np.arange(40)))
    first = torch.arange(40) < 20
    halved = module(batch | {"cell_weights": 2.0 * first}).loss
    alone = module(plan.prepare(ragged_batch(cells.X, np.arange(20)))).loss
    torch.testing.assert_close(halved, alone, rtol=1e-4, atol=1e-5)


def pretrained(store, out, **data):
    return scxtrimo.pretrain(
        PretrainConfig(
            DataConfig(store.path, batch_size=32, **data),
            out=str(out),
            size="tiny",
            model={"n_latent": 8, "n_inducing": 2},
            epochs=3,
            record=RecordConfig(progress_bar=False, validate_every_n_steps=10),
        )
    )


def test_the_saved_model_is_of_an_average_study(store, tmp_path):
    model = pretrained(store, tmp_path / "run", study_key="source", balance=0.5, thinning=0.5)
    assert model.registry_["setup_args"]["batch_key"] is None
    assert model.module.net.bottleneck.covariate_loadings.shape[1] == 0
    cells = make_cells(50, seed=2)
    assert model.get_latent_representation(cells).shape == (50, 8)
    cells.obsm["X_xtrimo"] = model.get_latent_representation(cells)
    agreement = scxtrimo.tl.neighbor_agreement(cells, "cell_type", "X_xtrimo")
    assert agreement["knn_accuracy"] > 0.8


def test_a_run_is_resumed_with_its_studies(store, tmp_path):
    data = {"study_key": "source", "thinning": 0.5, "panels": 0.2}
    whole = pretrained(store, tmp_path / "whole", **data)
    again = pretrained(store, tmp_path / "again", **data)
    for one, other in zip(
        whole.module.state_dict().values(), again.module.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def deep_batch(n_cells=64, n_genes=300):
    counts = np.random.default_rng(0).poisson(20, (n_cells, n_genes)).astype(np.float32)
    return ragged_batch(sparse.csr_matrix(counts), np.arange(n_cells)), n_genes


def test_lighter_cells_keep_enough_and_nothing_else_changes():
    batch, n_genes = deep_batch()
    lighter = lighten_batch(batch, 1.0, 0.0, n_genes, seed=0, epoch=0)
    kept = lighter["library_size"] / batch["library_size"]
    assert (lighter["library_size"] >= 0.8 * FEWEST_COUNTS).all()
    assert 0.3 < float(kept.mean()) < 0.5  # of 10^-U, 0.39 on average
    torch.testing.assert_close(
        sum_per_cell(lighter["counts"], lighter["cu_seqlens"]), lighter["library_size"]
    )
    assert (lighter["counts"] > 0).all()
    same = lighten_batch(batch, 0.0, 0.0, n_genes, seed=0, epoch=0)
    for name in ("counts", "gene_ids", "cu_seqlens", "library_size"):
        torch.testing.assert_close(same[name], batch[name])


def test_panels_take_genes_and_leave_counts():
    batch, n_genes = deep_batch()
    panel = lighten_batch(batch, 0.0, 1.0, n_genes, seed=0, epoch=0)
    part = lengths_of(panel["cu_seqlens"]) / lengths_of(batch["cu_seqlens"])
    assert 0.3 < float(part.float().mean()) < 0.5
    by_gene = dict(
        zip(batch["gene_ids"][:300].tolist(), batch["counts"][:300].tolist(), strict=True)
    )
    n_first = int(lengths_of(panel["cu_seqlens"])[0])
    for gene, count in zip(
        panel["gene_ids"][:n_first].tolist(), panel["counts"].tolist(), strict=False
    ):
        assert by_gene[gene] == count


def test_cells_are_lighter_whatever_batch_they_are_in():
    batch, n_genes = deep_batch()
    lighter = lighten_batch(batch, 0.5, 0.5, n_genes, seed=1, epoch=2)
    counts = np.random.default_rng(0).poisson(20, (64, n_genes)).astype(np.float32)
    alone = ragged_batch(sparse.csr_matrix(counts), np.arange(10, 12))
    alone = lighten_batch(alone, 0.5, 0.5, n_genes, seed=1, epoch=2)
    start, end = lighter["cu_seqlens"][10], lighter["cu_seqlens"][12]
    torch.testing.assert_close(lighter["counts"][start:end], alone["counts"])


def test_cells_to_judge_on_are_not_in_a_store(tmp_path):
    cells = make_cells(60)
    cells.obs_names = [f"run1_{name}-1" for name in barcodes(60)]
    cells.write_h5ad(tmp_path / "all.h5ad")
    recounted = cells[:10, ::2].copy()  # other counts, other names around the barcodes
    recounted.obs_names = [name.replace("run1_", "x#") for name in recounted.obs_names]
    recounted.write_h5ad(tmp_path / "recounted.h5ad")
    renamed = cells[10:15].copy()  # the same counts
    renamed.obs_names = [f"cell{i}" for i in range(5)]
    renamed.write_h5ad(tmp_path / "renamed.h5ad")
    store = scxtrimo.pretraining.write_store(
        [tmp_path / "all.h5ad"],
        tmp_path / "store.zarr",
        min_genes=1,
        validation_size=0,
        exclude=[tmp_path / "recounted.h5ad", tmp_path / "renamed.h5ad"],
    )
    row = store.report.iloc[0]
    assert (row["excluded"], row["train"]) == (15, 45)
    assert store.origin(np.arange(45))["source_row"].min() == 15


def barcodes(n):
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("ACGT"), 16)) for _ in range(n)]


def test_a_release_is_small_and_says_where_it_comes_from(store, tmp_path):
    whole = pretrained(store, tmp_path / "run", study_key="source")
    names = {"OLD1": "GENE1"}
    model = scxtrimo.pretraining.release(tmp_path / "run", tmp_path / "mine", gene_aliases=names)
    assert model.provenance["store_sha256"] == CellStore(store.path).header["digest"]
    assert model.provenance["terms"] == "CC BY 4.0"
    assert model.provenance["seed"] == "0"
    assert model.gene_aliases_ == names
    cells = make_cells(50, seed=2)
    one, other = (m.get_latent_representation(cells) for m in (whole, model))
    np.testing.assert_allclose(one, other, rtol=0.05, atol=0.05)
    size = [
        sum(f.stat().st_size for f in d.glob("*.safetensors"))
        for d in (tmp_path / "run" / "model", tmp_path / "mine")
    ]
    assert size[1] < 0.6 * size[0]
    cells.var_names = cells.var_names.where(cells.var_names != "GENE1", "OLD1")
    np.testing.assert_array_equal(model.get_latent_representation(cells.copy()), other)
    with pytest.raises(FileExistsError):
        scxtrimo.pretraining.release(tmp_path / "run", tmp_path / "mine")


def test_a_gene_table_is_a_vocabulary(tmp_path):
    table = pd.DataFrame(
        {"symbol": ["B", "A"], "prev_symbol": ["OLD", ""], "mouse_symbol": ["Mb", ""]}
    )
    table.to_csv(tmp_path / "genes.tsv", sep="\t", index=False)
    assert scxtrimo.data.gene_table.read_genes(tmp_path / "genes.tsv") == ["B", "A"]
    names = scxtrimo.data.GeneTable.from_hgnc(tmp_path / "genes.tsv")
    assert names.translate(["OLD", "MB", "A"], ["B", "A"]) == {"OLD": "B", "MB": "B", "A": "A"}
