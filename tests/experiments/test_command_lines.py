"""Every script tells what it is for --help, and refuses what it does not know, before any work."""

import runpy
import sys
from pathlib import Path

import jax
import pytest

import experiments.common.methods as methods  # of which an import makes the rows, once

ROOT = Path(__file__).parents[2]
assert methods.ROWS
SCRIPTS = [
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "experiments").rglob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text()
]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """The exit code of a script with these arguments, and what it printed."""

    def work(*args, **kwargs):
        raise AssertionError("the script went to work")

    def run(script: str, *arguments: str):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(jax.random, "key", work)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return ended.value.code, capsys.readouterr()

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_tells_what_it_is_and_refuses_the_rest(script, run):
    if "scvi" in script:  # the one peer that imports what is no dependency
        pytest.importorskip("scvi")
    code, told = run(script, "--help")
    assert code == 0
    first = (ROOT / script).read_text().removeprefix('"""').splitlines()[0]
    assert first.split()[:4] == told.out.partition("\n\n")[2].split()[:4]
    code, told = run(script, "--no-such-option", "x")
    assert code == 2
    wrong = ("--no-such-option", "Missing argument", "required", "invalid choice")
    assert any(text in told.err for text in wrong)
    assert not told.out


RECORDS = "experiments/records"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (f"{RECORDS}/composed.py", ["mnist"]),
        (f"{RECORDS}/importance.py", []),
        (f"{RECORDS}/static_convolutions.py", []),
        (f"{RECORDS}/static_mnist.py", []),
        ("experiments/static_mnist.py", []),
        ("experiments/latents/walks.py", []),
    ],
)
def test_data_that_is_not_prepared_is_a_line(script, arguments, run, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    code, told = run(script, *arguments)
    assert code == 2
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert "is not prepared in" in told.err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("script", "arguments", "text"),
    [
        (f"{RECORDS}/composed.py", ["mnist", "--factors", "DReG", "typo"], "--factors has 'typo'"),
        (f"{RECORDS}/composed.py", ["mnist", "--seeds"], "--seeds lists nothing"),
        (f"{RECORDS}/importance.py", ["--objectives", "typo"], "--objectives has 'typo', expected"),
        (f"{RECORDS}/importance.py", ["--seeds"], "--seeds lists nothing"),
        (f"{RECORDS}/static_mnist.py", ["--seeds"], "--seeds lists nothing"),
        ("experiments/tokenizer.py", ["emoji", "x", "--models", "typo"], "--models has 'typo'"),
        ("experiments/tighter_bounds.py", ["--ks"], "--ks lists nothing"),
    ],
)
def test_a_name_that_is_not_known_is_refused_before_the_work(script, arguments, text, run):
    code, told = run(script, *arguments)
    assert code == 2
    assert told.err.startswith(f"error: {text}")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("script", ["tighter_bounds", "information"])
def test_a_folder_that_cant_be_written_is_a_line_before_the_work(script, run):
    code, told = run(f"experiments/{script}.py", "--folder", "/dev/null/x")
    assert code == 1
    assert told.err.startswith("error: [Errno 20] Not a directory")
