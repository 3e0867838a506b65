"""The site: its reference has every public name once, its gallery every picture, no link is dead.

Read off the sources, without Sphinx; the last test builds the site, where Sphinx is.
"""

import re
import subprocess
import sys
from collections import Counter
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import pytest

import jaxvae
from tests.test_docs import PACKAGES, PAGES, ROOT, at, public

DOCS = ROOT / "docs"
sys.path.append(str(DOCS / "extension"))
dead_links, docstrings, formulas, names, reference, signatures = map(
    import_module,
    ("dead_links", "docstrings", "formulas", "public_names", "reference", "signatures"),
)
ENTRIES = names.entries()


def test_every_public_name_has_one_entry():
    """Under the shortest of its names; the others are said there."""
    said = Counter(name for entry in ENTRIES for name in entry.names)
    assert not [name for name, _ in public() if said[name] != 1]
    assert len({id(entry.value) for entry in ENTRIES}) == len(ENTRIES)
    assert all(at(name) is entry.value for entry in ENTRIES for name in entry.names)
    for entry in ENTRIES:
        assert entry.name.count(".") == min(name.count(".") for name in entry.names)


@cache
def pages() -> dict[str, str]:
    return {name: "\n".join(reference.page(name)) for name in names.PAGES}


def test_each_entry_stands_once_on_the_pages_of_the_reference():
    text = pages()
    described = re.findall(r"^\.\. (?:auto|py:)\w+:: (\S+)", "\n".join(text.values()), re.MULTILINE)
    assert sorted(described) == sorted(entry.name for entry in ENTRIES)
    for entry in ENTRIES:
        [line] = re.findall(rf"- :py:obj:`{entry.name}`\n     - (.+)", text[entry.page])
        assert len(line) > 5, entry.name
    listed = re.findall(r"^reference/(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(map(reference.slug, names.PAGES))
    assert {package.__name__ for package in PACKAGES} <= names.PAGES.keys()


@pytest.mark.parametrize(
    ("thing", "arguments", "returned"),
    [
        (
            jaxvae.elbo,
            "(model: jaxvae.Model, key: jaxvae.checks.Key, x: jaxvae.checks.Tree, *, "
            "beta: jaxvae.checks.Scalar=1.0, kl: jaxvae.bounds.KL=auto_kl, "
            "gradient: jaxvae.gradients.Estimator=pathwise)",
            "tuple[Array, jaxvae.Terms]",
        ),
        (jaxvae.Normal, "(loc: jaxvae.checks.Numbers, scale: jaxvae.checks.Numbers)", None),
        (jaxvae.Normal.covariance, "()", "Array"),
        (jaxvae.Constant, "(value: Any)", None),
        (jaxvae.Model, "", None),
        (jaxvae.Terms, "(distortion: Array, rate: Array)", None),
    ],
)
def test_a_signature_is_as_it_is_written(thing, arguments, returned):
    assert signatures.as_written(None, "", "", thing, None) == (arguments, returned)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "The bound: log p(x) >= E_q[log p(x|z)] - beta KL(q(z|x) || p(z)), one draw z.",
            r"\log p(x) \ge \mathbb{E}_{q}[\log p(x|z)] - "
            r"\beta \operatorname{KL} (q(z|x) \,\|\, p(z))",
        ),
        ("of 1/K sum_k w_k^(1 - alpha).", r"\tfrac{1}{K} \sum _{k} w_{k}^{1 - \alpha}"),
        ("x = z + u^ tanh(w'z + b), u", r"x = z + \hat{u} \tanh (w'z + b)"),
        ("where C_1^1/2 is", r"C_{1}^{\tfrac{1}{2}}"),
        ("given x_observed here", r"x_{\text{observed}}"),
        # what is no formula, or is cut off
        ("See section 4 (e), and a tuple (3,) or (d,); x and a.", None),
        ("half of |x - the mean|^2 and (max_value + 1)", None),
        ("a half-open interval (x, d] is left alone", None),
        ("log_w is a name, and so is max_value", None),
    ],
)
def test_formulas_are_found_in_prose(text, found):
    assert "".join(piece for piece, _ in formulas.pieces(text)) == text
    assert [formulas.tex(piece) for piece, is_one in formulas.pieces(text) if is_one] == (
        [found] if found else []
    )


