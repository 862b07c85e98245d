from .plan import FinetuningConfig as FinetuningConfig
from .plan import MaskingConfig as MaskingConfig
from .plan import OptimizerConfig as OptimizerConfig
from .splitter import EpochShuffler as EpochShuffler
from .splitter import TokenBudgetShuffler as TokenBudgetShuffler
