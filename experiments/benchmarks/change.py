"""What a change does to speed: the commit before it and the working tree, in turns, as ratios.

    make bench
    python -m experiments.benchmarks.change --base main --workloads W1 --minutes 2

The base is the last commit where the working tree differs from it, and otherwise the one before.
Each side trains each workload once a round, in a process of its own, by its own `measure` and
`peers/ours.py`; who begins changes from round to round. The first step is that of the first round,
which compiles; later ones read what it compiled. There are as many rounds as the minutes allow, and
two at least. A change is slower where the whole range of its ratio lies below 1.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

LOOKS = 7
TIMED = "W1", "W2", "W3", "W5"
MEASURE = """
import json, sys
from experiments.benchmarks import measure
name, looks = sys.argv[1], int(sys.argv[2])
measure.WORKLOADS[name] = measure.WORKLOADS[name]._replace(looks=looks)
found = measure.measure("jaxvae", name)
import jaxvae
print(json.dumps(found | {"imported": [measure.__file__, jaxvae.__file__]}))
"""


def git(folder: Path, *arguments: str, error: str) -> bytes:
    """What git prints; SystemExit with the error where it fails, or is not there."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(f"change: {error}") from None


def run_once(tree: Path, workload: str, cache: Path) -> dict[str, Any]:
    """`measure` of the jaxvae in a tree, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, workload, str(LOOKS)],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "JAX_COMPILATION_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise SystemExit(f"change: {workload} can't be measured in {tree}: {why}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    for file in found.pop("imported"):
        if not Path(file).is_relative_to(tree):
            raise SystemExit(f"change: {file} was imported, expected that of {tree}")
    return found


def in_turns(
    sides: dict[str, Path], workloads: Sequence[str], caches: Path, minutes: float
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Workload -> side -> what `run_once` found in each round."""
    found: Any = defaultdict(lambda: defaultdict(list))
    began, rounds, order = time.perf_counter(), 0, [*sides]
    while True:
        for workload in workloads:
            for side in order:
                numbers = run_once(sides[side], workload, caches / side)
                found[workload][side].append(numbers)
        rounds, order = rounds + 1, order[::-1]
        passed = time.perf_counter() - began
        if rounds >= 2 and passed * (rounds + 1) / rounds > 60 * minutes:
            return found


def table(title: str, found: dict[str, dict[str, list[dict[str, Any]]]]) -> Table:
    rows = Table(title=title)
    columns = ("base, examples/s", "tree", "tree / base", "range", "first step, s: base, tree")
    for column in ("", *columns):
        rows.add_column(
            column, justify="right" if column else "left", min_width=14 * (column == "range")
        )
    for workload, sides in found.items():
        base, tree = (
            np.array([numbers["examples_per_second"] for numbers in sides[side]])
            for side in ("base", "tree")
        )
        first = [sides[side][0]["first_step_seconds"] for side in ("base", "tree")]
        ratios = tree / base
        rows.add_row(
            workload,
            f"{np.median(base):,.0f}",
            f"{np.median(tree):,.0f}",
            f"{np.median(ratios):.3f}",
            f"{min(ratios):.3f} to {max(ratios):.3f}",
            "{:.1f}, {:.1f}".format(*first),
        )
    return rows


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", metavar="REV", help="a commit, branch or tag")
    parser.add_argument("--workloads", nargs="+", default=list(TIMED))
    parser.add_argument("--minutes", type=float, default=4.5)
    options = parser.parse_args(arguments)

    outside = "not in a git checkout, expected one, whose commits are what to compare with"
    tree = Path(git(Path(), "rev-parse", "--show-toplevel", error=outside).decode().strip())
    changed = git(tree, "status", "--porcelain", error=outside)
    base = options.base or ("HEAD" if changed else "HEAD~1")
    unknown = f"base is {base}, expected a commit, a branch or a tag of {tree}"
    revision = git(tree, "rev-parse", "--short", f"{base}^{{commit}}", error=unknown)
    commit = revision.decode().strip()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        with tarfile.open(
            fileobj=io.BytesIO(git(tree, "archive", commit, error=unknown))
        ) as archive:
            archive.extractall(folder / "base", filter="data")
        sides = {"base": folder / "base", "tree": tree}
        found = in_turns(sides, options.workloads, folder / "compiled", options.minutes)
    rounds = len(next(iter(found.values()))["base"])
    what = "the working tree" if changed else "HEAD"
    Console().print(table(f"{what} beside {commit} ({base}), {rounds} rounds", found))


if __name__ == "__main__":
    main(sys.argv[1:])
