from . import annotation as annotation
from . import checkpoint as checkpoint
from . import data as data
from . import datasets as datasets
from . import drugs as drugs
from . import model as model
from . import module as module
from . import nn as nn
from . import perturbation as perturbation
from . import pl as pl
from . import pp as pp
from . import pretraining as pretraining
from . import protein as protein
from . import tl as tl
from . import train as train
from .pretraining import DataConfig as DataConfig
from .pretraining import EngineConfig as EngineConfig
from .pretraining import PretrainConfig as PretrainConfig
from .pretraining import RecordConfig as RecordConfig
from .pretraining import pretrain as pretrain
from .protein.sequences import read_fasta as read_fasta
from .protein.sequences import write_fasta as write_fasta

__version__: str
