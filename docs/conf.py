"""Sphinx: `make docs`."""

import re
from pathlib import Path

import jaxvae
from jaxvae import nn

project = "jaxvae"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
exclude_patterns = ["_build", "_explorable"]
nb_execution_mode = "off"  # notebooks show kept pictures and the numbers that tests measure again
# the story alive, explorable.html, which `make docs` builds before this
html_extra_path = [str(p) for p in Path(__file__).parent.glob("_explorable")]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
suppress_warnings = ["myst.header"]


def plain_docstring(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code` and formulas: |x| is a norm, a* no emphasis."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            line = re.sub(r"([|*_])", r"\\\1", line)
            code = r"`([^`]+)`"
            lines[i] = re.sub(code, lambda m: "``" + m[1].replace("\\", "") + "``\\ ", line)


HOMES = [jaxvae, nn, *(v for v in vars(jaxvae).values() if hasattr(v, "__path__"))]
PUBLIC = [v for home in (*HOMES, jaxvae.evaluation.disentanglement) for v in vars(home).values()]
PUBLIC += vars(jaxvae.models.ppca).values()


def public_alone(app, what, name, obj, skip, options):
    """Helpers of a module that no package exports are skipped, and fields, which Args describe."""
    helper = what == "module" and not any(obj is v for v in PUBLIC)
    field = (getattr(obj, "__doc__", None) or "").startswith("Alias for field")
    return True if helper or field else None


def setup(app):
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", public_alone)
