"""Docstrings are plain text with `code` and formulas; this makes reStructuredText of them."""

import ast
import re
from collections.abc import Callable
from inspect import cleandoc
from itertools import groupby

from citations import CITATION, linked
from formulas import formula_of, pieces, tex

SECTION = re.compile(r"(Args|Returns|Raises|Yields):$")


def as_rst(text: str) -> list[str]:
    """The lines of a docstring as reStructuredText, but for its sections, which napoleon reads."""
    lines = cleandoc(text).split("\n")
    kinds = [*kinds_of(lines)]
    made: list[str] = []
    for kind, run in groupby(zip(kinds, lines, strict=True), key=lambda pair: pair[0]):
        block = [line for _, line in run]
        if kind == "prose":
            made += as_prose("\n".join(block)).split("\n")
        elif kind == "shown":
            made += [*shown([line[4:] for line in block]), ""]
        else:
            made += block
    return made


def shown(block: list[str]) -> list[str]:
    """What is indented: a formula on a line of its own, or code."""
    text = "\n".join(block).strip()
    if "\n" not in text and (found := formula_of(text)):
        return [f".. math:: {tex(found[0])}{found[1]}"]
    return [f".. code-block:: {language(block)}", "", *(f"   {line}" for line in text.split("\n"))]


def kinds_of(lines: list[str]) -> list[str]:
    """Of each line: prose, an example, or what is shown as it stands, being indented."""
    kinds: list[str] = []
    kind, in_section = "prose", False
    for line, before in zip(lines, ["", *lines], strict=False):
        if line.strip() and not before.strip():  # a block begins
            in_section = SECTION.match(line) is not None or (in_section and line.startswith(" "))
            shown = line.startswith("    ") and not in_section
            example = line.lstrip().startswith(">>>")
            kind = "example" if example else "shown" if shown else "prose"
        if kind == "prose":
            in_section |= SECTION.match(line) is not None
        # a blank line between two blocks is of the one before
        kinds.append(kind)
    return kinds


def language(block: list[str]) -> str:
    """What is shown is Python where it can be read as such and does more than name things."""
    try:
        [*nodes] = ast.parse(cleandoc("\n".join(["", *block]))).body
    except SyntaxError:
        return "text"
    code = (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.ImportFrom, ast.For)
    calls = [isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) for n in nodes]
    return "python" if any(isinstance(node, code) for node in nodes) or any(calls) else "text"


def escaped(prose: str) -> str:
    """|x| is a norm, a* no emphasis, and what stands in backticks is code."""
    return _outside_of_code(prose, lambda part: re.sub(r"([\\|*_])", r"\\\1", part))


def as_prose(text: str) -> str:
    """The same, where formulas are set and citations lead to the bibliography."""

    def cited(part: str) -> str:
        made, at = "", 0
        for citation in CITATION.finditer(part):
            made += with_formulas(part[at : citation.start()]) + linked(citation)
            at = citation.end()
        return made + with_formulas(part[at:])

    return _outside_of_code(text, cited)


def with_formulas(part: str) -> str:
    found = pieces(part)
    return "".join(f":math:`{tex(p)}`\\ " if is_one else escaped(p) for p, is_one in found)


def _outside_of_code(prose: str, written: Callable[[str], str]) -> str:
    parts = prose.split("`")
    return "".join(f"``{p}``\\ " if i % 2 else written(p) for i, p in enumerate(parts))
