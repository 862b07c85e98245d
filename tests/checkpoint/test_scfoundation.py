"""Checkpoints in the published format are read without running them, and refused if damaged."""

import pytest
import torch
from helpers import make_cells
from published import GENES, write_checkpoint

from scxtrimo.checkpoint.scfoundation import read_scfoundation
from scxtrimo.data.gene_table import read_gene_index
from scxtrimo.model.xtrimogene import XTrimoGene


def drop(content):
    del content["cell"]["state_dict"]["model.norm.weight"]


def add(content):
    content["cell"]["state_dict"]["model.extra"] = torch.ones(1)


def reshape(content):
    content["cell"]["state_dict"]["model.to_final.weight"] = torch.ones(2, 24)


def strip(content):
    del content["cell"]["config"]["model_config"]["mae_autobin"]["bin_num"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"Missing tensors: \['norm\.weight'\]"),
        (add, r"unexpected: \['extra'\]"),
        (reshape, r"to_final\.weight \(2, 24\) \(expected \(1, 24\)\)"),
        (strip, "lacks 'bin_num'"),
        (dict.clear, r"no version 'cell'; it holds \[\]"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path, change, message):
    path = write_checkpoint(tmp_path / "bad.ckpt", change)
    with pytest.raises(ValueError, match=message):
        XTrimoGene.from_scfoundation(path, GENES)


def test_truncated_files_and_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = write_checkpoint(tmp_path / "good.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:2000])
    torch.save({"cell": Bomb()}, tmp_path / "bomb.ckpt")
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    for name in ("cut", "bomb", "empty", "text"):
        with pytest.raises(ValueError, match="truncated, or holds something else"):
            read_scfoundation(tmp_path / f"{name}.ckpt")
    assert not (tmp_path / "ran").exists()


def test_sizes_are_those_of_the_file(tmp_path):
    published = read_scfoundation(write_checkpoint(tmp_path / "other.ckpt"))
    assert published.n_genes == 30
    config = published.config
    assert (config.n_hidden, config.n_layers, config.n_heads) == (12, 3, 3)
    assert (config.n_bins, config.bin_alpha, config.decoder_head_width) == (7, 0.5, 6)


def write_index(path, genes, header="gene_name\tindex\n", first=0) -> str:
    lines = [f"{gene}\t{i}\n" for i, gene in enumerate(genes, first)]
    path.write_text(header + "".join(lines))
    return path


def test_a_gene_index_is_a_table_a_list_or_plain_lines(tmp_path):
    table = write_index(tmp_path / "index.tsv", GENES)
    plain = tmp_path / "genes.txt"
    plain.write_text("\n".join(GENES) + "\n")
    for source in (table, str(table), plain, GENES):
        assert read_gene_index(source, 30) == tuple(GENES)


def test_genes_called_na_keep_their_name(tmp_path):
    assert read_gene_index(write_index(tmp_path / "index.tsv", ["NA", "NAN"]), 2) == ("NA", "NAN")


def test_a_gene_index_of_another_length_or_order_is_refused(tmp_path):
    with pytest.raises(ValueError, match="29 genes, the checkpoint 30. Use the gene index that"):
        read_gene_index(GENES[:-1], 30)
    with pytest.raises(ValueError, match="genes twice: 'GENE0'"):
        read_gene_index([*GENES[:-1], "GENE0"], 30)
    table = write_index(tmp_path / "index.tsv", GENES, first=1)
    with pytest.raises(ValueError, match="does not count from 0 to 29"):
        read_gene_index(table, 30)
    with pytest.raises(FileNotFoundError):
        read_gene_index(tmp_path / "nope.tsv", 30)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="not a text file"):
        read_gene_index(tmp_path / "binary", 30)


def test_other_genes_than_the_published_are_refused_for_a_published_checkpoint():
    with pytest.raises(ValueError, match="but not those of the published checkpoints"):
        read_gene_index([f"G{i}" for i in range(19_264)], 19_264)


def test_the_published_genes_in_another_order_are_refused(published_index):
    genes = list(read_gene_index(published_index, 19_264))
    with pytest.raises(ValueError, match="in another order"):
        read_gene_index(sorted(genes), 19_264)
    genes[5], genes[6] = genes[6], genes[5]
    with pytest.raises(ValueError, match="in another order"):
        read_gene_index(genes, 19_264)


def test_a_checkpoint_written_is_the_one_that_was_read(tmp_path):
    path = write_checkpoint(tmp_path / "models.ckpt")
    XTrimoGene.from_scfoundation(path, GENES).to_scfoundation(
        tmp_path / "again.ckpt", tmp_path / "genes.tsv"
    )
    first, again = (
        torch.load(p, weights_only=True)["cell"] for p in (path, tmp_path / "again.ckpt")
    )
    exported = XTrimoGene.from_scfoundation(tmp_path / "again.ckpt", GENES)
    assert "non-commercial" in exported.provenance["licence"]  # wherever the weights go
    not_used = "model.token_emb.emb_pad.weight"
    assert first["state_dict"].keys() == again["state_dict"].keys()
    for name, tensor in first["state_dict"].items():
        if name == "model.pos_emb.weight":  # its last row is padding
            torch.testing.assert_close(again["state_dict"][name][:-1], tensor[:-1])
        elif name != not_used:
            torch.testing.assert_close(again["state_dict"][name], tensor)


def test_a_model_of_ours_goes_through_the_published_format(tmp_path):
    cells = make_cells()
    XTrimoGene.setup_anndata(cells)
    model = XTrimoGene(cells, size="published-tiny")
    model.train(max_epochs=1, enable_progress_bar=False)
    model.to_scfoundation(tmp_path / "models.ckpt", tmp_path / "genes.tsv")
    same = XTrimoGene.from_scfoundation(
        tmp_path / "models.ckpt", tmp_path / "genes.tsv", adata=cells.copy()
    )
    assert same.provenance["source"] == "scxtrimo"
    assert "licence" not in same.provenance
    torch.testing.assert_close(
        torch.from_numpy(same.get_latent_representation(target_depth="f1")),
        torch.from_numpy(model.get_latent_representation(target_depth="f1")),
    )


def test_other_architectures_have_no_published_format(tmp_path, model):
    with pytest.raises(ValueError, match=r"imputation_decoder='cross_attention' .*published-3m"):
        model.to_scfoundation(tmp_path / "models.ckpt", tmp_path / "genes.tsv")
    assert not (tmp_path / "models.ckpt").exists()


def test_checkpoints_are_not_replaced_unasked(tmp_path):
    path = write_checkpoint(tmp_path / "models.ckpt")
    before = path.read_bytes()
    model = XTrimoGene.from_scfoundation(path, GENES)
    with pytest.raises(FileExistsError, match=r"models\.ckpt exist"):
        model.to_scfoundation(path, tmp_path / "genes.tsv")
    assert path.read_bytes() == before
