"""Stores: what is in them is what was in the files, and what is wrong is named."""

import errno
import shutil
import sys
from importlib.util import find_spec

import anndata
import numpy as np
import pandas as pd
import pytest
from helpers import make_cells
from scipy import sparse

from scxtrimo.data.counts import RowReader
from scxtrimo.pretraining.store import (
    CellStore,
    DamagedStoreError,
    checksums,
    fast_codecs,
    gene_weights,
    hash_cells,
    is_store,
)
from scxtrimo.pretraining.store_writer import CellFile, write_store

FEW = {"min_genes": 1, "validation_size": 0.1, "memory": 20_000}


@pytest.fixture(autouse=True)
def _needs_annbatch(request):
    if "without_annbatch" not in request.keywords:
        pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")


@pytest.fixture
def files(tmp_path):
    """Three files: CSR, the genes in another order; dense zarr with fewer genes; normalised X."""
    names = []
    for i in range(3):
        cells = make_cells(120, seed=i)
        cells.obs_names = [f"{i}-{j}" for j in range(cells.n_obs)]
        if i == 0:
            cells = cells[:, ::-1].copy()
        if i == 1:
            cells = cells[:, :50].copy()
            cells.X = cells.X.toarray()
        if i == 2:
            cells.layers["counts"] = cells.X.copy()
            cells.X = cells.X * 0.5
        names.append(tmp_path / (f"cells{i}.zarr" if i == 1 else f"cells{i}.h5ad"))
        (cells.write_zarr if i == 1 else cells.write_h5ad)(names[-1])
    return names


def counts_of(path):
    """Return counts by gene, whatever the file."""
    is_zarr = str(path).endswith(".zarr")
    cells = anndata.read_zarr(path) if is_zarr else anndata.read_h5ad(path)
    x = cells.layers.get("counts", cells.X)
    dense = x.toarray() if sparse.issparse(x) else x
    return pd.DataFrame(dense, columns=cells.var_names)


def assert_same_cells(made, files):
    """Every cell of the split has the counts of the cell it says it is."""
    known = {str(path): counts_of(path) for path in files}
    x = made.read([slice(0, made.n_cells)]).toarray()
    origin = made.origin(np.arange(made.n_cells))
    for i in range(made.n_cells):
        row = known[origin["source"].iloc[i]].iloc[int(origin["source_row"].iloc[i])]
        expected = row.reindex(made.vocabulary.gene_ids).fillna(0).to_numpy()
        np.testing.assert_array_equal(x[i], expected)
    return set(zip(origin["source"], origin["source_row"], strict=True))


def test_every_cell_is_in_one_split_with_its_counts(files, tmp_path):
    made = write_store(files, tmp_path / "store.zarr", **FEW)
    held_out = CellStore(tmp_path / "store.zarr", "validation")
    assert len(made.names) > 2  # several data sets
    train = assert_same_cells(made, files)
    validation = assert_same_cells(held_out, files)
    assert not train & validation
    assert len(train) + len(validation) == 360
    np.testing.assert_array_equal(
        made.n_tokens, np.diff(made.read([slice(0, made.n_cells)]).indptr)
    )


def test_report_accounts_for_all_cells_and_genes(files, tmp_path):
    report = write_store(files, tmp_path / "store.zarr", **FEW).report
    fates = ["train", "validation", "too_few_genes", "too_many_genes", "duplicate"]
    assert (report[fates].sum(axis=1) == report["cells"]).all()
    assert report["layer"].tolist() == ["X", "X", "counts"]
    assert report["n_missing"].tolist() == [0, 10, 0]


def test_cells_are_shuffled_across_files(files, tmp_path):
    made = write_store(files, tmp_path / "store.zarr", **(FEW | {"memory": 1e9}))
    sources = made.origin(np.arange(made.n_cells))["source"].to_numpy()
    same = (sources[1:] == sources[:-1]).mean()
    assert same < 0.5  # a third by chance


