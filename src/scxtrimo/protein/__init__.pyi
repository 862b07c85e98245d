from .model import XTrimoPGLM as XTrimoPGLM
from .network import SIZES as SIZES
from .network import XTrimoPGLMConfig as XTrimoPGLMConfig
from .objective import ProteinObjective as ProteinObjective
from .sequences import read_fasta as read_fasta
from .sequences import write_fasta as write_fasta
from .tokenizer import Tokenizer as Tokenizer
