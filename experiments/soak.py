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

import faulthandler
import multiprocessing
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import AxisType

import jaxvae
from jaxvae.pytrees import is_key
from jaxvae.training import CheckpointError, Checkpoints, read_checkpoint
from jaxvae.training.checkpoints.resuming import checkpoint_files, step_of

DEVICES = 1, 2, 4, 8  # all share a batch of 32 evenly
STEPS = 10  # an epoch
DAY = 86400.0
FORKED = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Soak:
    faults: int = 2000
    seed: int = 0


# the run


def absolute_error(weights: jax.Array, key: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
    """Less of x by W and noise of +-1: its gradients are whole numbers."""
    noise = jax.random.rademacher(key, x.shape, jnp.float32)
    return -jnp.abs(x - weights @ noise).sum(), None


def train(folder: Path, said: Path, devices: int, epochs: int, pause: float = 0.0) -> None:
    """The run, or what is left of it; `said` gets its errors and warnings."""
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), sys.stderr.fileno())
    # a shell's "&" has SIGINT ignored, in every program below it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, set_clock_back)
    faulthandler.register(signal.SIGUSR2)  # to ask where it hangs
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    optimizer = optax.chain(optax.trace(0.5), optax.scale_by_sign(), optax.scale(-(2.0**-10)))
    try:
        jaxvae.fit(
            jaxvae.train_step(absolute_error, optimizer),
            jaxvae.init_state(jnp.zeros((8, 8)), optimizer),
            jax.random.key(0),
            np.random.default_rng(0).integers(-2, 3, (32 * STEPS, 8)).astype(np.float32),
            epochs=epochs,
            batch_size=32,
            steps_per_call=3,
            callbacks=[lambda *_: time.sleep(pause)],
            checkpoints=Checkpoints(folder, share=np.inf if pause else 0.01),  # inf: at every look
            mesh=jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,)),
        )
    except CheckpointError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def set_clock_back(*_: object) -> None:
    time.time = lambda now=time.time: now() - DAY


# what is done to it


class Run:
    """The process that trains in a folder, one after another."""

    def __init__(self, folder: Path, chance: random.Random):
        self.folder, self.chance, self.devices = folder, chance, 1
        self.said = folder.with_suffix(".said")
        self.start()

    def start(self) -> None:
        args = self.folder, self.said, self.devices, 10**6, 0.01
        self.process = FORKED.Process(target=train, args=args, daemon=True)
        self.process.start()

    def steps(self) -> int:
        """Up to the newest checkpoint."""
        files = checkpoint_files(self.folder)
        return step_of(files[-1]) if files else -1

    def goes_on(self) -> None:
        """Wait until it has saved new steps."""
        before = self.steps()
        until(lambda: self.steps() > before or not self.process.is_alive(), self.hangs)
        if not self.process.is_alive():
            raise SystemExit(f"it ended by itself:\n{self.said.read_text()}")
        time.sleep(self.chance.uniform(0.0, 0.05))

    def ends(self, code: int, message: str = "") -> None:
        """Wait until it has ended so, and said so."""
        until(lambda: not self.process.is_alive(), self.hangs)
        check(self.process, self.said, code, message)

    def hangs(self) -> str:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGUSR2)
        time.sleep(1.0)
        return f"it does not go on:\n{self.said.read_text()}"

    def signalled(self, number: signal.Signals, code: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        self.ends(code)


def killed(run: Run, saving: bool) -> str:
    run.goes_on()
    until(lambda: saving == unfinished(run), run.hangs)
    run.signalled(signal.SIGKILL, -signal.SIGKILL)
    return "SIGKILL in a save" if unfinished(run) else "SIGKILL between saves"


def killed_early(run: Run) -> str:
    run.goes_on()
    run.signalled(signal.SIGKILL, -signal.SIGKILL)
    run.start()
    time.sleep(run.chance.uniform(0.0, 0.5))
    run.signalled(signal.SIGKILL, -signal.SIGKILL)
    return "SIGKILL in the start"


def sigterm(run: Run) -> str:
    run.goes_on()
    run.signalled(signal.SIGTERM, 143)
    return "SIGTERM"


def sigint(run: Run) -> str:
    run.goes_on()
    run.signalled(signal.SIGINT, 130)
    return "SIGINT"


def disk_full(run: Run) -> str:
    run.goes_on()
    size = checkpoint_files(run.folder)[-1].stat().st_size
    limit = run.chance.randrange(2000, size), resource.RLIM_INFINITY  # of what it says, too
    assert run.process.pid is not None
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, limit)
    run.ends(1, "can't be written: File too large; the last good one is step_")
    return "disk full"