def test_filters_and_duplicates_are_counted(tmp_path):
    cells = make_cells(100)
    poor = sparse.csr_matrix(cells.X[:5].multiply(np.arange(60) < 4))
    both = anndata.AnnData(sparse.vstack([cells.X, cells.X[:7], poor], format="csr"))
    both.var_names = cells.var_names
    both.write_h5ad(tmp_path / "cells.h5ad")
    report = write_store(
        [tmp_path / "cells.h5ad"], tmp_path / "store.zarr", min_genes=5, validation_size=0
    ).report
    row = report.iloc[0]
    assert (row["duplicate"], row["too_few_genes"], row["train"]) == (7, 5, 100)


def test_hash_does_not_depend_on_the_order_of_genes():
    counts = np.array([1.0, 2.0, 2.0, 1.0, 1.0, 2.0], dtype=np.float32)
    genes = np.array([3, 9, 9, 3, 9, 3])
    first, second, third = hash_cells(counts, genes, np.array([0, 2, 4, 6]), gene_weights(10))
    assert first == second != third


def test_given_vocabulary_and_aliases(files, tmp_path):
    vocabulary = [f"OTHER{i}" for i in range(40)]
    aliases = {f"GENE{i}": f"OTHER{i}" for i in range(40)}
    made = write_store(
        files, tmp_path / "store.zarr", vocabulary=vocabulary, gene_aliases=aliases, **FEW
    )
    assert made.vocabulary.gene_ids == tuple(vocabulary)
    assert (made.report["n_renamed"] == 40).all()


def test_validation_files_are_held_out_as_a_whole(files, tmp_path):
    settings = FEW | {"validation_size": 0.0, "validation_files": [files[1]]}
    write_store(files, tmp_path / "store.zarr", **settings)
    held_out = CellStore(tmp_path / "store.zarr", "validation")
    assert set(held_out.origin(np.arange(held_out.n_cells))["source"]) == {str(files[1])}


def test_cells_that_are_left_out_are_not_held_out(tmp_path):
    """A file for validation may have more poor cells than the others have good ones."""
    good = make_cells(40)
    poor = make_cells(100, seed=1)
    poor.X = sparse.csr_matrix(poor.X.multiply(np.arange(60) < 4))
    good.write_h5ad(tmp_path / "good.h5ad")
    poor.write_h5ad(tmp_path / "poor.h5ad")
    paths = [tmp_path / "good.h5ad", tmp_path / "poor.h5ad"]
    report = write_store(
        paths,
        tmp_path / "store.zarr",
        min_genes=5,
        validation_size=0.0,
        validation_files=paths[1:],
    ).report
    assert report[["train", "validation", "too_few_genes"]].sum().tolist() == [40, 0, 100]


def test_columns_of_obs_are_kept(files, tmp_path):
    made = write_store(files, tmp_path / "store.zarr", obs_columns=["cell_type", "none"], **FEW)
    origin = made.origin(np.arange(made.n_cells))
    known = anndata.read_h5ad(files[0]).obs["cell_type"]
    mine = origin[origin["source"] == str(files[0])]
    expected = known.iloc[mine["source_row"].to_numpy(dtype=int)].astype(str).to_numpy()
    assert (mine["cell_type"].to_numpy() == expected).all()


def test_same_seed_same_store(files, tmp_path):
    stores = [write_store(files, tmp_path / f"{i}.zarr", **FEW, seed=3) for i in range(2)]
    other = write_store(files, tmp_path / "other.zarr", **FEW, seed=4)
    rows = [s.origin(np.arange(s.n_cells))["source_row"].tolist() for s in (*stores, other)]
    assert rows[0] == rows[1] != rows[2]


def test_raw_counts_of_cellxgene_files_are_found(tmp_path):
    cells = make_cells(80)
    raw = cells.copy()
    cells.X = cells.X * 0.1
    cells.raw = raw
    cells.write_h5ad(tmp_path / "cells.h5ad")
    file = CellFile(tmp_path / "cells.h5ad")
    assert file.layer == "raw"
    np.testing.assert_array_equal(file.reader.read(slice(0, 80)).toarray(), raw.X.toarray())


