"""How much is said is up to the user."""

import logging
import subprocess
import sys

import scvi
from helpers import make_cells

from scxtrimo.model.xtrimogene import XTrimoGene


def test_messages_follow_the_verbosity_of_scvi_tools(caplog):
    before = scvi.settings.verbosity
    try:
        scvi.settings.verbosity = logging.WARNING
        cells = make_cells(60)
        XTrimoGene.setup_anndata(cells)
        XTrimoGene(cells)
        assert not caplog.records
        scvi.settings.verbosity = logging.INFO
        XTrimoGene(cells)
        assert "Chose size" in caplog.text
    finally:
        scvi.settings.verbosity = before


def test_importing_the_package_changes_no_level_that_was_set():
    code = (
        "import logging; logging.getLogger('scxtrimo').setLevel('ERROR'); before = logging.root"
        ".handlers[:]; import scxtrimo; logger = logging.getLogger('scxtrimo'); "
        "assert logger.level == logging.ERROR; assert logging.root.handlers == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
