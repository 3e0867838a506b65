"""One HTML file out of the template, the style sheet, the scripts and what they are shown of."""

import json
import re
from pathlib import Path
from typing import Any

from experiments.explorable.formulas import mathml

HERE = Path(__file__).parent
FIGURES = (
    "draw",
    "autoencoder",
    "evidence",
    "em",
    "bound",
    "gradients",
    "covariance",
    "beta",
    "menu",
    "train",
)
SCRIPTS = ("mathematics.js", "drawing.js", *(f"figures/{name}.js" for name in FIGURES), "start.js")
FIGURE = """<figure id="{0}" aria-labelledby="{0}-caption">
<div class="stage"></div><div class="controls"></div><div class="strips"></div>
<div class="numbers"></div><figcaption id="{0}-caption">{1}</figcaption>
</figure>"""


def displayed(formula: str) -> str:
    """A formula on lines of its own; where it may break stands a double backslash."""
    parts = "".join(mathml(part, display=True) for part in formula.split(r" \\ "))
    return f'<div class="formulas">{parts}</div>'


def page(data: dict[str, Any]) -> str:
    """The whole page: nothing in it is fetched from elsewhere."""
    text = (HERE / "page.html").read_text()
    text = re.sub(r"\$\$(.+?)\$\$", lambda m: displayed(m[1]), text)
    inline = '<span class="formula">{}{}</span>'  # with the mark that follows, never parted from it
    text = re.sub(
        r"\$(.+?)\$([.,:;]?)", lambda m: inline.format(mathml(m[1]), m[2]), text, flags=re.S
    )
    text = re.sub(
        r"\[\[figure (\w+) \| (.+?)\]\]", lambda m: FIGURE.format(m[1], m[2]), text, flags=re.DOTALL
    )
    parts = {
        "style": (HERE / "style.css").read_text(),
        "data": json.dumps(data, separators=(",", ":")).replace("</", "<\\/"),
        "scripts": "\n".join((HERE / name).read_text() for name in SCRIPTS),
    }
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    return text
