import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scxtrimo.data.vocabulary import GeneVocabulary, align_genes, own_identifiers

VOCABULARY = GeneVocabulary(
    ("ENSG00000000001", "ENSG00000000002", "ENSG00000000003"), ("CD3D", "MS4A1", "Lyz")
)


def var(*names: str, **columns) -> pd.DataFrame:
    return pd.DataFrame(columns, index=list(names))


@given(st.permutations(range(12)), st.integers(0, 12))
def test_columns_are_found_by_identifier_whatever_their_order(order, n_missing):
    names = tuple(f"G{i}" for i in range(12))
    vocabulary = GeneVocabulary(names, names)
    columns = [names[i] for i in order][n_missing:] + ["new1", "new2"]
    alignment = align_genes(vocabulary, var(*columns))
    for column, gene in zip(columns, alignment.column_to_gene, strict=True):
        assert gene == (names.index(column) if column in names else -1)
    assert set(alignment.missing) == set(names) - set(columns)
    assert alignment.unused == ("new1", "new2")
    assert alignment.overlap == (12 - n_missing) / 12


def test_ids_names_versions_and_case_are_understood():
    alignment = align_genes(VOCABULARY, var("ENSG00000000001.14", "MS4A1", "LYZ"))
    assert alignment.column_to_gene.tolist() == [0, 1, 2]
    assert alignment.matched == 1
    assert dict(alignment.renamed) == {
        "ENSG00000000001.14": "ENSG00000000001",
        "LYZ": "ENSG00000000003",
    }


def test_aliases_are_used_and_an_exact_match_wins():
    aliases = {"T3D": "CD3D", "B1": "MS4A1"}
    alignment = align_genes(VOCABULARY, var("B1", "T3D", "MS4A1"), gene_aliases=aliases)
    assert alignment.column_to_gene.tolist() == [-1, 0, 1]
    assert alignment.unused == ("B1",)


def test_identifiers_in_another_column_are_found():
    frame = var("x", "y", ensembl=["ENSG00000000002", "ENSG00000000001"], n=[1, 2])
    alignment = align_genes(VOCABULARY, frame)
    assert alignment.source == "ensembl"
    assert alignment.column_to_gene.tolist() == [1, 0]


def test_case_is_not_ignored_where_that_is_ambiguous():
    vocabulary = GeneVocabulary(("Tnf", "TNF"), ("Tnf", "TNF"))
    assert align_genes(vocabulary, var("tnf")).column_to_gene.tolist() == [-1]


def test_the_report_can_be_written_to_h5ad(tmp_path):
    import anndata

    adata = anndata.AnnData(
        np.ones((1, 2)), uns=align_genes(VOCABULARY, var("CD3D", "A/B")).to_uns()
    )
    adata.write_h5ad(tmp_path / "x.h5ad")
    stored = anndata.read_h5ad(tmp_path / "x.h5ad").uns
    assert stored["n_matched"] == 1
    assert stored["n_missing"] == 2
    assert list(stored["unused"]) == ["A/B"]


def test_unknown_genes_are_named():
    with pytest.raises(ValueError, match=r"2 of 3 genes are not in the model's.*'FOO', 'BAR'"):
        VOCABULARY.index_of(["CD3D", "FOO", "BAR"])
    assert VOCABULARY.index_of(["MS4A1", "ENSG00000000001"]).tolist() == [1, 0]


def test_round_trip():
    assert GeneVocabulary.from_dict(VOCABULARY.to_dict()) == VOCABULARY


def test_identifiers_that_are_unique_win_over_a_few_more_that_are_not():
    ids = [f"ENSG{i:011d}" for i in range(20)]
    symbols = [f"G{i}" for i in range(20)]
    vocabulary = GeneVocabulary(tuple(ids), tuple(symbols))
    frame = pd.DataFrame({"symbol": [*symbols, "G0"]}, index=[*ids[:19], "x", "y"])
    alignment = align_genes(vocabulary, frame)
    assert alignment.source == "var_names"
    assert align_genes(vocabulary, frame, "symbol").repeated == (ids[0],)
    assert align_genes(vocabulary, frame, "var_names").overlap == 0.95


