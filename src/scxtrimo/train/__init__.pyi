from ..nn.masking import MaskingConfig as MaskingConfig
from .finetuning import FinetuningConfig as FinetuningConfig
from .plan import OptimizerConfig as OptimizerConfig
from .sampler import EpochShuffler as EpochShuffler
from .sampler import TokenBudgetShuffler as TokenBudgetShuffler
