"""The command line does what the Python interface does."""

import gzip
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pytest
from helpers import make_cells, train_tiny
from mudata import MuData
from published import GENES, N_GENES, write_checkpoint
from scipy import sparse
from scipy.io import mmwrite

from scxtrimo.annotation.model import XTrimoGeneAnnotator
from scxtrimo.cli import main
from scxtrimo.model.xtrimogene import XTrimoGene
from scxtrimo.pretraining.store_writer import write_store


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A checkpoint, its gene index and cells in the current directory."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "models.ckpt")
    (tmp_path / "genes.txt").write_text("\n".join(GENES))
    cells = make_cells(40, N_GENES)
    cells.layers["counts"] = cells.X.copy()
    cells.write_h5ad("cells.h5ad")
    return cells


def run(*arguments: str) -> int:
    return main(list(arguments))


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_is_shown_without_importing_large_packages(option):
    """Importing torch, scvi-tools or pandas takes seconds."""
    command = [sys.executable, "-X", "importtime", "-m", "scxtrimo.cli", option]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "scxtrimo.cli" in imported
    assert not imported & {"torch", "scvi", "pandas", "anndata", "scanpy"}


def test_a_checkpoint_is_converted_and_embeds_like_itself(files, capsys):
    source = ["--checkpoint", "models.ckpt", "--gene-index", "genes.txt"]
    assert run("convert", *source, "--out", "model") == 0
    assert "XTrimoGene.load('model')" in capsys.readouterr().out
    assert run("embed", "cells.h5ad", "--model", "model", "--out", "a.h5ad") == 0
    assert "40 cells x 48 dimensions" in capsys.readouterr().out
    assert run("embed", "cells.h5ad", *source, "--layer", "counts", "--out", "b.zarr") == 0
    a, b = anndata.read_h5ad("a.h5ad"), anndata.io.read_zarr("b.zarr")
    np.testing.assert_allclose(a.obsm["X_xtrimo"], b.obsm["X_xtrimo"], rtol=1e-5, atol=1e-6)
    model = XTrimoGene.load("model", adata=files)
    np.testing.assert_allclose(a.obsm["X_xtrimo"], model.get_latent_representation(), rtol=1e-5)
    assert run("convert", *source, "--out", "model") == 2
    assert "overwrite" in capsys.readouterr().err
    assert run("convert", *source, "--out", "model", "--overwrite") == 0


def test_options_reach_the_model(files):
    source = ["--checkpoint", "models.ckpt", "--gene-index", "genes.txt"]
    options = ["--pool", "max", "--target-depth", "f2", "--batch-size", "7"]
    assert run("embed", "cells.h5ad", *source, *options, "--out", "a.h5ad") == 0
    model = XTrimoGene.from_scfoundation("models.ckpt", "genes.txt", adata=files)
    expected = model.get_latent_representation(pool="max", target_depth="f2")
    np.testing.assert_allclose(
        anndata.read_h5ad("a.h5ad").obsm["X_xtrimo"], expected, rtol=1e-5, atol=1e-6
    )
    assert run("embed", "cells.h5ad", *source, "--bulk", "--out", "b.h5ad") == 0
    expected = model.get_latent_representation(depth="bulk")
    np.testing.assert_allclose(
        anndata.read_h5ad("b.h5ad").obsm["X_xtrimo"], expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.h5ad"], "Give either --model or --checkpoint"),
        (["--checkpoint", "models.ckpt", "--out", "a.h5ad"], "needs the --gene-index"),
        (["--model", "nope", "--out", "a.h5ad"], "No scxtrimo model in nope"),
        (["--model", "nope", "--out", "a.csv"], "must end in .h5ad or .zarr"),
        (["--model", "nope", "--out", "cells.h5ad"], "exists"),
    ],
)
def test_mistakes_are_named_before_any_work(files, capsys, arguments, message):
    assert run("embed", "cells.h5ad", *arguments) == 2
    assert message in capsys.readouterr().err
    assert run("embed", "nope.h5ad", "--model", "m", "--out", "x.h5ad") == 2


