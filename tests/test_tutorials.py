"""Notebooks are kept as they were executed, and show nothing of the machine that did."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))


@pytest.mark.skipif(not NOTEBOOKS, reason="the notebooks are not in the package")
def test_notebooks_have_outputs_without_paths_and_errors():
    for path in NOTEBOOKS:
        text = path.read_text()
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        assert all(cell["execution_count"] for cell in cells), path.name
        kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
        assert "error" not in kinds, path.name
        assert "display_data" in kinds, f"{path.name} has no picture"
        assert "site-packages" not in text, f"{path.name} shows a path or a warning"
