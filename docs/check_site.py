"""Check that every internal link and anchor of a built site leads somewhere.

Usage: python docs/check_site.py HTML_DIR
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links and anchors."""
        for name, value in attrs:
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.links.add(value)


def broken_links(root: Path) -> list[str]:
    """Return the links that lead nowhere, each with the page it is on."""
    paths = [path.resolve() for path in sorted(root.rglob("*.html"))]
    pages = {path: Page(path) for path in paths if "_static" not in path.parts}
    broken = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            place = unquote(parts.path)
            start = root.resolve() if place.startswith("/") else path.parent
            target = (start / place.lstrip("/")).resolve() if place else path
            if target.is_dir():
                target = target / "index.html"
            if not target.is_file():
                broken.append(f"{path.relative_to(root.resolve())}: {link}: no such file")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{path.relative_to(root.resolve())}: {link}: no such anchor")
    return broken


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "index.html").is_file():
        sys.exit(f"{__doc__}\nHTML_DIR must be a built site, with an index.html.")
    found = broken_links(Path(sys.argv[1]))
    sys.exit("\n".join([*found, f"{len(found)} broken links"]) if found else 0)
