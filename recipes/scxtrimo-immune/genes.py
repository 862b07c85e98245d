"""Make the vocabulary of scxtrimo-immune.

    python genes.py hgnc_complete_set.txt orthologs.csv FILES... > genes.tsv

FILES are the training files of human cells. ``orthologs.csv`` has pairs of human and mouse
symbols, without a header, for instance those of Ensembl; pairs that are not one to one are left
out.
"""

import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from scxtrimo.data import GeneTable

FEWEST_CELLS = 3
FEWEST_FILES = {"protein-coding gene": 2, "other": 2, "non-coding RNA": 5}
NOT_MEASURED = (
    "ribosomal RNA|mitochondrially encoded [12]|small nucleolar|^microRNA|small nuclear RNA|"
    "transfer RNA|RNA, U|Y RNA|piwi|vault RNA|7SK|7SL"
)


def candidates(path: str) -> pd.DataFrame:
    """Return the genes of HGNC that may be part of the vocabulary."""
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    table = table[(table["status"] == "Approved") & table["locus_group"].isin(FEWEST_FILES)]
    is_coding = table["locus_group"] == "protein-coding gene"
    is_left_out = table["name"].str.contains(NOT_MEASURED, case=False)
    return table[is_coding | ~is_left_out].reset_index(drop=True)


def expressing_files(genes: pd.DataFrame, paths: list[Path]) -> np.ndarray:
    """Return how many files have enough cells that express each gene."""
    names = GeneTable(genes)
    place = pd.Series(range(len(genes)), genes["symbol"])
    n_files = np.zeros(len(genes), dtype=int)
    for path in paths:
        adata = anndata.read_h5ad(path)
        translated = names.translate(adata.var_names, genes["symbol"])
        columns = [i for i, name in enumerate(adata.var_names) if str(name) in translated]
        genes_of = place[[translated[str(adata.var_names[i])] for i in columns]].to_numpy()
        n_cells = np.bincount(
            genes_of, np.asarray((adata.X[:, columns] > 0).sum(0)).ravel(), len(genes)
        )
        n_files += n_cells >= FEWEST_CELLS
    return n_files


def orthologs(path: str) -> pd.Series:
    """Return the mouse symbol of every human gene that has a single ortholog."""
    pairs = pd.read_csv(path, header=None, names=["human", "mouse"]).dropna().drop_duplicates()
    once = ~pairs["human"].duplicated(keep=False) & ~pairs["mouse"].duplicated(keep=False)
    return pairs[once].set_index("human")["mouse"]


def main() -> None:
    """Write the table."""
    hgnc, pairs, *files = sys.argv[1:]
    genes = candidates(hgnc)
    fewest = genes["locus_group"].map(FEWEST_FILES)
    genes = genes[expressing_files(genes, [Path(file) for file in files]) >= fewest]
    genes = genes.sort_values("symbol")
    mouse = genes["symbol"].map(orthologs(pairs)).fillna("")
    # The same letters in upper case are found without being named.
    genes["mouse_symbol"] = mouse.where(mouse.str.upper() != genes["symbol"].str.upper(), "")
    columns = ["symbol", "ensembl_gene_id", "prev_symbol", "mouse_symbol"]
    genes[columns].to_csv(sys.stdout, sep="\t", index=False)


if __name__ == "__main__":
    main()