def folder_read_only(run: Run) -> str:
    run.goes_on()
    closed, opened = ["chmod", "u-w"], ["chmod", "u+w"]
    if os.geteuid() == 0:
        closed, opened = ["chattr", "+i"], ["chattr", "-i"]
    subprocess.run([*closed, run.folder], check=True)
    try:
        run.ends(1, "error: ")  # it "can't be written", or one "can't be removed"
        run.start()
        run.ends(1, "can't be written: ")
    finally:
        subprocess.run([*opened, run.folder], check=True)
    return "folder read-only"


def damage(run: Run, change: Callable[[bytearray], bytearray], name: str) -> str:
    """Of the newest checkpoint, between two processes."""
    run.goes_on()
    while len(checkpoint_files(run.folder)) < 2:  # of the only one nothing would be left
        run.goes_on()
    run.signalled(signal.SIGKILL, -signal.SIGKILL)
    newest = checkpoint_files(run.folder)[-1]
    newest.write_bytes(change(bytearray(newest.read_bytes())))
    run.start()
    run.goes_on()
    if "looking for the one before" not in run.said.read_text():
        raise SystemExit(f"{name}: nothing was said of it")
    return name


def byte_flipped(run: Run) -> str:
    def flip(content: bytearray) -> bytearray:
        content[run.chance.randrange(len(content))] ^= 1 << run.chance.randrange(8)
        return content

    return damage(run, flip, "a byte flipped")


def file_truncated(run: Run) -> str:
    return damage(run, lambda content: content[: run.chance.randrange(len(content))], "truncated")


def clock_back(run: Run) -> str:
    """Its process's clock, and what the files will look like to the next."""
    run.goes_on()
    assert run.process.pid is not None
    os.kill(run.process.pid, signal.SIGUSR1)
    for path in checkpoint_files(run.folder):
        if path.exists():
            os.utime(path, (time.time() + DAY, time.time() + DAY))
    run.goes_on()
    return "clock set back"


def other_devices(run: Run) -> str:
    run.goes_on()
    run.signalled(signal.SIGTERM, 143)
    run.devices = run.chance.choice([n for n in DEVICES if n != run.devices])
    run.start()
    run.goes_on()
    return "other devices"


def second_process(run: Run) -> str:
    run.goes_on()
    said = run.said.with_suffix(".second")
    second = FORKED.Process(target=train, args=(run.folder, said, 1, 10**6))
    second.start()
    second.join()
    check(second, said, 1, "is being written by another run")
    run.goes_on()
    return "second process"


FAULTS: list[Callable[[Run], str]] = [
    partial(killed, saving=False), partial(killed, saving=True), killed_early, sigterm, sigint,
    disk_full, folder_read_only, byte_flipped, file_truncated, clock_back, other_devices,
    second_process,
]  # fmt: skip


# how it is looked at


def until(it: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    end = time.monotonic() + 60
    while not it():
        if time.monotonic() > end:
            raise SystemExit(otherwise())
        time.sleep(1e-4)


def unfinished(run: Run) -> bool:
    """Whether a checkpoint is being written, or was when its process ended."""
    return any(run.folder.glob(".step_*.part"))


def check(process: BaseProcess, said: Path, code: int, message: str) -> None:
    told = said.read_text()
    if process.exitcode != code or message not in told:
        raise SystemExit(f"ended by {process.exitcode}, not {code} and {message!r}:\n{told}")


def arrays(folder: Path) -> dict[str, np.ndarray]:
    leaves = read_checkpoint(checkpoint_files(folder)[-1]).leaves
    return {p: np.asarray(jax.random.key_data(v) if is_key(v) else v) for p, v in leaves.items()}


def main(c: Soak) -> None:
    FORKED.set_forkserver_preload(["jaxvae", "tyro"])
    chance, met, seconds = random.Random(c.seed), Counter[str](), list[float]()
    faults = [FAULTS[i % len(FAULTS)] for i in range(c.faults)]
    chance.shuffle(faults)
    with tempfile.TemporaryDirectory() as scratch:
        folder, alone = Path(scratch, "run"), Path(scratch, "alone")
        for devices in DEVICES:  # every program is compiled: to begin, and to go on
            for epochs in (1, 2):
                run_to_end(Path(scratch, f"{devices}"), devices, epochs)
        programs = compiled(scratch)
        began = time.monotonic()
        run = Run(folder, chance)
        for number, fault in enumerate(faults, 1):
            start = time.monotonic()
            met[fault(run)] += 1
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
    if len(met) < len(FAULTS):
        raise SystemExit(f"only {len(met)} kinds of {len(FAULTS)} were met")
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


def same(path: str, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return path in a and path in b and a[path].tobytes() == b[path].tobytes()


if __name__ == "__main__":
    main(tyro.cli(Soak, description=__doc__))
