"""Gene vocabulary and the way from AnnData to ragged batches."""

from .cell_file import CellFile
from .counts import RowReader, check_counts
from .dataset import RaggedDataManager, RaggedDataset, covariate_keys, gather_rows, to_ragged
from .fields import CategoryField, CountsField, LabelsField
from .gene_index import read_gene_index, read_genes
from .gene_table import GeneTable
from .group_moments import GroupMoments, group_moments
from .perturbations import (
    CellGroups,
    LibrarySizeField,
    PerturbationField,
    PerturbationNames,
    group_cells,
)
from .prefetching import PrefetchLoader, prefetch
from .store import CellStore, DamagedStoreError, backed_anndata, is_store, require_annbatch
from .store_writer import write_store
from .vocabulary import COVERAGE_KEY, GeneAlignment, GeneVocabulary, align_genes

__all__ = [
    "COVERAGE_KEY",
    "CategoryField",
    "CellFile",
    "CellGroups",
    "CellStore",
    "CountsField",
    "DamagedStoreError",
    "GeneAlignment",
    "GeneTable",
    "GeneVocabulary",
    "GroupMoments",
    "LabelsField",
    "LibrarySizeField",
    "PerturbationField",
    "PerturbationNames",
    "PrefetchLoader",
    "RaggedDataManager",
    "RaggedDataset",
    "RowReader",
    "align_genes",
    "backed_anndata",
    "check_counts",
    "covariate_keys",
    "gather_rows",
    "group_cells",
    "group_moments",
    "is_store",
    "prefetch",
    "read_gene_index",
    "read_genes",
    "require_annbatch",
    "to_ragged",
    "write_store",
]
