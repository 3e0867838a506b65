"""Twelve kinds of fault, and what a run should say of each."""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from experiments.soak.run import DAY, train
from jaxvae.training.checkpoints.resuming import checkpoint_files, step_of

DEVICES = 1, 2, 4, 8  # all share a batch of 32 evenly
BETWEEN_SAVES, IN_A_SAVE = "SIGKILL between saves", "SIGKILL in a save"
FORKED = multiprocessing.get_context("forkserver")


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
    """The kind that it became: a save may begin or end before the signal comes."""
    run.goes_on()
    until(lambda: saving == unfinished(run), run.hangs)
    run.signalled(signal.SIGKILL, -signal.SIGKILL)
    return IN_A_SAVE if unfinished(run) else BETWEEN_SAVES


def killed_early(run: Run) -> None:
    run.goes_on()
    run.signalled(signal.SIGKILL, -signal.SIGKILL)
    run.start()
    time.sleep(run.chance.uniform(0.0, 0.5))
    run.signalled(signal.SIGKILL, -signal.SIGKILL)


def sigterm(run: Run) -> None:
    run.goes_on()
    run.signalled(signal.SIGTERM, 143)


def sigint(run: Run) -> None:
    run.goes_on()
    run.signalled(signal.SIGINT, 130)


def disk_full(run: Run) -> None:
    run.goes_on()
    size = checkpoint_files(run.folder)[-1].stat().st_size
    limit = run.chance.randrange(2000, size), resource.RLIM_INFINITY  # of what it says, too
    assert run.process.pid is not None
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, limit)
    run.ends(1, "can't be written: File too large; the last good one is step_")


def folder_read_only(run: Run) -> None:
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


def damage(run: Run, change: Callable[[bytearray], bytearray]) -> None:
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
        raise SystemExit(f"nothing was said of what happened to {newest.name}")


def byte_flipped(run: Run) -> None:
    def flip(content: bytearray) -> bytearray:
        content[run.chance.randrange(len(content))] ^= 1 << run.chance.randrange(8)
        return content

    damage(run, flip)


def file_truncated(run: Run) -> None:
    damage(run, lambda content: content[: run.chance.randrange(len(content))])


def clock_back(run: Run) -> None:
    """Its process's clock, and what the files will look like to the next."""
    run.goes_on()
    assert run.process.pid is not None
    os.kill(run.process.pid, signal.SIGUSR1)
    for path in checkpoint_files(run.folder):
        if path.exists():
            os.utime(path, (time.time() + DAY, time.time() + DAY))
    run.goes_on()


def other_devices(run: Run) -> None:
    run.goes_on()
    run.signalled(signal.SIGTERM, 143)
    run.devices = run.chance.choice([n for n in DEVICES if n != run.devices])
    run.start()
    run.goes_on()


def second_process(run: Run) -> None:
    run.goes_on()
    said = run.said.with_suffix(".second")
    second = FORKED.Process(target=train, args=(run.folder, said, 1, 10**6))
    second.start()
    second.join()
    check(second, said, 1, "is being written by another run")
    run.goes_on()


FAULTS: dict[str, Callable[[Run], str | None]] = {
    BETWEEN_SAVES: partial(killed, saving=False),
    IN_A_SAVE: partial(killed, saving=True),
    "SIGKILL in the start": killed_early,
    "SIGTERM": sigterm,
    "SIGINT": sigint,
    "disk full": disk_full,
    "folder read-only": folder_read_only,
    "a byte flipped": byte_flipped,
    "truncated": file_truncated,
    "clock set back": clock_back,
    "other devices": other_devices,
    "second process": second_process,
}  # name -> what does it, and returns another kind where that came of it


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
