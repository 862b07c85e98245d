#!/usr/bin/env bash
# Build the site from scratch, and check that its links lead somewhere. DOCS_OFFLINE=1 does without
# a network; what is documented elsewhere is then not linked to.
set -euo pipefail
cd "$(dirname "$0")/.."

rm -rf docs/generated docs/_build/html
python -m sphinx -q -W --keep-going -b html docs docs/_build/html
python docs/check_site.py docs/_build/html
