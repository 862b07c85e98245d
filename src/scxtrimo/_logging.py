"""The package's logger.

It writes plain lines to standard error. How much it says, ``scvi.settings.verbosity`` decides,
unless the level of the logger ``"scxtrimo"`` is set itself.
"""

import logging

logger = logging.getLogger("scxtrimo")
logger.parent = logging.getLogger("scvi")  # whose level counts where ours is not set
if not logger.handlers:
    _handler = logging.StreamHandler()
    _handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(_handler)
    logger.propagate = False
