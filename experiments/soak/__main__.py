"""One run that meets two thousand faults, and ends as one that nobody touched.

    python -m experiments.soak                  # or: make soak

A run is killed, in saves and between them, stopped by SIGTERM and by SIGINT, moved to another
number of devices; its disk fills up, its folder can only be read, bytes of its newest checkpoint
change or are cut off, its clock is set back, and another process wants its folder. After each it
makes new steps, and what it says of a fault is compared with what it should say. At the end a
second run makes as many steps undisturbed, on one device: every array of the last checkpoints must
be equal to the last bit.

Equal bits on other numbers of devices need sums that are exact in every order. So what is trained
is small: the weights of a median regression on whole numbers, with noise of +-1, by the signs of a
momentum that halves. All of its numbers are multiples of 2^-10, or one number at a time.

Each process is forked from one that has imported jaxvae and nothing else done; it begins with
finding its devices. Programs come from the compilation cache: none may be compiled under way. The
disk is "full" by a limit on the size of the process's files; the folder is closed by its mode, and
where root runs this, who heeds none, by chattr; the clock is Python's time.time, and the dates of
the files.

Exit code 1: the arrays differ, a kind of fault was never met, or one was met in another way.
"""

import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import tyro

from experiments.soak.faults import DEVICES, FAULTS, FORKED, Run, check
from experiments.soak.run import STEPS, arrays, same, train


@dataclass(frozen=True)
class Soak:
    faults: int = 2000
    seed: int = 0


def main(c: Soak) -> None:
    FORKED.set_forkserver_preload(["jaxvae", "tyro"])
    chance, met, seconds = random.Random(c.seed), Counter[str](), list[float]()
    faults = list(islice(cycle(FAULTS), c.faults))
    chance.shuffle(faults)
    with tempfile.TemporaryDirectory() as scratch:
        folder, alone = Path(scratch, "run"), Path(scratch, "alone")
        for devices in DEVICES:  # every program is compiled: to begin, and to go on
            for epochs in (1, 2):
                run_to_end(Path(scratch, f"{devices}"), devices, epochs)
        programs = compiled(scratch)
        began = time.monotonic()
        run = Run(folder, chance)
        for number, kind in enumerate(faults, 1):
            start = time.monotonic()
            met[FAULTS[kind](run) or kind] += 1
            if not run.process.is_alive():
                run.start()
            seconds.append(time.monotonic() - start)
            if number % 100 == 0:
                minutes = (time.monotonic() - began) / 60
                print(f"{number} faults, {run.steps()} steps, {minutes:.1f} minutes", flush=True)
        run.goes_on()
        run.signalled(signal.SIGTERM, 143)
        if new := compiled(scratch) - programs:
            raise SystemExit(f"compiled under way, not cached: {', '.join(new)}")
        epochs = run.steps() // STEPS + 1
        run_to_end(folder, 1, epochs)
        run_to_end(alone, 1, epochs)
        expected, found = arrays(alone), arrays(folder)
    for name, count in sorted(met.items()):
        print(f"{count:5} {name}")
    print(f"{c.faults} faults in {(time.monotonic() - began) / 60:.1f} minutes, one in "
          f"{statistics.median(seconds):.2f} s, in {max(seconds):.1f} s at most; "
          f"{epochs * STEPS} steps, {len(expected)} arrays compared")  # fmt: skip
    if never := FAULTS.keys() - met.keys():
        raise SystemExit(f"never met: {', '.join(never)}")
    different = [p for p in expected.keys() | found.keys() if not same(p, expected, found)]
    if different:
        raise SystemExit(f"different: {', '.join(different)}")
    print("equal to the last bit")


def run_to_end(folder: Path, devices: int, epochs: int) -> None:
    said = folder.with_suffix(".said")
    process = FORKED.Process(target=train, args=(folder, said, devices, epochs))
    process.start()
    process.join()
    check(process, said, 0, "")


def compiled(scratch: str) -> set[str]:
    return {path.name for path in Path(scratch, "programs").glob("*-cache")}


if __name__ == "__main__":
    main(tyro.cli(Soak, description=__doc__))
