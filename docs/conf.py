"""Sphinx: `make docs`."""

import re

project = "jaxvae"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
exclude_patterns = ["_build"]
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


def setup(app):
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)  # before napoleon