BAD = {
    "truncated": "cannot be read, it may be truncated",
    "zero bytes": "is an empty file",
    "no cells": "is empty: 0 cells x 60 genes",
    "other genes": "has other genes: only 0 of its 60",
    "duplicate genes": "duplicate gene identifiers",
    "not raw": "has no raw counts",
    "NaN": "cells 0 to 119, contains 1 NaN",
    "no AnnData": "holds no AnnData",
}


def make_bad(kind, path):
    cells = make_cells(120)
    if kind == "no cells":
        cells = cells[:0].copy()
    if kind == "other genes":
        cells.var_names = [f"ENSG{i}" for i in range(60)]
    if kind == "duplicate genes":
        cells.var_names = [f"GENE{i // 2}" for i in range(60)]
    if kind == "not raw":
        cells.X = cells.X * 0.3
    if kind == "NaN":
        cells.X.data[-1] = np.nan
        cells.X = sparse.csr_matrix(cells.X)
    cells.write_h5ad(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    if kind == "zero bytes":
        path.write_bytes(b"")
    if kind == "no AnnData":
        import h5py

        with h5py.File(path, "w") as file:
            file["x"] = [1]


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_or_skipped(kind, files, tmp_path):
    bad = tmp_path / "bad.h5ad"
    make_bad(kind, bad)
    layer = "X" if kind == "NaN" else "auto"
    good = files[:1]
    with pytest.raises(ValueError, match=BAD[kind]) as error:
        write_store([*good, bad], tmp_path / "store.zarr", layer=layer, **FEW)
    assert "bad.h5ad" in str(error.value)
    assert not list(tmp_path.glob("store*"))
    made = write_store(
        [*good, bad], tmp_path / "store.zarr", layer=layer, on_bad_file="skip", **FEW
    )
    assert BAD[kind].split(":")[0] in made.report["error"].iloc[1]
    assert made.report["train"].sum() == made.n_cells


def test_genes_that_a_later_file_has_twice_are_refused(files, tmp_path):
    cells = make_cells(120)
    names = [f"GENE{i}" for i in range(40)] + [f"NEW{i // 2}" for i in range(20)]
    cells.var_names = names
    cells.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(
        ValueError, match=r"bad\.h5ad: var_names has 10 duplicate gene identifiers"
    ):
        write_store([files[0], tmp_path / "bad.h5ad"], tmp_path / "store.zarr", **FEW)


def test_genes_without_identifier_are_left_out(files, tmp_path):
    cells = make_cells(120)
    cells.var["symbol"] = [None] * 5 + [f"GENE{i}" for i in range(5, 60)]
    cells.var_names = [f"ENSG{i}" for i in range(60)]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    made = write_store([files[0], tmp_path / "cells.h5ad"], tmp_path / "store.zarr", **FEW)
    assert "" not in made.vocabulary.gene_ids
    assert len(made.vocabulary) == 60
    assert made.report["n_matched"].tolist() == [60, 55]


def test_only_a_few_cells_are_read_at_a_time(tmp_path, monkeypatch):
    make_cells(6000, 20).write_h5ad(tmp_path / "cells.h5ad")
    read, longest = RowReader.read, []

    def watched(self, rows):
        longest.append(rows.stop - rows.start)
        return read(self, rows)

    monkeypatch.setattr(RowReader, "read", watched)
    write_store([tmp_path / "cells.h5ad"], tmp_path / "store.zarr", min_genes=1)
    assert max(longest) <= 1024  # also for the few that are held out


def test_a_reading_that_fails_for_a_moment_is_repeated(files, tmp_path, monkeypatch):
    from annbatch import Loader

    made = write_store(files, tmp_path / "store.zarr", **FEW)
    expected = made.read([slice(0, 200)])
    load, calls = Loader.__iter__, []

    def once_wrong(self):
        calls.append(0)
        for batch in load(self):
            batch["X"].data[0] += len(calls) == 1
            yield batch

    monkeypatch.setattr(Loader, "__iter__", once_wrong)
    again = CellStore(tmp_path / "store.zarr").read([slice(0, 100), slice(100, 200)])
    assert (again != expected).nnz == 0
    assert len(calls) > 1


def test_readers_share_the_codecs_and_leave_those_of_the_user(files, tmp_path):
    import threading

    import zarr

    made = write_store(files, tmp_path / "store.zarr", **FEW)
    before = zarr.config.get("codec_pipeline.path")
    with fast_codecs():
        thread = threading.Thread(target=made.read, args=([slice(0, 10)],))
        thread.start()
        thread.join(timeout=30)
        assert not thread.is_alive()
        inside = zarr.config.get("codec_pipeline.path")
    assert inside != before or find_spec("zarrs") is None
    assert zarr.config.get("codec_pipeline.path") == before


def test_checksums_notice_what_sums_do_not():
    counts = sparse.csr_matrix(np.array([[1, 2, 0, 3], [2, 1, 0, 3], [1, 0, 2, 3]], np.uint16))
    assert len(set(checksums(counts, gene_weights(4)).tolist())) == 3


@pytest.mark.parametrize("place", ["X/indptr", "obs/checksum"])
def test_damage_to_what_all_depends_on_is_named(place, files, tmp_path):
    write_store(files, tmp_path / "store.zarr", **FEW)
    (file,) = (p for p in (tmp_path / "store.zarr/train/dataset_0" / place / "c").rglob("*"))
    file.write_bytes(file.read_bytes()[:3])
    made = CellStore(tmp_path / "store.zarr")
    with pytest.raises(DamagedStoreError, match=f"dataset_0/{place} cannot be read"):
        made.n_tokens if place == "X/indptr" else made.read([slice(0, 5)])


def test_only_stores_are_replaced(files, tmp_path):
    with pytest.raises(FileExistsError, match="is not a store of scxtrimo and is not replaced"):
        write_store([files[0]], files[1], overwrite=True, **FEW)
    assert anndata.read_zarr(files[1]).n_obs == 120


def test_a_layer_may_be_called_raw(tmp_path):
    cells = make_cells(50)
    cells.layers["raw"] = cells.X.copy()
    cells.X = cells.X * 0.5
    cells.write_h5ad(tmp_path / "cells.h5ad")
    file = CellFile(tmp_path / "cells.h5ad")
    assert file.reader.read(slice(0, 50)).sum() == cells.layers["raw"].sum()


def test_a_full_disk_leaves_the_store_before(files, tmp_path, monkeypatch):
    import annbatch

    before = write_store(files[:1], tmp_path / "store.zarr", **FEW).n_cells

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(annbatch, "write_sharded", full)
    with pytest.raises(OSError, match="disk is full"):
        write_store(files, tmp_path / "store.zarr", overwrite=True, **FEW)
    assert CellStore(tmp_path / "store.zarr").n_cells == before
    assert not list(tmp_path.glob("*.partial"))


def shards(path):
    return sorted(p for p in (path / "train").rglob("data/c/*") if p.is_file())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damaged_shards_are_named(damage, files, tmp_path):
    made = write_store(files, tmp_path / "store.zarr", **FEW)
    shard = shards(tmp_path / "store.zarr")[1]
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 4] ^= 0xFF
        shard.write_bytes(content)
    dataset = shard.relative_to(tmp_path / "store.zarr" / "train").parts[0]
    made = CellStore(tmp_path / "store.zarr")
    with pytest.raises(DamagedStoreError, match=f"train/{dataset}, cells .* cannot be read"):
        made.read([slice(i, i + 10) for i in range(0, made.n_cells - 10, 10)])


