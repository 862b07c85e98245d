"""``python -m scxtrimo.cli``, for launchers that need a module."""

import sys

from . import main

sys.exit(main())