def test_every_formula_closes_its_brackets():
    found = re.findall(":math:`([^`]*)`", "\n".join(pages().values()))
    assert len(found) > 100
    for tex in found:
        depth = 0
        for sign in re.sub(r"\\[{}]", "", tex):
            depth += (sign == "{") - (sign == "}")
            assert depth >= 0, tex
        assert depth == 0, tex
        assert not re.search(r"[_^]($|[^{])|{}", tex), tex


def test_a_docstring_as_rst():
    text = (
        "A `code` of |x|.\n\n    y = x_1 z,\n\nbut\n\n    y = softplus x_1\n\n"
        "Args:\n  x: of a*.\n\n>>> 1 + 1_0\n11"
    )
    made = "\n".join(docstrings.as_rst(text))
    assert made.startswith("A ``code``\\  of :math:`|x|`\\ .")
    assert ".. math:: y = x_{1} z,\n" in made
    assert ".. code-block:: text\n\n   y = softplus x_1\n" in made
    assert "  x: of a\\*." in made
    assert made.endswith(">>> 1 + 1_0\n11")


def test_the_gallery_has_every_picture_and_the_script_that_made_it():
    text = (DOCS / "gallery.md").read_text()
    cards = re.findall(r":::\{grid-item-card\}\n(.*?)\n:::", text, flags=re.DOTALL)
    card = r"!\[(.+)\]\((figures/\S+)\)\n\n(.+\.) \[(experiments/\S+)\]\(\.\./(\S+)\)"
    shown = [re.fullmatch(card, text).groups() for text in cards]  # type: ignore
    pictures = {str(path.relative_to(DOCS)) for path in (DOCS / "figures").rglob("*.png")}
    in_notebooks = {path for path in pictures if path.startswith("figures/notebooks/")}
    assert Counter(picture for _, picture, *_ in shown) == Counter(pictures - in_notebooks)
    for *_, script, path in shown:
        assert script == path
        assert (ROOT / path).is_file(), path
    notebooks = "".join(path.read_text() for path in (DOCS / "notebooks").glob("*.md"))
    assert not [path for path in in_notebooks if path not in notebooks]


@pytest.mark.parametrize("page", PAGES)
def test_links_that_lead_away_are_well_formed(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\((https?:[^)\s]+)\)|<(https?:[^>\s]+)>", text)
    assert not [url for pair in found for url in pair if url and not dead_links.well_formed(url)]


def test_dead_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="here">A</h1><a href="#here"></a><a href="b.html#there"></a>'
        '<a href="https://doi.org/10.1145/3446776"></a><img src="p.png"><a href="#"></a>'
        '<a href="https://arxiv.org/abs/1312.6114"></a>'
    )
    (tmp_path / "b.html").write_text('<p id="there"></p>')
    (tmp_path / "p.png").touch()
    assert not list(dead_links.dead(tmp_path))
    (tmp_path / "b.html").write_text(
        '<a href="c.html"></a><a href="a.html#nowhere"></a><script src="https://a.org/x.js"></script>'
        '<a href="https://doi.org/3446776"></a><a href="http://a.org"></a>'
    )
    found = " ".join(dead_links.dead(tmp_path))
    wrong = [
        "b.html#there",
        "c.html",
        "a.html#nowhere",
        "asks another host",
        "org/3446776",
        "http:",
    ]
    assert all(sign in found for sign in wrong)
    assert len(list(dead_links.dead(tmp_path))) == len(wrong)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("myst_parser"), reason="the group docs is not installed")
def test_the_site_is_built_without_a_warning_or_a_dead_link(tmp_path):
    """With an empty page where `make docs` has the story's."""
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (tmp_path / "explorable.html").touch()
    assert not list(dead_links.dead(tmp_path))