def test_incomplete_and_foreign_stores_are_refused(files, tmp_path):
    path = tmp_path / "store.zarr"
    write_store(files, path, **FEW)
    assert is_store(path)
    shutil.rmtree(path / "train" / "dataset_1")
    (path / "zarr.json").write_text(
        (path / "zarr.json").read_text().replace('"consolidated_metadata"', '"forgotten"')
    )
    with pytest.raises(ValueError, match="is incomplete"):
        CellStore(path)
    make_cells().write_zarr(tmp_path / "cells.zarr")
    assert not is_store(tmp_path / "cells.zarr")
    with pytest.raises(ValueError, match="is not a store of scxtrimo"):
        CellStore(tmp_path / "cells.zarr")
    with pytest.raises(FileNotFoundError, match="no store at"):
        CellStore(tmp_path / "nothing.zarr")


def test_files_and_stores_may_be_remote(files, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(files[0]), "/cells/0.h5ad")
    memory.put(str(files[1]), "/cells/1.zarr", recursive=True)
    made = write_store(
        ["memory://cells/0.h5ad", "memory://cells/1.zarr"], tmp_path / "store.zarr", **FEW
    )
    memory.put(str(tmp_path / "store.zarr"), "/stores/store.zarr", recursive=True)
    remote = CellStore("memory://stores/store.zarr")
    everything = [slice(0, made.n_cells)]
    assert (remote.read(everything) != made.read(everything)).nnz == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": []}, "files is empty"),
        ({"out": "store"}, "must end in .zarr"),
        ({"min_genes": 1000}, "No cell is left"),
        ({"vocabulary": ["A", "A"]}, "genes twice"),
        ({"validation_files": ["x.h5ad"]}, "which are not among"),
        ({"validation_size": 1.0}, "validation_size=1.0 must be below 1"),
        ({"layer": "nothing"}, "has no 'nothing'; it has"),
        ({"on_bad_file": "ignore"}, "must be one of 'raise' or 'skip'"),
        ({"obs_columns": ["source"]}, "these names are reserved"),
    ],
)
def test_impossible_arguments(arguments, message, files, tmp_path):
    out = tmp_path / arguments.pop("out", "store.zarr")
    paths = arguments.pop("files", files)
    with pytest.raises(ValueError, match=message):
        write_store(paths, out, **(FEW | arguments))


