"""Sphinx configuration."""

import os
import shutil
import sys
from importlib.metadata import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

info = metadata("scxtrimo")
project = info["Name"]
author = "The scxtrimo developers"
copyright = "2026, The scxtrimo developers"
version = release = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
    *(path.stem for path in (HERE / "extensions").glob("*.py")),
]

# A copy rather than a link: notebooks refer to one another by where they are.
shutil.copytree(HERE.parent / "tutorials", HERE / "notebooks", dirs_exist_ok=True)

autosummary_generate = True
autodoc_member_order = "groupwise"
napoleon_numpy_docstring = True
napoleon_google_docstring = False
napoleon_use_rtype = True
napoleon_use_param = True
always_use_bars_union = True
typehints_document_rtype_none = False
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are committed with their outputs
# The first is that of the pages autosummary writes, which are reStructuredText.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "**.ipynb_checkpoints", "_templates", "ecosystem", "notebooks/*.py"]
templates_path = ["_templates"]

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
    "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
    "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
    "torch": ("https://docs.pytorch.org/docs/stable/", None),
    "lightning": ("https://lightning.ai/docs/pytorch/stable/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "pandas": ("https://pandas.pydata.org/docs/", None),
    "scipy": ("https://docs.scipy.org/doc/scipy/", None),
    "matplotlib": ("https://matplotlib.org/stable/", None),
    "mudata": ("https://mudata.readthedocs.io/stable/", None),
}

suppress_warnings = ["config.cache"]  # that a function among these values is not kept
nitpicky = True  # a reference without a target is an error
nitpick_ignore = [  # what public classes have in common is documented with each of them
    ("py:class", "scxtrimo.drugs.model.DrugModelBase"),
    ("py:class", "scxtrimo.model.base.XTrimoGeneBase"),
    ("py:class", "scxtrimo.protein.network.XTrimoPGLMNet"),  # not public
    ("py:class", "scxtrimo.protein.tokenizer.Cleaned"),
]

if os.environ.get("DOCS_OFFLINE"):  # no inventories: what is documented elsewhere is not found
    elsewhere = "builtins|collections|os|pathlib|typing|" + "|".join(intersphinx_mapping)
    nitpick_ignore_regex = [("py:.*", rf"({elsewhere})\..*"), ("py:data", "Ellipsis")]
    intersphinx_mapping = {}

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = project
html_theme_options = {
    "repository_url": "https://github.com/scverse/scxtrimo",
    "use_repository_button": True,
    "path_to_docs": "docs/",
}


def setup(app):
    """Keep a mean and its standard deviation on one line."""

    def join(app, document, source):
        source[0] = source[0].replace(" ± ", "\u00a0±\u00a0")

    app.connect("source-read", join)
