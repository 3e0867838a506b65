"""Every link of a built site leads somewhere: `python docs/extension/dead_links.py docs/_build`.

Within the site the page and the place on it have to be there, and no page may need another host to
be shown. Of links that lead away the form is seen: https, a DOI, an identifier of arXiv; whether
they answer is asked once a week by `sphinx-build -b linkcheck`.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FORMS = {  # host -> the paths it has
    "doi.org": r"/10\.\d{4,9}/\S+",
    "arxiv.org": r"/(abs|pdf)/(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})(v\d+)?",
}


class Page(HTMLParser):
    """The places of a page, and what it leads to or is made of."""

    def __init__(self, path: Path):
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.parts: list[str] = []  # pictures, styles, scripts
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        self.places |= {said[name] for name in ("id", "name") if name in said}
        if tag == "a" and "href" in said:
            self.links.append(said["href"])
        elif tag == "link" and said.get("rel") not in ("canonical", "author", "license"):
            self.parts.append(said["href"])
        elif "src" in said:
            self.parts.append(said["src"])


def well_formed(url: str) -> bool:
    """Whether a link that leads away looks like one that works."""
    parts = urlsplit(url)
    form = FORMS.get(parts.netloc.removeprefix("www."), r"[^\s<>\"]*")
    host = re.fullmatch(r"([\w-]+\.)+[a-z]{2,}", parts.netloc) is not None
    return parts.scheme == "https" and host and re.fullmatch(form, parts.path) is not None


def dead(site: Path) -> Iterator[str]:
    """A line for each link that leads nowhere."""
    pages = {path: Page(path) for path in sorted(site.resolve().rglob("*.html"))}
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        for url in dict.fromkeys(page.links + page.parts):
            parts = urlsplit(url)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme in ("mailto", "data", "javascript"):
                continue
            if parts.scheme or parts.netloc:
                if url in page.parts:
                    yield f"{where}: asks another host for {url}"
                elif not well_formed(url):
                    yield f"{where}: {url} has not the form of a link"
            elif not target.exists():
                yield f"{where}: there is no {url}"
            elif target in pages and unquote(parts.fragment) not in pages[target].places | {""}:
                yield f"{where}: {url} has no such place"


if __name__ == "__main__":
    lines = list(dead(Path(sys.argv[1])))
    print("\n".join(lines) or "every link leads somewhere")
    sys.exit(bool(lines))
