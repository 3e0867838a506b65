"""The wheel, in an empty folder and an environment of its own: what it holds, and that it works.

JAXVAE_DIST=folder tests what lies there, in place of a wheel and a source distribution built here.
"""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import numpy as np
import pytest

import jaxvae

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
# nothing leads back to this checkout; conftest.py's settings of XLA stay, which save time
KEPT = "git", "ls-files", "--cached", "--others", "--exclude-standard"
OURS = re.compile("PYTHON|PYTEST|VIRTUAL_ENV|UV_P")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not OURS.match(k)} | {"MPLBACKEND": "agg"}


def run(*command, cwd):
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with both; the wheel is built from the source distribution."""
    if "JAXVAE_DIST" in os.environ:
        return ROOT / os.environ["JAXVAE_DIST"]
    folder = tmp_path_factory.mktemp("dist")
    run("uv", "build", "-q", "--out-dir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    [path] = dist.glob(f"jaxvae-{jaxvae.__version__}-py3-none-any.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The folder of `python` and `jaxvae` where the wheel is installed, and no extra."""
    folder = tmp_path_factory.mktemp("environment")
    run("uv", "venv", "-q", "--python", sys.executable, folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run("uv", "pip", "install", "-q", "--python", python, wheel, cwd=folder)
    return python.parent


@pytest.fixture(scope="module")
def with_extras(wheel, programs, tmp_path_factory):
    """The same, with the packages that the pages import."""
    folder = tmp_path_factory.mktemp("extras")
    extras = f"jaxvae[disentanglement,plots] @ {wheel.as_uri()}"
    run("uv", "pip", "install", "-q", "--python", programs / "python", extras, cwd=folder)
    return programs


def description(wheel):
    with zipfile.ZipFile(wheel) as file:
        [name] = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(file.read(name))


def test_what_the_wheel_holds(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {p for p in (ROOT / "jaxvae").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert {name for name in names if name.startswith("jaxvae/")} == {
        path.relative_to(ROOT).as_posix() for path in sources
    }
    assert {"jaxvae/py.typed", "jaxvae/nn/onednn.cc"} <= names
    others = {name.split("/", 1)[1] for name in names if not name.startswith("jaxvae/")}
    information = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert others == information  # no tests, no experiments


def test_what_the_source_distribution_holds(dist):
    """All that git keeps, so that it can be tested and read, and nothing else."""
    [path] = dist.glob(f"jaxvae-{jaxvae.__version__}.tar.gz")
    with tarfile.open(path) as file:
        names = {member.name.split("/", 1)[1] for member in file if member.isfile()}
    kept = subprocess.run(KEPT, cwd=ROOT, capture_output=True, text=True, check=True)
    assert names == {*kept.stdout.splitlines(), "PKG-INFO"}


def test_what_a_package_index_shows(wheel):
    metadata = description(wheel)
    text = str(metadata.get_payload())
    assert metadata["Version"] == jaxvae.__version__
    assert metadata["Author"] == "jaxvae contributors"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert text.startswith("# jaxvae\n\n```bash\npip install jaxvae\n```\n")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert not re.findall(r"\]\((?!https://)|<img|<a |^\[[^\]]+\]: ", prose, flags=re.MULTILINE)
    assert "![" not in prose
    readme = (ROOT / "README.md").read_text()
    assert blocks(text) == blocks(readme)  # all the code that a reader can run
    assert "## The main job" not in text  # which a wheel has not


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_it_says_its_version(programs, tmp_path):
    code = (
        "import sys, importlib.metadata, jaxvae, jaxvae.nn\n"
        "assert 'site-packages' in jaxvae.__file__\n"
        "assert importlib.metadata.version('jaxvae') == jaxvae.__version__\n"
        "assert not {'tensorflow_datasets', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "print(jaxvae.__version__)"
    )
    assert run(programs / "python", "-c", code, cwd=tmp_path).strip() == jaxvae.__version__


def test_the_command_line(programs, tmp_path):
    data = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    np.save(tmp_path / "data.npy", data)
    jaxvae_command = programs / "jaxvae"
    assert "train" in run(jaxvae_command, "--help", cwd=tmp_path)
    run(jaxvae_command, "train", "data.npy", "runs/data", "--epochs", "2", cwd=tmp_path)
    run(jaxvae_command, "score", "runs/data", "data.npy", "--output", "s.npz", cwd=tmp_path)
    scores = np.load(tmp_path / "s.npz")
    assert all(scores[name].shape[:1] == (200,) for name in scores.files)


def test_the_code_of_the_readme(with_extras, wheel, tmp_path):
    (tmp_path / "readme.py").write_text("\n".join(blocks(str(description(wheel).get_payload()))))
    run(with_extras / "python", "readme.py", cwd=tmp_path)
    assert (tmp_path / "digits_vae" / "model.json").exists()


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "notebooks").glob("*quick*.md")))
def test_a_notebook(with_extras, page, tmp_path):
    cells = re.findall(r"```\{code-cell\}.*\n((?::.*\n)*)(.*?)```", page.read_text(), re.DOTALL)
    assert cells
    (tmp_path / "notebook.py").write_text("\n".join(code for _, code in cells))
    run(with_extras / "python", "notebook.py", cwd=tmp_path)
