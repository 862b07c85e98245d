"""Gene vocabulary and the way from AnnData to ragged batches."""

from .counts import RowReader, check_counts
from .dataset import RaggedDataManager, RaggedDataset, covariate_keys, to_ragged
from .fields import CategoryField, CountsField, LabelsField
from .gene_index import read_gene_index
from .gene_table import GeneTable
from .prefetching import PrefetchLoader, prefetch
from .vocabulary import COVERAGE_KEY, GeneAlignment, GeneVocabulary, align_genes

__all__ = [
    "COVERAGE_KEY",
    "CategoryField",
    "CountsField",
    "GeneAlignment",
    "GeneTable",
    "GeneVocabulary",
    "LabelsField",
    "PrefetchLoader",
    "RaggedDataManager",
    "RaggedDataset",
    "RowReader",
    "align_genes",
    "check_counts",
    "covariate_keys",
    "prefetch",
    "read_gene_index",
    "to_ragged",
]
