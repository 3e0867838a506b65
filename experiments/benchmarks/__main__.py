"""jaxvae beside its peers, on this machine: the same work, in turns, as ratios.

    python -m experiments.benchmarks
    python -m experiments.benchmarks --workloads W1 W4 --rounds 5

Each peer runs each workload in a process of its own, everyone once a round, so that what else the
machine does falls on all. The table has medians over rounds. Writes runs/benchmarks/result.json
and speed.png. Peers that are not installed are named and left out: see the README beside this file.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.measure import PEERS
from experiments.benchmarks.workloads import WORKLOADS
from experiments.common import plotting

NEEDS = {"pytorch": "torch", "pythae_trainer": "pythae", "numpyro_svi": "numpyro"}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpyro", "torch", "pythae")
Numbers = dict[str, Any]


def needed(peer: str) -> str | None:
    """The package that a peer needs beyond our own."""
    return NEEDS.get(PEERS[peer].split(":")[0])


def run_once(peer: str, workload: str) -> Numbers:
    """`measure` in a process of its own, and its whole wall time."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "experiments.benchmarks.measure", peer, workload]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"wall_seconds": wall}


def medians(rounds: list[Numbers]) -> Numbers:
    """Of every number over the rounds."""
    failed = [numbers for numbers in rounds if "error" in numbers]
    if failed:
        return failed[0]
    return {name: float(np.median([r[name] for r in rounds])) for name in rounds[0]}


def table(workload: str, numbers: dict[str, Numbers]) -> Table:
    w = WORKLOADS[workload]
    rows = Table(title=f"{w.name}: {w.about}, batch {w.batch}")
    for column in (
        "",
        "examples/s",
        "jaxvae is",
        "of limit",
        "first step, s",
        "whole run, s",
        "MB",
        "loss",
    ):
        rows.add_column(column, justify="left" if not column else "right")
    speeds = {peer: n["examples_per_second"] for peer, n in numbers.items() if "error" not in n}
    ours = speeds.get("jaxvae", np.nan)
    limit = max([speed for peer, speed in speeds.items() if "matmuls" in peer], default=np.nan)
    for peer, n in numbers.items():
        if "error" in n:
            continue
        rows.add_row(
            peer,
            f"{n['examples_per_second']:,.0f}",
            f"{ours / n['examples_per_second']:.2f}x",
            "" if np.isnan(limit) else f"{n['examples_per_second'] / limit:.0%}",
            f"{n['import_seconds'] + n['first_step_seconds']:.1f}",
            f"{n['wall_seconds']:.1f}",
            f"{n['peak_megabytes']:.0f}",
            "" if "matmuls" in peer else f"{n['loss']:.1f}",
        )
    return rows


@plotting.styled
def plot(path: Path, found: dict[str, dict[str, Numbers]]) -> None:
    """Examples a second, a panel a workload."""
    picture = plotting.figure(7.5, 2.6 * len(found))
    panels = picture.subplots(len(found), 1, squeeze=False)[:, 0]
    for ax, (workload, numbers) in zip(panels, found.items(), strict=True):
        speeds = {p: n["examples_per_second"] for p, n in numbers.items() if "error" not in n}
        names = list(speeds)[::-1]
        colors = [plotting.BLUE if name == "jaxvae" else plotting.GREY for name in names]
        ax.barh(names, [speeds[name] for name in names], color=colors)
        ax.set_title(f"{workload}: {WORKLOADS[workload].about}")
    panels[-1].set_xlabel("examples a second")
    plotting.save(picture, path)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs"))
    options = parser.parse_args(arguments)

    console = Console()
    peers = []
    for peer in options.peers:
        package = needed(peer)
        if package is None or find_spec(package):
            peers.append(peer)
        else:
            console.print(f"{peer}: left out, as {package} is not installed")
    folder = options.output / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    installed = {p: metadata.version(p) for p in PACKAGES if find_spec(p)}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "rounds": options.rounds}
    machine |= installed | {"python": platform.python_version()}
    found: dict[str, dict[str, Numbers]] = {}
    for workload in options.workloads:
        runs = defaultdict(list)
        for _ in range(options.rounds):
            for peer in peers:
                runs[peer].append(run_once(peer, workload))
        found[workload] = {peer: medians(rounds) for peer, rounds in runs.items()}
        console.print(table(workload, found[workload]))
        for peer, n in found[workload].items():
            if "error" in n:
                console.print(f"{peer}: {n['error']}", soft_wrap=True)
        result = {"machine": machine} | found  # after each, as all take the better part of an hour
        (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        plot(folder / "speed.png", found)
    console.print(f"numbers and picture: {folder}/", soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