@pytest.mark.without_annbatch
@pytest.mark.parametrize(
    ("python", "message"), [((3, 11), "needs Python 3.12 or newer"), ((3, 12), "stream")]
)
def test_without_annbatch_it_is_said_what_to_do(python, message, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "annbatch", None)
    info = type("Version", (tuple,), {"major": 3, "minor": python[1]})(python)
    monkeypatch.setattr(sys, "version_info", info)
    with pytest.raises(ImportError, match=message):
        write_store([], tmp_path / "store.zarr")


def test_a_bug_is_not_taken_for_damage(files, tmp_path, monkeypatch):
    """A new annbatch may call things otherwise: skipping damage must not skip all cells."""
    from annbatch import Loader

    made = write_store(files, tmp_path / "store.zarr", **FEW)

    def of_another_version(self, *args, **kwargs):
        raise TypeError("__iter__() takes another argument")

    monkeypatch.setattr(Loader, "__iter__", of_another_version)
    with pytest.raises(TypeError, match="takes another argument"):
        made.readable([slice(0, 8)])
    with pytest.raises(TypeError, match="takes another argument"):
        made.sample(8, seed=0, skip_damaged=True)


def test_a_part_that_is_missing_is_not_read_as_zeros(files, tmp_path):
    made = write_store(files, tmp_path / "store.zarr", **FEW)
    shutil.rmtree(tmp_path / "store.zarr" / "train" / made.names[0])
    broken = CellStore(tmp_path / "store.zarr")
    with pytest.raises(DamagedStoreError):
        broken.read([slice(0, 8)])
    with pytest.raises(DamagedStoreError, match=f"{made.names[0]} is incomplete"):
        broken.n_tokens  # noqa: B018


@pytest.mark.parametrize("name", [np.nan, "", "nan"])
def test_genes_with_missing_names_are_left_out_with_a_warning(files, tmp_path, name, caplog):
    cells = anndata.read_h5ad(files[0])
    cells.var["symbol"] = [name, *cells.var_names[1:]]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    made = write_store([tmp_path / "cells.h5ad"], tmp_path / "s.zarr", gene_id_key="symbol", **FEW)
    assert len(made.vocabulary) == cells.n_vars - 1
    assert "cells.h5ad: var['symbol'] lacks the identifier of 1 of" in caplog.text


def test_one_file_under_two_spellings_is_one_file(files, tmp_path):
    (tmp_path / "folder").mkdir()
    other = tmp_path / "folder" / ".." / files[0].name
    with pytest.raises(ValueError, match="more than once"):
        write_store([files[0], other], tmp_path / "s.zarr", **FEW)
