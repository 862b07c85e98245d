import anndata
import numpy as np
import pytest
from helpers import make_cells
from scipy import sparse

import scxtrimo
from scxtrimo.cli import main
from scxtrimo.demo import run_demo


def test_bundled_counts_are_counts():
    cells = scxtrimo.datasets.pbmc68k()
    assert cells.shape == (700, 765)
    assert (cells.X.data == np.rint(cells.X.data)).all()
    assert cells.X.data.min() == 1
    assert cells.obs["bulk_labels"].nunique() == 10


def test_demo_writes_what_scanpy_looks_for(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "out"), "--max-epochs", "1"]) == 0
    cells = anndata.read_h5ad(tmp_path / "out" / "cells.h5ad")
    assert cells.obsm["X_xtrimo"].shape == (700, 32)
    assert cells.obsm["X_umap"].shape == (700, 2)
    assert "connectivities" in cells.obsp
    assert cells.obs["leiden_xtrimo"].nunique() > 1
    assert (tmp_path / "out" / "demo.png").stat().st_size > 10_000
    assert scxtrimo.model.XTrimoGene.load(tmp_path / "out" / "model").is_trained
    printed = capsys.readouterr().out
    assert cells.obs["xtrimo_label"].notna().all()
    assert 0.45 < cells.obs["xtrimo_label_given"].notna().mean() < 0.55
    words = ("xTrimoGene", "PCA", "ARI", "NMI", "cells/s", "seconds", "logistic regression")
    for word in (*words, "macro-F1", "neighbours' average", "gene mean"):
        assert word in printed


def test_demo_on_own_file(tmp_path, capsys):
    cells = make_cells()
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X * 0.1
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    cells.obs.iloc[0, 0] = None  # a cell without label is left out of the comparison
    cells.write_h5ad(tmp_path / "own.h5ad")
    arguments = ["demo", "--data", str(tmp_path / "own.h5ad"), "--out", str(tmp_path / "out")]
    arguments += ["--max-epochs", "1"]
    keys = ["--layer", "counts", "--labels-key", "cell_type", "--batch-key", "batch"]
    assert main([*arguments, *keys]) == 0
    assert "ARI" in capsys.readouterr().out
    assert main([*arguments, "--layer", "counts"]) == 2
    assert "out/cells.h5ad exists" in capsys.readouterr().err
    assert main([*arguments, "--layer", "counts", "--overwrite"]) == 0
    assert "ARI" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nope.h5ad"], "nope.h5ad does not exist"),
        (["--data", "own.h5ad"], "non-integer values"),
        (["--data", "own.h5ad", "--labels-key", "nope"], "'nope' is not a column"),
        (["--data", "text.h5ad"], "text.h5ad is in none of the formats"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    cells = make_cells()
    cells.X = cells.X * 0.1
    cells.write_h5ad("own.h5ad")
    (tmp_path / "text.h5ad").write_text("hello")
    assert main(["demo", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("scxtrimo: error: ")
    assert message in error
    assert not (tmp_path / "scxtrimo-demo").exists()


def test_command_line_without_a_command_prints_help(capsys):
    assert main([]) == 2
    assert "demo" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == scxtrimo.__version__


def test_labels_of_the_other_half_are_not_looked_at(tmp_path):
    cells = make_cells(200, n_genes=80)
    right = cells.obs["cell_type"].to_numpy()
    cells.obs["random"] = np.random.default_rng(0).permutation(right)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    quick = {"max_epochs": 3, "progress": False, "overwrite": True, "out": tmp_path / "out"}
    tables = run_demo(tmp_path / "cells.h5ad", labels_key="random", **quick)
    assert tables.annotation["accuracy"].max() < 0.5  # a third by chance
    tables = run_demo(tmp_path / "cells.h5ad", labels_key="cell_type", **quick)
    assert tables.annotation["accuracy"].min() > 0.9
    # Its own results are data like others, and are kept.
    again = run_demo(
        tmp_path / "out" / "cells.h5ad", labels_key="cell_type", **quick | {"out": tmp_path / "b"}
    )
    assert again.annotation["accuracy"].min() > 0.9
    columns = anndata.read_h5ad(tmp_path / "b" / "cells.h5ad").obs.columns
    assert {"xtrimo_label", "xtrimo_label_xtrimo"} <= set(columns)
    assert run_demo(tmp_path / "cells.h5ad", **quick).annotation is None
    assert "xtrimo_label" not in anndata.read_h5ad(tmp_path / "out" / "cells.h5ad").obs


def test_hidden_genes_are_not_looked_at(tmp_path):
    """Of genes that say nothing of each other, none can be predicted."""
    cells = make_cells(200, n_genes=80)
    rng = np.random.default_rng(0)
    counts = cells.X.toarray()
    for gene in range(80):
        counts[:, gene] = rng.permutation(counts[:, gene])
    cells.X = sparse.csr_matrix(counts)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    tables = run_demo(tmp_path / "cells.h5ad", max_epochs=3, progress=False, out=tmp_path / "out")
    assert (tables.hidden_genes["of the gene mean's"] > 0.9).all()
