"""What is cited is in docs/bibliography.md, and the other way about; the pages lead there."""

import ast
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs/extension"))
citations = import_module("citations")
as_rst = import_module("docstrings").as_rst
AUTHORS, YEAR, CITATION = citations.AUTHORS, citations.YEAR, citations.CITATION
short, label = citations.short, citations.label
BIBLIOGRAPHY = ROOT / "docs/bibliography.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES.remove(BIBLIOGRAPHY)
SOURCES = sorted([*(ROOT / "jaxvae").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])

ENTRY = re.compile(rf"\(([a-z0-9-]+)\)=\n\*\*({AUTHORS}) ({YEAR})\*\*, \*(.+)\*, (.+)\. <(.+)>")
LINK = r"https://(arxiv.org/abs/\d{4}\.\d{4,5}|doi.org/10\.\d{4,}/\S+|(?!arxiv|doi)[\w.-]+/\S+)"
LEAD = r"\S*bibliography\.md#\S+"


def folded(text: str) -> str:
    """Without accents, and in one line."""
    text = unicodedata.normalize("NFKD", text.translate(str.maketrans("øØłŁ", "oOlL")))
    return " ".join(text.encode("ascii", "ignore").decode().split())


def entries() -> dict[str, tuple[str, str]]:
    """Authors and year of every entry, by its label."""
    found = ENTRY.findall(folded_lines(BIBLIOGRAPHY.read_text()))
    return {name: (authors, year) for name, authors, year, *_ in found}


def folded_lines(text: str) -> str:
    return "\n".join(map(folded, text.splitlines()))


def prose(page: Path) -> str:
    return folded(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def test_entries_are_sorted_and_whole():
    _, *paragraphs = folded_lines(BIBLIOGRAPHY.read_text()).split("\n\n(")
    keys = []
    for paragraph in paragraphs:
        match = ENTRY.fullmatch("(" + paragraph)
        assert match, paragraph
        name, authors, year, *_, link = match.groups()
        assert name == label(authors, year)
        assert re.fullmatch(LINK, link), link
        keys.append((re.sub("[^a-z0-9]+", " ", authors.lower()), year))
    assert keys == sorted(set(keys))
    links = re.findall("<(.*)>", BIBLIOGRAPHY.read_text())
    assert len(links) == len(set(links)) == len(paragraphs) == len(entries())


def test_what_is_cited_is_there_and_what_is_there_is_cited():
    texts = [(path, prose(path)) for path in PAGES]
    texts += [(path, folded(text)) for path in SOURCES for text in docstrings(path)]
    known, cited = entries(), set()
    for path, text in texts:
        for authors, year in CITATION.findall(text):
            found = known.get(label(authors, year))
            assert found, f"{path} cites {authors} {year}: add it to docs/bibliography.md"
            full = found == (authors, year) or short(*found) == f"{authors} {year}"
            assert full, f"{path} cites {authors} {year}, docs/bibliography.md has {found}"
            cited.add(label(authors, year))
    assert not known.keys() - cited, "no page and no docstring cites these"


def test_a_citation_on_a_page_leads_to_its_entry():
    """`[Child 2021]`, and at the end of the page `[Child 2021]: bibliography.md#child-2021`."""
    for page in PAGES:
        lines = re.findall(rf"^\[([^\]]+)\]: ({LEAD})$", page.read_text(), re.MULTILINE)
        home = os.path.relpath(BIBLIOGRAPHY, page.parent)
        cited = set()
        text = re.sub(rf"\[[^\]]+\]: {LEAD}", "", prose(page))
        for match in CITATION.finditer(text):
            linked = text[match.start() - 1] == "[" and text[match.end()] == "]"
            assert linked, f"{page}: write [{match[0]}], and its link at the end of the page"
            cited.add((match[0], f"{home}#{label(*match.groups())}"))
        assert set(lines) == cited, page
        assert lines == sorted(lines), page


def test_a_citation_in_a_docstring_leads_to_its_entry():
    """In the reference, which is made of reStructuredText."""
    texts = [
        text
        for path in SOURCES
        if path.is_relative_to(ROOT / "jaxvae")
        for text in docstrings(path)
    ]
    for text in texts:
        cited = [label(*names) for names in CITATION.findall(folded(text))]
        assert re.findall(r":ref:`[^<`]+ <(.+?)>`", "\n".join(as_rst(text))) == cited
    made = as_rst("A `Bound of 2016` (van den Oord, Vinyals &\nKavukcuoglu 2017, eq. 2).")
    assert made == [
        "A ``Bound of 2016``\\  (:ref:`van den Oord, Vinyals & Kavukcuoglu 2017 "
        "<van-den-oord-et-al-2017>`\\ , eq. 2)."
    ]
