from .native import read_model as read_model
from .native import write_model as write_model
from .pretrained import bundled as bundled
from .scfoundation import PublishedCheckpoint as PublishedCheckpoint
from .scfoundation import read_scfoundation as read_scfoundation
from .scfoundation import write_scfoundation as write_scfoundation
