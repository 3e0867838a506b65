"""Kill the main job at random moments, let it go on, and compare with a run nobody touched.

    python -m experiments.soak                  # 40 kills; or: make soak

One run of the main job is left alone. A second one of the same arguments is ended again and again:
by SIGKILL, SIGTERM and SIGINT, while it starts, compiles, trains, saves or evaluates, and now and
then a byte of its newest checkpoint is flipped meanwhile. At the end every array of the last
checkpoints must be equal to the last bit, and so must the lines of metrics.jsonl and the result.

Exit code 1: they differ, or a run ended in a way of its own.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from jaxvae.pytrees import is_key
from jaxvae.training import read_checkpoint
from jaxvae.training.checkpoints.resuming import checkpoint_files

# the main job, on a small network
TRAIN = [sys.executable, "-m", "experiments.train", "--hidden", "64", "--latent", "4"]
SPEED = "examples_per_second"  # the one metric in which two runs may differ


@dataclass(frozen=True)
class Soak:
    kills: int = 40
    epochs: int = 15_000
    """of each run; so many that it is still under way after all kills"""
    seed: int = 0


def main(c: Soak) -> None:
    # a shell's "&" has SIGINT ignored, in every program below it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chance, ends, flips = random.Random(c.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as scratch:
        alone, troubled = Path(scratch, "alone"), Path(scratch, "troubled")
        began = time.perf_counter()
        if start(alone, c.epochs).wait():
            raise SystemExit("the run nobody touched failed")
        print(f"left alone: {time.perf_counter() - began:.0f} s")
        for kill in range(c.kills):
            process = start(troubled, c.epochs)
            ends[end(process, troubled, chance)] += 1
            files = checkpoint_files(troubled / "checkpoints")
            if len(files) > 1 and chance.random() < 0.15:
                flip_a_byte(files[-1], chance)
                flips += 1
            step = int(files[-1].stem.removeprefix("step_")) if files else 0
            print(f"kill {kill + 1}: newest step {step}", flush=True)
        process = start(troubled, c.epochs)
        errors = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"the last run failed:\n{errors}")
        expected, found = numbers(alone), numbers(troubled)
    different = [n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)]
    print(f"{dict(ends)}, {flips} bytes flipped, {len(expected)} arrays and files compared")
    if different:
        raise SystemExit(f"different: {', '.join(different)}")
    print("equal to the last bit")


def start(folder: Path, epochs: int) -> subprocess.Popen[str]:
    """A run, gone on with where it has begun."""
    where = ["--output", str(folder.parent), "--name", folder.name]
    if (folder / "config.json").exists():
        where = ["--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)  # killed before it had begun
    return subprocess.Popen(
        [*TRAIN, "--epochs", str(epochs), *where],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str], folder: Path, chance: random.Random) -> str:
    """End a run at a random moment; says how."""
    before = newest(folder)
    if chance.random() < 0.25:  # any moment, most of them before the first step
        time.sleep(chance.uniform(0.0, 8.0))
    else:
        while newest(folder) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 4.0))
    number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    process.send_signal(number)
    errors = process.communicate()[1]
    # before its handlers are in place a signal ends it as it ends any program
    if process.returncode not in (-number, 128 + number):
        raise SystemExit(f"{number.name} ended a run with {process.returncode}:\n{errors}")
    return number.name


def newest(folder: Path) -> float:
    """When the newest checkpoint was written; 0 without any."""
    files = checkpoint_files(folder / "checkpoints")
    return files[-1].stat().st_mtime if files else 0.0


def flip_a_byte(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def numbers(folder: Path) -> dict[str, Any]:
    """All that two runs must share: arrays, lines and results."""
    leaves = read_checkpoint(checkpoint_files(folder / "checkpoints")[-1]).leaves
    arrays = {p: jax.random.key_data(v) if is_key(v) else v for p, v in leaves.items()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        **{path: (np.asarray(v).dtype, np.asarray(v).tobytes()) for path, v in arrays.items()},
        "metrics.jsonl": [{n: v for n, v in line.items() if n != SPEED} for line in lines],
        "result.json": json.loads((folder / "result.json").read_text()),
    }


if __name__ == "__main__":
    main(tyro.cli(Soak, description=__doc__))
