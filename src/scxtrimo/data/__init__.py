"""Gene vocabulary and the way from AnnData to ragged batches."""

from .annbatch_access import require_annbatch
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
from .reading import read_cells
from .store import CellStore, DamagedStoreError, backed_anndata, is_store
from .store_writer import write_store
from .vocabulary import COVERAGE_KEY, GeneAlignment, GeneVocabulary, align_genes

__all__ = [
    "CellFile",
    "CellStore",
    "DamagedStoreError",
    "GeneAlignment",
    "GeneTable",
    "GeneVocabulary",
    "GroupMoments",
    "PerturbationNames",
    "PrefetchLoader",
    "RaggedDataManager",
    "RaggedDataset",
    "align_genes",
    "group_moments",
    "prefetch",
    "read_cells",
    "read_gene_index",
    "to_ragged",
    "write_store",
]
