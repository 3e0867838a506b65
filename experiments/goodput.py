"""The main job, killed once a minute: how soon it makes new steps, how much of its time counts.

    python -m experiments.goodput               # ten kills, eleven minutes

Every minute the job is killed and started anew. What counts is the steps that the next start finds,
at the pace between the first checkpoint of a minute and its last, less the share of the time that
saving may take. What doesn't count is the start, up to the first new step, and what comes behind
the last checkpoint. The first start compiles all programs, and the bytecode of all modules; it is
left out, so that those that are measured find warm caches.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import tyro

from jaxvae.training.checkpoints.resuming import checkpoint_files, step_of


@dataclass(frozen=True)
class Goodput:
    kills: int = 10
    seconds: float = 60.0
    """between two of them"""
    hidden: int = 2000
    """units of the main job's networks"""
    saving: float = 0.03
    """the job's share of the time for saving"""


class Life(NamedTuple):
    """One minute of the job: steps, and when they were saved, in seconds from its start."""

    before: int  # steps that it found
    first: tuple[int, float]  # the first checkpoint with new steps
    last: tuple[int, float]


def one_life(folder: Path, c: Goodput) -> Life:
    where = ["--output", str(folder.parent), "--name", folder.name]
    if (folder / "config.json").exists():
        where = ["--resume", str(folder)]
    job = ["-m", "experiments.train", "--hidden", str(c.hidden), "--epochs", "1000000"]
    job += ["--saving", str(c.saving), *where]
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder.parent)}
    (before, _), began = newest(folder), time.time()
    with subprocess.Popen(
        [sys.executable, *job], env=os.environ | bytecode, stderr=subprocess.DEVNULL
    ) as process:
        while (first := newest(folder))[0] == before:
            if process.poll() is not None:
                raise SystemExit("the job ended by itself")
            time.sleep(0.005)
        time.sleep(max(0.0, began + c.seconds - time.time()))
        process.kill()
    return Life(before, *((step, when - began) for step, when in (first, newest(folder))))


def newest(folder: Path) -> tuple[int, float]:
    """The step of the newest checkpoint, and when it was written; without any, step 0."""
    files = checkpoint_files(folder / "checkpoints")
    return (step_of(files[-1]), files[-1].stat().st_mtime) if files else (0, 0.0)


def main(c: Goodput) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "run")
        one_life(folder, c)
        lives = [one_life(folder, c) for _ in range(c.kills)]
    pace = sum(x.last[1] - x.first[1] for x in lives) / sum(x.last[0] - x.first[0] for x in lives)
    starts = [x.first[1] - pace * (x.first[0] - x.before) for x in lives]
    useful = pace * mean(x.last[0] - x.before for x in lives)
    print("s to the first new step:", " ".join(f"{start:.2f}" for start in starts))
    print(
        f"{lives[-1].last[0]} steps, {1000 * pace:.1f} ms each; {mean(starts):.2f} s to the first"
    )
    print(f"of a life, {c.seconds - useful - mean(starts):.2f} s lost at its end, on average;")
    print(f"goodput {useful / c.seconds * (1 - c.saving):.1%}")


if __name__ == "__main__":
    main(tyro.cli(Goodput, description=__doc__))