def test_a_model_trained_on_a_layer_reads_x_when_told_so(files, capsys):
    source = ["--checkpoint", "models.ckpt", "--gene-index", "genes.txt"]
    model = XTrimoGene.from_scfoundation("models.ckpt", "genes.txt", adata=files, layer="counts")
    model.save("of_layer")
    del files.layers["counts"]
    files.write_h5ad("x.h5ad")
    assert run("embed", "x.h5ad", "--model", "of_layer", "--out", "a.h5ad") == 2
    assert "layer=None" in capsys.readouterr().err
    assert run("embed", "x.h5ad", "--model", "of_layer", "--layer", "X", "--out", "a.h5ad") == 0
    assert run("embed", "x.h5ad", *source, "--out", "b.h5ad") == 0
    a, b = (anndata.read_h5ad(f"{name}.h5ad").obsm["X_xtrimo"] for name in "ab")
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_unseen_batches_are_mapped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = train_tiny(make_cells(), max_epochs=1)
    model.save("model")
    query = make_cells(60, seed=1)
    query.write_h5ad("query.h5ad")
    arguments = ["embed", "query.h5ad", "--model", "model"]
    assert run(*arguments, "--map-query", "batch", "--out", "a.h5ad") == 0
    np.testing.assert_allclose(
        anndata.read_h5ad("a.h5ad").obsm["X_xtrimo"], model.map_query(query, "batch"), rtol=1e-5
    )
    assert run(*arguments, "--map-query", "--out", "b.h5ad") == 0
    assert run(*arguments, "--map-query", "--out", "c.zarr") == 2
    assert "--map-query needs an --out of .h5ad" in capsys.readouterr().err


