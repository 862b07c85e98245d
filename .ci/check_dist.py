"""Check what was built: python .ci/check_dist.py dist [--version 1.2.3]."""

import argparse
import re
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

from packaging.version import Version

MAX_BYTES = 10 * 2**20  # most of it pretrained weights
WEIGHTS = r"weights/[\w-]+/(model\.json|model-[0-9a-f]{12}\.safetensors|README\.md)"
IN_SDIST = {"src", "tests", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO"}
NOT_IN_SDIST = {"benchmarks", "docs", "tutorials"}


def check(condition: object, message: str) -> None:
    """Stop with the message unless the condition holds."""
    if not condition:
        raise SystemExit(f"check_dist: {message}")


def only(folder: Path, pattern: str) -> Path:
    """Return the one file of this pattern, which must be small."""
    found = list(folder.glob(pattern))
    check(len(found) == 1, f"{folder} must hold one {pattern}, found {found}")
    n_bytes = found[0].stat().st_size
    check(n_bytes <= MAX_BYTES, f"{found[0].name} has {n_bytes} bytes, more than {MAX_BYTES}")
    return found[0]


def check_wheel(path: Path) -> str:
    """Check the files of a wheel and return its metadata."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = wheel.read(metadata).decode()
    wanted = "scxtrimo/weights/scxtrimo-immune/model.json"
    for name in ("scxtrimo/py.typed", "scxtrimo/__init__.pyi", wanted):
        check(name in names, f"the wheel has no {name}")
    package = [name for name in names if ".dist-info/" not in name]
    ours = rf"scxtrimo/(.*\.pyi?|py\.typed|{WEIGHTS})"
    strange = [name for name in package if not re.fullmatch(ours, name)]
    check(not strange, f"the wheel holds more than the package: {strange}")
    tests = [name for name in package if re.search(r"(^|/)(tests?|conftest)(_|/|\.)", name)]
    check(not tests, f"the wheel holds tests: {tests}")
    return text


def check_sdist(path: Path) -> None:
    """Check the files of a source distribution."""
    with tarfile.open(path) as sdist:
        top = {name.split("/")[1] for name in sdist.getnames() if "/" in name}
    check(top >= IN_SDIST, f"the sdist lacks {sorted(IN_SDIST - top)}")
    check(not top & NOT_IN_SDIST, f"the sdist holds {sorted(top & NOT_IN_SDIST)}")


def check_metadata(text: str, version: str | None) -> None:
    """Check what PyPI will show."""
    metadata = message_from_string(text)
    found = Version(metadata["Version"])
    check(version is None or found == Version(version), f"built {found} for the tag {version}")
    description = metadata.get_payload()
    check(isinstance(description, str) and "# scxtrimo" in description, "there is no README")
    links = re.findall(r"\]\(([^)\s]+)|(?:src|href)=\"([^\"]+)", str(description))
    targets = [markdown or html for markdown, html in links]
    relative = [link for link in targets if not link.startswith(("https://", "#"))]
    check(not relative, f"links of the README would be broken on PyPI: {relative}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--version", help="which it must be, as in the tag")
    arguments = parser.parse_args()
    check_metadata(check_wheel(only(arguments.folder, "*.whl")), arguments.version)
    check_sdist(only(arguments.folder, "*.tar.gz"))
    print("The wheel and the sdist are as they should be.")
