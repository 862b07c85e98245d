"""The package's logger.

Messages go the way of those of scvi-tools: its handler shows them, and ``scvi.settings.verbosity``
says which, unless the level of the logger ``"scxtrimo"`` is set itself.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("scxtrimo")
logger.parent = logging.getLogger("scvi")


@contextmanager
def plain_messages() -> Iterator[None]:
    """Write messages to standard error as they are, for the command line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    propagated, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