def test_cells_are_annotated_from_a_reference_and_with_a_saved_annotator(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scxtrimo.model.training.default_max_epochs", lambda *_: 1)
    reference, query = make_cells(80), make_cells(40, seed=1)
    reference.layers["counts"] = reference.X.copy()
    reference.write_h5ad("reference.h5ad")
    query.write_h5ad("query.h5ad")
    learn = ["--reference", "reference.h5ad", "--labels-key", "cell_type"]
    layers = ["--reference-layer", "counts", "--layer", "X"]
    arguments = [*learn, *layers, "--save-model", "model", "--min-confidence", "0.6"]
    assert run("annotate", "query.h5ad", *arguments, "--out", "a.h5ad") == 0
    printed = capsys.readouterr().out
    assert "Cross-validated on the reference" in printed
    assert "40 cells in obs['xtrimo_label'] of a.h5ad" in printed
    again = ["--model", "model", "--layer", "X", "--min-confidence", "0.6"]
    assert run("annotate", "query.h5ad", *again, "--out", "b.h5ad") == 0
    a, b = anndata.read_h5ad("a.h5ad"), anndata.read_h5ad("b.h5ad")
    assert (a.obs["xtrimo_label"].astype(str) == b.obs["xtrimo_label"].astype(str)).all()
    sure = a.obs["xtrimo_label"] != "unknown"
    assert (a.obs["xtrimo_label"][sure] == a.obs["cell_type"][sure]).mean() > 0.9
    assert run("annotate", "query.h5ad", *learn, "--together", "--out", "t.h5ad") == 0
    t = anndata.read_h5ad("t.h5ad")
    assert t.obs_names.tolist() == query.obs_names.tolist()
    assert (t.obs["xtrimo_label"].astype(str) == query.obs["cell_type"]).mean() > 0.9
    for wrong, message in [
        ([*again, "--together", "--out", "c.h5ad"], "needs a --reference"),
        ([*learn, "--out", "nowhere/c.h5ad"], "The directory of --out"),
        (["--out", "c.h5ad"], "either --reference"),
        (["--reference", "reference.h5ad", "--out", "c.h5ad"], "needs --labels-key"),
        ([*learn, "--out", "c.zarr"], "must end in .h5ad"),
        ([*learn, "--out", "a.h5ad"], "exists"),
        ([*learn, "--out", "c.h5ad", "--min-confidence", "2"], "between 0 and 1"),
        ([*learn, "--out", "c.h5ad", "--save-model", "model"], "exists"),
        (["--reference", "no.h5ad", "--labels-key", "x", "--out", "c.h5ad"], "does not exist"),
    ]:
        assert run("annotate", "query.h5ad", *wrong) == 2
        assert message in capsys.readouterr().err


def test_from_files_to_a_pretrained_model_and_its_embedding(tmp_path, capsys):
    pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")
    make_cells(300).write_h5ad(tmp_path / "cells.h5ad")
    store, trained, out = (
        str(tmp_path / name) for name in ("store.zarr", "run", "embedding.zarr")
    )
    assert main(["store", str(tmp_path / "cells.h5ad"), "--out", store, "--min-genes", "1"]) == 0
    assert "cells to train on" in capsys.readouterr().out
    (tmp_path / "run.yaml").write_text(
        f"data: {{store: {store}, batch_size: 32}}\nout: {trained}\nsize: tiny\nsteps: 4\n"
        "engine: {accelerator: cpu}\nrecord: {loggers: [], progress_bar: false}\n"
    )
    assert main(["pretrain", str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    assert "cells/s" in capsys.readouterr().out
    assert main(["pretrain", str(tmp_path / "run.yaml")]) == 0
    assert main(["embed", store, "--model", f"{trained}/model", "--out", out]) == 0
    parts = [
        anndata.read_zarr(path) for path in sorted((tmp_path / "embedding.zarr").glob("*/*_*"))
    ]
    assert sum(part.n_obs for part in parts) == 300
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad")
    model = XTrimoGene.load(f"{trained}/model", adata=False, accelerator="cpu")
    expected = model.get_latent_representation(cells)
    for part in parts:
        rows = part.obs["source_row"].to_numpy(dtype=int)
        np.testing.assert_allclose(part.obsm["X_xtrimo"], expected[rows], atol=1e-5)


def test_a_store_is_streamed_to_a_store(tmp_path, capsys):
    pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")
    make_cells(100).write_h5ad(tmp_path / "cells.h5ad")
    write_store([tmp_path / "cells.h5ad"], tmp_path / "store.zarr", min_genes=1)
    out = str(tmp_path / "out.h5ad")
    assert main(["embed", str(tmp_path / "store.zarr"), "--model", "m", "--out", out]) == 2
    assert "--out must end in .zarr" in capsys.readouterr().err


def test_configurations_that_do_not_exist_are_named(capsys):
    pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")
    assert main(["pretrain", "nothing.yaml"]) == 2
    assert "nothing.yaml does not exist" in capsys.readouterr().err


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model and an annotator of the same cells."""
    directory = tmp_path_factory.mktemp("models")
    train_tiny(make_cells(60), 1).save(directory / "model")
    cells = make_cells(60)
    XTrimoGeneAnnotator.setup_anndata(cells, labels_key="cell_type")
    annotator = XTrimoGeneAnnotator(cells, size="tiny")
    annotator.train(pretrain_epochs=1, accelerator="cpu", enable_progress_bar=False)
    annotator.save(directory / "annotator")
    return directory


def write_10x_h5(cells, path):
    counts = sparse.csc_matrix(cells.X.T)  # genes x cells
    features = {
        "id": [f"ENSG{i:011d}" for i in range(cells.n_vars)],
        "name": list(cells.var_names),
        "feature_type": ["Gene Expression"] * cells.n_vars,
        "genome": ["GRCh38"] * cells.n_vars,
    }
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"] = counts.data.astype(int), counts.indices
        group["indptr"], group["shape"] = counts.indptr, np.array(counts.shape)
        group["barcodes"] = np.array(cells.obs_names, dtype="S20")
        for name, values in features.items():
            group.create_group("features") if "features" not in group else None
            group["features"][name] = np.array(values, dtype="S20")


def write_mtx(cells, path, prefix="", compress=False):
    path.mkdir()
    opened = gzip.open if compress else open
    end = ".gz" if compress else ""
    with opened(path / f"{prefix}matrix.mtx{end}", "wb") as file:
        mmwrite(file, sparse.coo_matrix(cells.X.T.astype(int)))
    features = [f"ENSG{i:011d}\t{name}\tGene Expression" for i, name in enumerate(cells.var_names)]
    tables = {"barcodes": list(cells.obs_names), "features" if compress else "genes": features}
    for name, rows in tables.items():
        with opened(path / f"{prefix}{name}.tsv{end}", "wt") as file:
            file.write("\n".join(rows) + "\n")


WRITERS = {
    "cells.h5ad": lambda cells, path: cells.write_h5ad(path),
    "cells.h5mu": lambda cells, path: MuData({"rna": cells}).write(path),
    "cells.zarr": lambda cells, path: cells.write_zarr(path),
    "filtered_feature_bc_matrix.h5": write_10x_h5,
    "filtered_feature_bc_matrix": lambda cells, path: write_mtx(cells, path, compress=True),
    "genes of old": write_mtx,
    "GSM1": lambda cells, path: write_mtx(cells, path, "GSM1_", compress=True),
}


@pytest.mark.parametrize("name", WRITERS)
def test_cells_are_read_in_every_usual_format(models, tmp_path, name):
    cells = make_cells(50)
    WRITERS[name](cells.copy(), tmp_path / name)
    source, out = str(tmp_path / name), str(tmp_path / "out.h5ad")
    assert run("embed", source, "--model", str(models / "model"), "--out", out) == 0
    expected = XTrimoGene.load(models / "model").get_latent_representation(cells)
    found = anndata.read_h5ad(out)
    assert found.obs_names.tolist() == cells.obs_names.tolist()
    np.testing.assert_allclose(found.obsm["X_xtrimo"], expected, rtol=1e-5, atol=1e-5)
    annotated = str(tmp_path / "annotated.h5ad")
    assert run("annotate", source, "--model", str(models / "annotator"), "--out", annotated) == 0
    labels = XTrimoGeneAnnotator.load(models / "annotator").predict(cells)
    assert anndata.read_h5ad(annotated).obs["xtrimo_label"].tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.h5ad", None, "nowhere.h5ad does not exist"),
        ("text.h5ad", b"hello", "text.h5ad is in none of the formats"),
        ("empty.h5ad", b"", "empty.h5ad is an empty file"),
        ("table.csv", b"a,b\n1,2\n", "table.csv is in none of the formats"),
        ("truncated.h5ad", "truncated", "truncated.h5ad"),
        ("other.h5", "other", "other.h5"),
        ("folder", "folder", "folder must hold one matrix.mtx"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(
    models, tmp_path, capsys, name, content, message
):
    path = tmp_path / name
    if content == "truncated":
        make_cells(50).write_h5ad(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif content == "other":
        with h5py.File(path, "w") as file:
            file["x"] = [1]
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    for command, model in (("embed", "model"), ("annotate", "annotator")):
        out = str(tmp_path / "out.h5ad")
        assert run(command, str(path), "--model", str(models / model), "--out", out) == 2
        error = capsys.readouterr().err.strip()
        assert error.count("\n") == 0
        assert message in error


def test_results_are_not_put_over_others_unasked(models, tmp_path, capsys):
    cells = make_cells(50)
    cells.obsm["X_xtrimo"] = np.ones((50, 2))
    cells.obs["xtrimo_label"] = "mine"
    cells.write_h5ad(tmp_path / "cells.h5ad")
    source = str(tmp_path / "cells.h5ad")
    for command, model in (("embed", "model"), ("annotate", "annotator")):
        out = str(tmp_path / f"{command} out.h5ad")
        arguments = [command, source, "--model", str(models / model), "--out", out]
        assert run(*arguments) == 2
        assert "already. Pass --overwrite" in capsys.readouterr().err
        assert run(*arguments, "--overwrite") == 0
        assert run(*arguments) == 2
        assert "out.h5ad exists" in capsys.readouterr().err
    assert (anndata.read_h5ad(source).obs["xtrimo_label"] == "mine").all()


@pytest.mark.parametrize("out", ["nofolder/out.h5ad", "out.csv"])
def test_where_results_go_is_checked_first(models, tmp_path, capsys, out):
    missing = str(tmp_path / "not read.h5ad")
    out = str(tmp_path / out)
    assert run("embed", missing, "--model", str(models / "model"), "--out", out) == 2
    assert f"--out {out}" in capsys.readouterr().err


def test_bugs_keep_their_traceback_and_mistakes_get_a_line(files, monkeypatch, capsys):
    arguments = ["convert", "--checkpoint", "no.ckpt", "--gene-index", "genes.txt", "--out", "m"]
    assert run(*arguments) == 2
    assert capsys.readouterr().err.startswith("scxtrimo: error: ")
    with pytest.raises(FileNotFoundError):
        run(*arguments, "--debug")

    def broken(*args, **kwargs):
        return np.ones(2) @ np.ones(3)  # NumPy raises a ValueError

    monkeypatch.setattr(XTrimoGene, "from_scfoundation", broken)
    with pytest.raises(ValueError, match="mismatch"):
        run(*arguments)


def test_a_label_called_unknown_is_kept_apart_before_any_work(models, tmp_path, capsys):
    reference = make_cells(60)
    reference.obs["cell_type"] = reference.obs["cell_type"].replace("type0", "unknown")
    reference.write_h5ad(tmp_path / "reference.h5ad")
    arguments = ["annotate", str(tmp_path / "reference.h5ad"), "--labels-key", "cell_type"]
    arguments += ["--reference", str(tmp_path / "reference.h5ad"), "--min-confidence", "0.9"]
    assert run(*arguments, "--out", str(tmp_path / "out.h5ad")) == 2
    assert "unknown='unknown' is the name of a label" in capsys.readouterr().err
