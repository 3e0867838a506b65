"""Formulas of the page: a line of plain text to MathML, which browsers set themselves."""

import re
from html import escape

TOKEN = re.compile(r"\\frac|[A-Za-z]+|[0-9]+|\S")
SPACED = ("log", "max", "diag")  # a thin space follows


def mathml(text: str, *, display: bool = False) -> str:
    r"""The formula as a <math> element.

    `_` and `^` take a symbol or {a group}, `\frac` two groups; letters are one name.

    >>> mathml("x^2")
    '<math><msup><mi>x</mi><mn>2</mn></msup></math>'
    >>> mathml(r"\frac{1}{N}", display=True)
    '<math display="block"><mfrac><mn>1</mn><mi>N</mi></mfrac></math>'
    """
    parts, rest = _row(TOKEN.findall(text))
    if rest:
        raise ValueError(f"mathml: {text!r} has a closing brace too many")
    attribute = ' display="block"' if display else ""
    return f"<math{attribute}>{''.join(parts)}</math>"


def _row(tokens: list[str]) -> tuple[list[str], list[str]]:
    """Elements up to the brace that closes, and what follows."""
    parts: list[str] = []
    while tokens and tokens[0] != "}":
        element, tokens = _scripted(tokens)
        parts.append(element)
    return parts, tokens


def _scripted(tokens: list[str]) -> tuple[str, list[str]]:
    """One element with what stands below and above it."""
    base, tokens = _one(tokens)
    scripts = {}
    while tokens and tokens[0] in ("_", "^"):
        mark = tokens[0]
        scripts[mark], tokens = _one(tokens[1:])
    if not scripts:
        return base, tokens
    name = {"_": "msub", "^": "msup", "_^": "msubsup"}["".join(sorted(scripts, reverse=True))]
    inner = "".join(scripts[mark] for mark in sorted(scripts, reverse=True))
    return f"<{name}>{base}{inner}</{name}>", tokens


def _one(tokens: list[str]) -> tuple[str, list[str]]:
    token, *tokens = tokens
    if token == "{":
        parts, tokens = _row(tokens)
        return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>", tokens[1:]
    if token == r"\frac":
        above, tokens = _one(tokens)
        below, tokens = _one(tokens)
        return f"<mfrac>{above}{below}</mfrac>", tokens
    if token.isdigit():
        return f"<mn>{token}</mn>", tokens
    if token.isalpha():
        space = '<mspace width="0.17em"/>' if token in SPACED else ""
        return f"<mi>{token}</mi>{space}", tokens
    if token in "()[]|":
        return f'<mo stretchy="false" lspace="0" rspace="0">{token}</mo>', tokens
    return f"<mo>{escape(token)}</mo>", tokens
