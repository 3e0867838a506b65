"""The pages' code runs: every ```python block of a page, in order, in one namespace."""

import re
import sys
from functools import partial
from inspect import isfunction
from pathlib import Path
from types import ModuleType

import jax
import pytest

from tests.common import COPIES, same

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        # what these two show has tests of its own
        pytest.param("docs/guide.md", marks=pytest.mark.slow),
        pytest.param("docs/bounds.md", marks=pytest.mark.slow),
        "docs/new_method.md",
        "docs/faults.md",
        "docs/devices.md",
    ],
)
def test_code_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert blocks
    namespace: dict = {}
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):  # as a user has it
        for block in blocks:
            exec(compile(block, page, "exec"), namespace)


def test_every_line_of_the_table_makes_something():
    """Each line of docs/methods.md is evaluated, and each test and script it names exists.

    What it makes can be pickled and copied, unless it is a function made inside another.
    """
    text = (ROOT / "docs/methods.md").read_text()
    page = sys.modules.setdefault("methods_page", ModuleType("methods_page"))  # for pickle to find
    namespace = vars(page)
    exec(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0], namespace)
    row = r"^\| (.*?) \|(.*?)\| `(.*)` \| `(.*?)` \|(.*?)\|$"
    rows = re.findall(row, text, flags=re.MULTILINE)
    heads = re.findall(r"^\| method ", text, flags=re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| ", text, flags=re.MULTILINE)) - len(heads)
    for method, _, line, test, run in rows:
        made = eval(line, namespace)
        assert callable(made) or hasattr(made, "log_prob") or hasattr(made, "prior"), method
        assert local(made) or all(same(copied(made), made) for copied in COPIES.values()), method
        assert (ROOT / "tests" / test).exists(), test
        for script in re.findall(r"`experiments\.([\w.]+)`", run):
            assert (ROOT / "experiments" / f"{script.replace('.', '/')}.py").exists(), script


def local(value):
    """Whether it is a function made inside another, or a partial of one, which pickle refuses."""
    if isinstance(value, partial):
        return any(map(local, (value.func, *value.args, *value.keywords.values())))
    return isfunction(value) and "<locals>" in value.__qualname__
