"""The main job, killed once a minute: how soon it makes new steps, how much of its time counts.

    python -m experiments.goodput               # ten kills, eleven minutes

Every minute the job is killed and started anew. Of that minute counts what lies between the first
checkpoint with new steps and the last one: before is the start, and what comes behind is lost.
Saving, by its setting one percent of the time, counts. The first start compiles all programs; it is
left out, so that those that are measured find a warm cache.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import tyro

from jaxvae.training.checkpoints.resuming import checkpoint_files, step_of


@dataclass(frozen=True)
class Goodput:
    kills: int = 10
    seconds: float = 60.0
    """between two of them"""
    hidden: int = 2000
    """units of the main job's networks"""


def one_life(folder: Path, c: Goodput) -> tuple[float, float]:
    """Seconds from the start of a process to its first new steps, and from its last to its end."""
    where = ["--output", str(folder.parent), "--name", folder.name]
    if (folder / "config.json").exists():
        where = ["--resume", str(folder)]
    job = ["-m", "experiments.train", "--hidden", str(c.hidden), "--epochs", "1000000", *where]
    before, began = newest(folder), time.time()
    with subprocess.Popen([sys.executable, *job], stderr=subprocess.DEVNULL) as process:
        while newest(folder) == before:
            if process.poll() is not None:
                raise SystemExit("the job ended by itself")
            time.sleep(0.005)
        started = time.time() - began
        time.sleep(max(0.0, c.seconds - started))
        process.kill()
        ended = time.time()
    return started, ended - checkpoint_files(folder / "checkpoints")[-1].stat().st_mtime


def newest(folder: Path) -> int:
    """The step of the newest checkpoint; of the one before all steps it is 0, as without any."""
    files = checkpoint_files(folder / "checkpoints")
    return step_of(files[-1]) if files else 0


def main(c: Goodput) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "run")
        one_life(folder, c)
        lives = []
        for _ in range(c.kills):
            lives.append(one_life(folder, c))
            print("{:.2f} s to the first new steps, {:.2f} s lost".format(*lives[-1]), flush=True)
        steps = newest(folder)
    starts, losses = zip(*lives, strict=True)
    share = 1 - (sum(starts) + sum(losses)) / (c.kills * c.seconds)
    print(f"{steps} steps; starts of {min(starts):.2f} to {max(starts):.2f} s, mean")
    print(f"{mean(starts):.2f}; {mean(losses):.2f} s lost on average; goodput {share:.1%}")


if __name__ == "__main__":
    main(tyro.cli(Goodput, description=__doc__))
