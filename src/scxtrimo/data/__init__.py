"""Gene vocabulary and the way from AnnData to ragged batches."""

from .counts import RowReader, check_counts
from .dataset import RaggedDataManager, RaggedDataset, covariate_keys, to_ragged
from .fields import CategoryField, CountsField
from .vocabulary import COVERAGE_KEY, GeneAlignment, GeneVocabulary, align_genes

__all__ = [
    "COVERAGE_KEY",
    "CategoryField",
    "CountsField",
    "GeneAlignment",
    "GeneVocabulary",
    "RaggedDataManager",
    "RaggedDataset",
    "RowReader",
    "align_genes",
    "check_counts",
    "covariate_keys",
    "to_ragged",
]
