"""What is cited is in docs/bibliography.md, and the other way about; the pages lead there."""

import ast
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIBLIOGRAPHY = ROOT / "docs/bibliography.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES.remove(BIBLIOGRAPHY)
SOURCES = sorted([*(ROOT / "jaxvae").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])

# Kingma & Welling 2014; De Cao & Aziz 2020; Le, Kosiorek & Wood 2019; Razavi et al. 2019a
NAME = r"(?:(?:van den|van|De) )?[A-Z][a-z]\w*(?:-\w+)*"
AUTHORS = rf"{NAME}(?:(?:, {NAME})* & {NAME}| et al\.)?"
YEAR = r"(?:19|20)\d\d[a-z]?"
CITATION = re.compile(rf"({AUTHORS}) ({YEAR})\b")
ENTRY = re.compile(rf"\(([a-z0-9-]+)\)=\n\*\*({AUTHORS}) ({YEAR})\*\*, \*(.+)\*, (.+)\. <(.+)>")
LINK = r"https://(arxiv.org/abs/\d{4}\.\d{4,5}|doi.org/10\.\d{4,}/\S+|(?!arxiv|doi)[\w.-]+/\S+)"
LEAD = r"\S*bibliography\.md#\S+"


def folded(text: str) -> str:
    """Without accents, and in one line."""
    text = unicodedata.normalize("NFKD", text.translate(str.maketrans("øØłŁ", "oOlL")))
    return " ".join(text.encode("ascii", "ignore").decode().split())


def short(authors: str, year: str) -> str:
    """As it is cited: three authors and more by the first."""
    first, *others = re.split(", | & | et al", authors)
    return (
        f"{first} et al. {year}" if len(others) > 1 or "et al" in authors else f"{authors} {year}"
    )


def label(authors: str, year: str) -> str:
    return re.sub("[^a-z0-9]+", "-", short(authors, year).lower()).strip("-")


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
            yield folded(ast.get_docstring(node) or "")


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
    texts += [(path, text) for path in SOURCES for text in docstrings(path)]
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
