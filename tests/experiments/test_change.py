"""A change beside the commit before it, where `measure` is a stub: no test here times anything."""

import subprocess
import tempfile
from pathlib import Path

import pytest

from experiments.benchmarks import change

STUB = """
WORKLOADS = {{"W1": type("W", (), {{"_replace": lambda self, looks: looks}})()}}

def measure(peer, workload):
    assert (peer, WORKLOADS[workload]) == ("jaxvae", 7)
    return {{"examples_per_second": {speed}, "first_step_seconds": 3.25}}
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of one commit, in which jaxvae makes 1,000 examples a second."""
    folder = tmp_path / "checkout"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for path in ("temporary", "checkout/experiments/benchmarks", "checkout/jaxvae"):
        (tmp_path / path).mkdir(parents=True)
    for package in ("jaxvae", "experiments", "experiments/benchmarks"):
        (folder / package / "__init__.py").touch()
    monkeypatch.chdir(folder)
    speed(1_000.0)
    commit()
    return folder


def git(*arguments):
    identity = "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"
    return subprocess.run(
        ["git", *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


def commit():
    for arguments in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "one more")):
        git(*arguments)


def speed(value):
    Path("experiments/benchmarks/measure.py").write_text(STUB.format(speed=value))


def cells(printed):
    (row,) = (line for line in printed.splitlines() if "W1" in line)
    return [cell.strip() for cell in row.split("│")[1:-1]]


def test_the_tree_is_measured_beside_the_commit_before(checkout, capsys):
    """What is not committed beside HEAD, and once it is, HEAD beside HEAD~1; nothing is left."""
    printed = ""
    for _ in range(2):
        speed(1_250.0)
        change.main(["--workloads", "W1", "--minutes", "0"])
        printed = capsys.readouterr().out
        expected = ["W1", "1,000", "1,250", "1.250", "1.250 to 1.250", "3.2, 3.2"]
        assert cells(printed) == expected
        commit() if git("status", "--porcelain") else None
    assert "HEAD beside" in printed
    assert "(HEAD~1), 2 rounds" in printed
    assert not list((checkout.parent / "temporary").iterdir())
    assert git("worktree", "list").count("\n") == 1
    assert not git("status", "--porcelain")


@pytest.mark.usefixtures("checkout")
def test_any_revision_is_a_base(capsys, monkeypatch):
    git("tag", "first")
    speed(2_000.0)
    commit()
    speed(500.0)
    (Path("docs")).mkdir()
    monkeypatch.chdir("docs")
    change.main(["--workloads", "W1", "--minutes", "0", "--base", "first"])
    assert cells(capsys.readouterr().out)[3] == "0.500"


@pytest.mark.usefixtures("checkout")
def test_the_right_jaxvae_is_imported():
    """Where an environment has another jaxvae first, no number is given."""
    path = Path("experiments/benchmarks/measure.py")
    path.write_text(path.read_text() + "\nimport sys; sys.path.insert(0, '/')\n")
    path.write_text(path.read_text() + "import json; sys.modules['jaxvae'] = json\n")
    with pytest.raises(SystemExit, match=r"json.__init__.py was imported, expected that of"):
        change.main(["--workloads", "W1", "--minutes", "0"])


def test_whatever_fails_has_one_line(checkout, monkeypatch):
    with pytest.raises(SystemExit, match="base is other, expected a commit, a branch or a tag"):
        change.main(["--base", "other"])
    with pytest.raises(SystemExit, match="HEAD~1, expected a commit"):
        change.main([])
    speed("1 / 0")
    with pytest.raises(
        SystemExit, match=r"W1 can't be measured in .*: ZeroDivisionError: division"
    ):
        change.main(["--workloads", "W1"])
    monkeypatch.chdir(checkout.parent)
    with pytest.raises(SystemExit, match=r"^change: not in a git checkout, expected one, whose"):
        change.main([])
    assert not list((checkout.parent / "temporary").iterdir())


def test_ctrl_c_leaves_nothing(checkout, monkeypatch):
    def interrupted(*_):
        assert list((checkout.parent / "temporary").iterdir())
        raise KeyboardInterrupt

    speed(2.0)
    monkeypatch.setattr(change, "run_once", interrupted)
    with pytest.raises(KeyboardInterrupt):
        change.main([])
    assert not list((checkout.parent / "temporary").iterdir())
