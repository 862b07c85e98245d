"""Genes are found under approved, previous and alias symbols and Ensembl ids."""

import anndata
import pandas as pd
import pytest
from helpers import make_cells, train_tiny

from scxtrimo.data.gene_table import GeneTable
from scxtrimo.data.vocabulary import COVERAGE_KEY, GeneVocabulary, align_genes

TABLE = pd.DataFrame(
    [
        ("TENT5A", "C6orf37|FAM46A", "FLJ20037", "ENSG00000112773"),
        ("ACTB", "", "BETA", "ENSG00000075624"),
        ("MARCHF1", "MARCH1|DUP", "", "ENSG00000145416"),
        ("MTARC1", "DUP", "MARC1|ACTB", "ENSG00000186205"),
    ],
    columns=["symbol", "prev_symbol", "alias_symbol", "ensembl_gene_id"],
)


@pytest.fixture
def table() -> GeneTable:
    return GeneTable(TABLE)


def test_any_name_of_a_gene_finds_any_other(table):
    names = ["TENT5A", "FAM46A", "C6orf37", "FLJ20037", "ENSG00000112773"]
    for known in names:
        others = [name for name in names if name != known]
        assert table.translate(others, [known]) == dict.fromkeys(others, known)


def test_versions_and_case_do_not_matter(table):
    found = table.translate(["ENSG00000112773.16", "tent5a"], ["Fam46a"])
    assert found == {"ENSG00000112773.16": "Fam46a", "tent5a": "Fam46a"}


def test_names_of_two_genes_are_not_guessed(table):
    assert table.translate(["DUP"], ["MARCHF1", "MTARC1"]) == {}
    assert table.translate(["MARCHF1"], ["DUP"]) == {}
    # an approved symbol is not an alias, and two old names of one gene are not one of them
    assert table.translate(["ACTB"], ["MTARC1"]) == {}
    assert table.translate(["TENT5A"], ["FAM46A", "C6orf37"]) == {}
    assert (
        table.translate(["TENT5A"], ["FAM46A", "ENSG00000112773"])["TENT5A"] == "ENSG00000112773"
    )


def test_alignment_prefers_the_own_name_and_uses_a_gene_once(table):
    vocabulary = GeneVocabulary(("FAM46A", "ACTB"), ("FAM46A", "ACTB"))
    var = pd.DataFrame(index=["TENT5A", "FAM46A", "ENSG00000075624.9", "BETA", "MARCH1"])
    alignment = align_genes(vocabulary, var, gene_aliases=table)
    assert alignment.column_to_gene.tolist() == [-1, 0, 1, -1, -1]
    assert alignment.renamed == (("ENSG00000075624.9", "ACTB"),)


def test_a_table_is_read_from_a_file_and_fetched_once(tmp_path, monkeypatch, table):
    path = tmp_path / "hgnc.tsv.gz"
    TABLE.to_csv(path, sep="\t", index=False)
    assert GeneTable.from_hgnc(path).translate(["TENT5A"], ["FAM46A"]) == {"TENT5A": "FAM46A"}
    asked = []

    def retrieve(url, **kwargs):
        asked.append((url, kwargs["fname"]))
        return str(path)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    assert GeneTable.from_hgnc().translate(["TENT5A"], ["FAM46A"]) == {"TENT5A": "FAM46A"}
    assert asked[0][0].startswith("https://")

    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("pooch.retrieve", fail)
    with pytest.raises(OSError, match="no network.*pass its path"):
        GeneTable.from_hgnc()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        GeneTable.from_hgnc(tmp_path / "nope.tsv")
    (tmp_path / "page.html").write_text("<html>not\tfound</html>\n")
    with pytest.raises(ValueError, match="lacks the columns"):
        GeneTable.from_hgnc(tmp_path / "page.html")


def test_a_model_finds_genes_by_the_table(table, tmp_path):
    cells = make_cells(60, 4)
    cells.var_names = TABLE["symbol"].tolist()
    model = train_tiny(cells, max_epochs=1)
    other = make_cells(30, 4, seed=1)
    other.var_names = (TABLE["ensembl_gene_id"] + ".3").tolist()
    with pytest.raises(ValueError, match='gene_aliases="hgnc"'):
        model.get_latent_representation(other)
    path = tmp_path / "hgnc.tsv"
    TABLE.to_csv(path, sep="\t", index=False)
    for aliases in (table, path, str(path)):
        model.prepare_query_anndata(other, gene_aliases=aliases)
        assert model.get_latent_representation(other).shape == (30, 32)
        assert other.uns[COVERAGE_KEY]["n_renamed"] == 4


def test_the_published_genes_of_real_cells_are_found(published_index, shared_cells):
    hgnc = published_index.parent / "hgnc_slim.tsv.gz"
    if not hgnc.exists():
        pytest.skip("the table of HGNC is not here")
    genes = tuple(pd.read_csv(published_index, sep="\t")["gene_name"])
    vocabulary = GeneVocabulary(genes, genes)
    cells: anndata.AnnData = shared_cells("pbmc3k")
    plain = align_genes(vocabulary, cells.var[[]])
    table = GeneTable.from_hgnc(hgnc)
    assert plain.overlap < 0.93
    assert align_genes(vocabulary, cells.var[[]], gene_aliases=table).overlap > 0.96
    by_ensembl = align_genes(vocabulary, cells.var, "ensembl", table)
    assert by_ensembl.overlap > 0.95
