"""The site's reference has every public name once; read off the sources, without Sphinx."""

import ast
import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

import jaxvae
from tests.test_docs import PACKAGES, ROOT, at, public

DOCS = ROOT / "docs"
sys.path.append(str(DOCS / "extension"))
docstrings, names, reference, signatures = map(
    import_module, ("docstrings", "public_names", "reference", "signatures")
)
ENTRIES = names.entries()


def test_every_public_name_has_one_entry():
    """Under the shortest of its names, and the others are said there."""
    said = Counter(name for entry in ENTRIES for name in entry.names)
    assert not [name for name, _ in public() if said[name] != 1]
    assert len({id(entry.value) for entry in ENTRIES}) == len(ENTRIES)
    assert all(at(name) is entry.value for entry in ENTRIES for name in entry.names)
    for entry in ENTRIES:
        assert entry.name.count(".") == min(name.count(".") for name in entry.names)


def test_each_entry_stands_once_on_the_pages_of_the_reference():
    text = {name: "\n".join(reference.page(name)) for name in names.PAGES}
    described = re.findall(r"^\.\. (?:auto|py:)\w+:: (\S+)", "\n".join(text.values()), re.MULTILINE)
    assert sorted(described) == sorted(entry.name for entry in ENTRIES)
    for entry in ENTRIES:
        [line] = re.findall(rf"- :py:obj:`{entry.name}`\n     - (.+)", text[entry.page])
        assert len(line) > 5, entry.name
    listed = re.findall(r"^reference/(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(map(reference.slug, names.PAGES))
    assert {package.__name__ for package in PACKAGES} <= names.PAGES.keys()
