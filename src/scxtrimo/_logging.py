"""The package's logger, which writes plain lines to standard error.

Its level is that of ``scvi.settings.verbosity``, unless that of the logger ``"scxtrimo"`` is set.
"""

import logging

logger = logging.getLogger("scxtrimo")
logger.parent = logging.getLogger("scvi")  # its level applies if ours is not set
if not logger.handlers:
    _handler = logging.StreamHandler()
    _handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(_handler)
    logger.propagate = False
