"""Citations, `Burda, Grosse & Salakhutdinov 2016`, and the labels of their entries in
docs/bibliography.md."""

import re

# Kingma & Welling 2014; De Cao & Aziz 2020; Le, Kosiorek & Wood 2019; Razavi et al. 2019a
NAME = r"(?:(?:van den|van|De) )?[A-Z][a-z]\w*(?:-\w+)*"
AUTHORS = rf"{NAME}(?:(?:, {NAME})* & {NAME}| et al\.)?"
YEAR = r"(?:19|20)\d\d[a-z]?"
CITATION = re.compile(rf"({AUTHORS}) ({YEAR})\b".replace(" ", r"\s+"))  # lines end anywhere


def short(authors: str, year: str) -> str:
    """As it is cited: three authors and more by the first."""
    first, *others = re.split(r",\s+|\s+&\s+|\s+et\s+al", authors)
    return f"{first} et al. {year}" if len(others) > 1 or "al." in authors else f"{authors} {year}"


def label(authors: str, year: str) -> str:
    return re.sub("[^a-z0-9]+", "-", short(authors, year).lower()).strip("-")


def linked(citation: re.Match[str]) -> str:
    """As reStructuredText."""
    return f":ref:`{' '.join(citation[0].split())} <{label(*citation.groups())}>`\\ "
