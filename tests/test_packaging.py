"""What an installation and the repository promise; what is built is checked by .ci/check_dist.py."""

import re
import tomllib
from importlib.metadata import metadata, version
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

import scxtrimo

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
HEADINGS = re.findall(r"^## \[([^\]]+)\]", CHANGELOG, flags=re.MULTILINE)


def of_repository(path: str) -> Path:
    """Return a file that the sdist does not have."""
    if not (ROOT / path).exists():
        pytest.skip(f"{path} is in the repository only")
    return ROOT / path


def test_version_is_that_of_the_installation():
    assert scxtrimo.__version__ == version("scxtrimo")
    Version(scxtrimo.__version__)  # raises unless it follows PEP 440


def test_types_are_announced():
    assert files("scxtrimo").joinpath("py.typed").is_file()


def test_changelog_starts_with_what_is_unreleased_and_goes_back_in_time():
    assert HEADINGS[0] == "Unreleased"
    released = [Version(heading) for heading in HEADINGS[1:]]
    assert released == sorted(released, reverse=True)


def test_version_without_git_is_newer_than_every_release():
    fallback = Version(PYPROJECT["tool"]["hatch"]["version"]["fallback-version"])
    assert fallback.is_devrelease
    assert all(fallback > Version(heading) for heading in HEADINGS[1:])


def test_metadata_says_who_where_and_under_which_terms():
    project = PYPROJECT["project"]
    assert {"Changelog", "Documentation", "Home-page", "Issues", "Source"} <= set(project["urls"])
    assert all(url.startswith("https://") for url in project["urls"].values())
    assert project["authors"]
    assert project["license"] == "BSD-3-Clause"
    assert "Typing :: Typed" in project["classifiers"]
    installed = metadata("scxtrimo")
    assert installed["Requires-Python"] == project["requires-python"]
    assert installed["Summary"] == project["description"]


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    local = [link.split("#")[0] for link in links if not link.startswith(("https://", "#"))]
    of_repository("docs")
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_citation_and_ecosystem_entry_agree_with_the_metadata():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    entry = yaml.safe_load(of_repository("docs/ecosystem/meta.yaml").read_text())
    project = PYPROJECT["project"]
    assert entry["install"]["pypi"] == entry["name"] == project["name"]
    assert entry["license"] == citation["license"] == project["license"]
    assert entry["project_home"] == citation["repository-code"] == project["urls"]["Source"]
    assert set(entry["publications"]) == {paper["doi"] for paper in citation["references"]}


def test_forms_for_issues_are_complete():
    forms = of_repository(".github/ISSUE_TEMPLATE")
    for name in ("bug_report.yml", "feature_request.yml"):
        form = yaml.safe_load((forms / name).read_text())
        assert form["name"]
        assert form["description"]
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        ids = [field["id"] for field in fields]
        assert len(set(ids)) == len(ids)
        assert all(field["attributes"]["label"] for field in fields)
    bug = yaml.safe_load((forms / "bug_report.yml").read_text())
    assert {"adata", "code", "error", "versions"} <= {field["id"] for field in bug["body"]}
