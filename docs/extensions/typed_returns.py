"""`Returns` sections are prose, the type is that of the annotation, as throughout the scverse."""

from sphinx.ext.napoleon import NumpyDocstring


def setup(app):
    """Replace how napoleon reads the section."""
    NumpyDocstring._parse_returns_section = parse_returns
    return {"parallel_read_safe": True}


def parse_returns(self, section):
    """Take the whole section for a description, its first line too."""
    lines = self._dedent(self._consume_to_next_section())
    if lines[:1] == [":"]:  # sphinx_autodoc_typehints put it there
        lines = lines[1:]
    return [*self._format_block(":returns: ", lines), ""]
