"""Sphinx: `make docs`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "extension")]

import links  # noqa: E402
import reference  # noqa: E402
import signatures  # noqa: E402
from docstrings import as_rst  # noqa: E402

project = "jaxvae"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_explorable"]
nb_execution_mode = "off"  # notebooks show kept pictures and the numbers that tests measure again

html_theme = "furo"
html_title = "jaxvae"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
# the story alive, explorable.html, which `make docs` builds before this
html_extra_path = [str(p) for p in Path(__file__).parent.glob("_explorable")]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# `sphinx-build -b linkcheck`, once a week, asks the hosts of links that lead away
linkcheck_ignore = [  # these, or publishers behind them, turn programs away
    r"https://doi\.org/",
    r"https://openreview\.net/",
]
linkcheck_timeout = 30
linkcheck_retries = 3
linkcheck_workers = 2  # most links are arXiv's, which asks for patience

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # but those of the signature, as it is written
python_use_unqualified_type_names = True
maximum_signature_line_length = 88


def said(app, what, name, obj, options, lines):
    lines[:] = as_rst("\n".join(lines))


def without_fields(app, what, name, obj, skip, options):
    """The fields of a named tuple are said under Args."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field") else None


def setup(app):
    app.connect("builder-inited", reference.write_pages)
    app.connect("autodoc-process-signature", signatures.as_written)
    app.connect("autodoc-process-docstring", said, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", without_fields)
    app.add_transform(links.Links)
    app.connect("missing-reference", links.resolve)
    app.connect("html-collect-pages", links.sources)