def test_a_gene_in_other_case_is_suggested():
    with pytest.raises(ValueError, match="Did you mean 'ENSG00000000003'"):
        VOCABULARY.index_of(["LYZ"])


def test_genes_found_by_case_alone_are_counted():
    names = ("CD3D", "MS4A1", "LYZ")
    vocabulary = GeneVocabulary(names, names)
    assert align_genes(vocabulary, var("Cd3d", "Ms4a1", "LYZ")).n_case == 2


FEW = GeneVocabulary(("ENSG1", "ENSG2", "ENSG3"), ("A", "B", "C"))


def test_another_column_is_taken_only_if_no_name_matches():
    var = pd.DataFrame({"neighbour": ["B", "C", "A"]}, index=["A", "B", "other"])
    assert align_genes(FEW, var).source == "var_names"
    assert align_genes(FEW, var).column_to_gene.tolist() == [0, 1, -1]
    nothing = var.set_axis(["x", "y", "z"])
    assert align_genes(FEW, nothing).source == "neighbour"


@pytest.mark.parametrize(
    "names",
    [["A", "A", "B"], ["ENSG1", "A", "B"], ["ENSG1.1", "ENSG1.2", "B"], ["a", "ensg1", "B"]],
    ids=str,
)
def test_several_columns_of_one_gene_are_named(names):
    assert align_genes(FEW, pd.DataFrame(index=names)).repeated == ("ENSG1",)


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA, "", "nan", "None"])
def test_a_missing_name_matches_nothing_and_defines_nothing(missing, caplog):
    var = pd.DataFrame(index=pd.Index([missing, "B"], dtype=object))
    odd = GeneVocabulary(("nan", "None", "B"), ("nan", "None", "B"))
    assert align_genes(odd, var).column_to_gene.tolist() == [-1, 2]
    assert own_identifiers(var, None).tolist() == ["", "B"]
    assert "adata.var_names lacks the identifier of 1 of 2 genes" in caplog.text
    with pytest.raises(ValueError, match=r"adata\.var_names holds no identifiers"):
        own_identifiers(var[:1], None)


def test_aliases_of_one_gene_are_named():
    var = pd.DataFrame(index=["OLD1", "OLD2", "B"])
    alignment = align_genes(FEW, var, gene_aliases={"OLD1": "A", "OLD2": "A"})
    assert alignment.shadowed == ("OLD2",)
    assert alignment.column_to_gene.tolist() == [0, -1, 1]


def test_a_gene_in_another_case_comes_before_a_former_name():
    # Mouse genes: Arf2 reads like a former name of the human ARF4, which the mouse has as well.
    vocabulary = GeneVocabulary(("ARF4",), ("ARF4",))
    for names in (["Arf2", "Arf4"], ["Arf4", "Arf2"]):
        alignment = align_genes(vocabulary, pd.DataFrame(index=names), None, {"ARF2": "ARF4"})
        assert alignment.column_to_gene[names.index("Arf4")] == 0
        assert (alignment.shadowed, alignment.repeated) == (("Arf2",), ())


def test_identifiers_that_became_numbers_are_taken_for_what_they_are():
    entrez = GeneVocabulary(("5", "10"), ("5", "10"))
    var = pd.DataFrame({"entrez": [10.0, np.nan, 5.0]}, index=["x", "y", "z"])
    assert align_genes(entrez, var, "entrez").column_to_gene.tolist() == [1, -1, 0]


def test_lookups_are_made_once_and_cannot_be_changed():
    assert FEW.lookup() is FEW.lookup()
    with pytest.raises(TypeError):
        FEW.lookup()["D"] = 1
    assert pickle.loads(pickle.dumps(FEW)).lookup() == FEW.lookup()


@pytest.mark.parametrize("genes", [[None], [np.nan, "A"], [3], [True, False, True]])
def test_what_is_no_name_of_a_gene_is_said(genes):
    with pytest.raises(ValueError, match="are not in the model's vocabulary"):
        FEW.index_of(genes)
