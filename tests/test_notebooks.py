"""The notebooks of docs/notebooks: public names alone, and numbers that are measured again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.notebooks import cells
from tests.test_docs import PACKAGES, imports_of, public, uses

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs/notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("[0-9]*.md"))
RESULT = r"(.+) = (-?[\d.]+) ± ([\d.]+) (.+)"  # what = number ± error unit
SECONDS = 60.0  # of processor time


def test_every_notebook_is_in_the_table_of_contents():
    [toctree] = re.findall(
        r"```\{toctree\}\n(.*?)```", (FOLDER / "index.md").read_text(), re.DOTALL
    )
    assert [f"{name}.md" for name in toctree.split()] == NOTEBOOKS


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_is_short_and_of_public_names(notebook):
    """Jupyter knows it by its first lines; its links lead somewhere; it ends in a number."""
    path = FOLDER / notebook
    text, page = path.read_text(), str(path.relative_to(ROOT))
    assert "format_name: myst\n" in text.split("---")[1]
    assert "name: python3\n" in text.split("---")[1]
    assert text.count("{code-cell}") == len(cells(text))
    assert 5 <= len(cells(text)) <= 12
    names = {name for name, _ in public()} | {"jaxvae.use", "jaxvae.models.ppca"}
    packages = {package.__name__ for package in PACKAGES}
    for cell in cells(text):
        compile(cell, page, "exec")
        for name in {*imports_of(page).values(), *uses(cell, page)}:
            assert name in names | packages or name.rpartition(".")[0] in names, name
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (FOLDER / link).exists(), link
    stated(text)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_measures_what_it_says(notebook):
    """In a fresh process, with nothing compiled before, and no warning."""
    command = [sys.executable, "-W", "error", "-m", "experiments.notebooks", FOLDER / notebook]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    before = os.times()
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    after = os.times()
    assert ran.returncode == 0, ran.stderr
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < SECONDS
    what, number, error, unit = result(ran.stdout.splitlines()[-1])
    said_what, said, said_error, said_unit = stated((FOLDER / notebook).read_text())
    assert (what, unit) == (said_what, said_unit)
    assert abs(number - said) <= said_error
    assert 0.5 < error / said_error < 2.0


def stated(text: str) -> tuple[str, float, float, str]:
    """The result that the text tells in bold, behind the last cell."""
    [bold] = re.findall(r"^\*\*(.*?)\*\*$", text[text.rindex("{code-cell}") :], re.MULTILINE)
    return result(bold)


def result(line: str) -> tuple[str, float, float, str]:
    found = re.fullmatch(RESULT, line)
    assert found, line
    what, number, error, unit = found.groups()
    return what, float(number), float(error), unit
