"""What is measured on one accelerator, in the order of its worth, and how a cut run goes on.

    python -m experiments.benchmarks.accelerator.stages OUT --seconds 530

A stage is a list of measurements made by processes of its own within its own time limit. Every
measurement is a file, OUT/stage/measurement.json, written once it is known. A process that dies
costs the measurement it was at, and another takes up the rest; one that is cut leaves its
measurement to the next run, which comes back to it last. What has a file is not measured again.

This file imports neither JAX nor PyTorch.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

MEASURE = "experiments.benchmarks.accelerator.measure"


class Stage(NamedTuple):
    """One stage.

    Args:
      name: of its folder.
      limit: in seconds.
      job: peer, or the module beside this one that measures.
      measurements: by their names, in the order of their worth.
      flags: of XLA.
      apart: every measurement has a process of its own, so that its peak memory is its own.
      at_once: how many processes side by side, if there are as many cores.
      module: what measures: it is called with a folder, the job and names.
    """

    name: str
    limit: float
    job: str
    measurements: tuple[str, ...]
    flags: str = ""
    apart: bool = False
    at_once: int = 1
    module: str = MEASURE


WORKLOADS = ("W1", "W2", "W3", "W5")
COMPILED = ("PyTorch, CUDA graphs", "PyTorch, compiled", "PyTorch, one CUDA graph")
WHILE = "--xla_gpu_enable_command_buffer=+WHILE"
FLAGS = {
    "WHILE in command buffers": WHILE,
    "WHILE, unrolled": f"{WHILE} --xla_gpu_command_buffer_unroll_loops=true",
    "loops double buffered": "--xla_gpu_enable_while_loop_double_buffering=true",
    "no command buffers": "--xla_gpu_enable_command_buffer=",
}


def of_peers(workloads: Sequence[str], peers: Sequence[str], dtype: str) -> tuple[str, ...]:
    return tuple(f"{w}/{dtype}/{peer}" for w in workloads for peer in peers)


STAGES = (
    Stage("peaks", 30, "peaks", ("device", "launches", "products", "memory")),
    # where we stand
    Stage(
        "jaxvae", 80, "peer", of_peers((*WORKLOADS, "digits x1024"), ["jaxvae"], "float32"),
        apart=True,
    ),
    # PyTorch compiles for a minute a network, on one core: all at once, kept on disk
    Stage(
        "compilation", 50, "peer", of_peers(WORKLOADS, COMPILED, "float32"), apart=True, at_once=12
    ),
    Stage(
        "PyTorch", 60, "peer", of_peers(WORKLOADS, (*COMPILED, "PyTorch, best effort"), "float32")
    ),
    Stage(
        "seeds", 45, "peer",
        of_peers(["W1 x16", "W1 x1", "digits x64", "W1 x64", "W1 x1024", "W1 x4", "W1 x256"],
                 ["jaxvae"], "float32"),
    ),
    Stage(
        "seeds by PyTorch", 30, "peer",
        of_peers(["W1 x16", "digits x64"], ["PyTorch, torch.func", "PyTorch, torch.func compiled"],
                 "float32"),
    ),
    # what makes it faster
    Stage(
        "programs", 80, "programs",
        ("W1/scan", "W1/scan, 8 written out", "W1/loop of traced length", "W2/scan",
         "W1/one key a batch", "W1/donated state", "W3/scan", "W3/products", "W5/scan",
         "W1/scan, 32 written out", "W2/scan, 8 written out", "W1/bfloat16",
         "W1/keys of the device's generator", "W1/a call a step", "W2/one key a batch",
         "W3 x16/scan", "W3 x16/products"),
    ),
    *(Stage(name, 16, "programs", ("W1/scan", "W2/scan"), flags) for name, flags in FLAGS.items()),
    # a deep hierarchy
    Stage("deep", 90, "deep", ("written out", "scanned", "written out, bfloat16")),
    Stage("deep, WHILE in command buffers", 60, "deep", ("scanned", "written out"), WHILE),
    # the second row of everything
    Stage("jaxvae in bfloat16", 60, "peer", of_peers(WORKLOADS, ["jaxvae"], "bfloat16")),
    Stage(
        "PyTorch in bfloat16", 90, "peer",
        of_peers(WORKLOADS, ("PyTorch, CUDA graphs", "PyTorch, best effort"), "bfloat16"),
    ),
    Stage("NumPyro", 30, "peer", of_peers(["W1", "W2"], ["NumPyro SVI"], "float32")),
)  # fmt: skip


def path_of(folder: Path, measurement: str) -> Path:
    return folder / f"{re.sub(r'[^a-zA-Z0-9]+', '-', measurement)}.json"


def write(folder: Path, measurement: str, found: dict[str, Any]) -> None:
    """The whole file or none."""
    path = path_of(folder, measurement)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps({"name": measurement} | found, indent=2) + "\n")
    unfinished.replace(path)


def read(folder: Path, measurement: str) -> dict[str, Any]:
    """What was written, empty where nothing was."""
    path = path_of(folder, measurement)
    return json.loads(path.read_text()) if path.exists() else {}


KINDS = ("measured", "error", "cut", "missing", "not reached")


def kind_of(found: dict[str, Any]) -> str:
    """How a measurement went, one of `KINDS`."""
    if not found:
        return "not reached"
    return next((kind for kind in KINDS if kind in found), "measured")


class Processes:
    """Those under way, so that none outlives this one.

    Args:
      cache: a folder for what PyTorch compiles. A process that was killed leaves half a file, so
        another run needs another folder; JAX keeps nothing, so that it is seen to compile.
    """

    def __init__(self, cache: str) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        self.env = os.environ | {
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "JAX_COMPILATION_CACHE_DIR": "",
        }

    def run(self, command: Sequence[str], flags: str, log: Path, seconds: float) -> int | None:
        """The exit status, or None where time was up."""
        env = self.env | {"XLA_FLAGS": f"{self.env.get('XLA_FLAGS', '')} {flags}".strip()}
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env=env, start_new_session=True
            )
            self.running.add(process)
            end = time.monotonic() + seconds
            while not (over := ended(process)) and time.monotonic() < end:
                time.sleep(0.02)
            self.running.discard(process)
            kill(process)  # with all that it started
            status = process.wait()
            return status if over else None

    def stop(self, *_: Any) -> None:
        self.stopped = True
        for process in list(self.running):
            kill(process)
        raise SystemExit(143)


def ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has; it is not reaped, so that its number is given to nobody else yet."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, how) is not None


def kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run_stage(stage: Stage, out: Path, seconds: float, processes: Processes) -> None:
    """Measure what has no file yet, within `seconds` or the stage's limit."""
    folder, limit = out / stage.name, min(stage.limit, seconds)
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    records = {name: read(folder, name) for name in stage.measurements}
    settled = ("measured", "error")
    todo = [name for name, found in records.items() if kind_of(found) not in settled]
    todo.sort(key=lambda name: kind_of(records[name]) == "cut")
    for name in todo:  # a package may have come since
        path_of(folder, name).unlink(missing_ok=True)

    def settle(names: list[str]) -> None:
        while (left := [n for n in names if not read(folder, n)]) and not processes.stopped:
            log = path_of(folder, left[0]).with_suffix(".log")
            rest = limit - (time.monotonic() - begun)
            command = [sys.executable, "-m", stage.module, str(folder), stage.job, *left]
            status = processes.run(command, stage.flags, log, rest) if rest > 0 else None
            lost = [n for n in left if not read(folder, n)]
            if not lost or processes.stopped:
                return
            if status is None:
                return write(folder, lost[0], {"cut": round(limit, 1)}) if rest > 0 else None
            said = log.read_text(errors="replace").strip().splitlines() or [""]
            write(folder, lost[0], {"error": f"exit status {status}: {said[-1]}"})

    groups = [[name] for name in todo] if stage.apart else [todo]
    with ThreadPoolExecutor(min(stage.at_once, os.cpu_count() or 1)) as pool:
        list(pool.map(settle, groups))
    kinds = Counter(kind_of(read(folder, name)) for name in stage.measurements)
    said = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
    print(f"{stage.name}: {said}; {time.monotonic() - begun:.0f} s", flush=True)


def run(stages: Sequence[Stage], out: Path, seconds: float) -> None:
    """All stages, until the time is up."""
    begun = time.monotonic()
    with TemporaryDirectory() as cache:
        processes = Processes(cache)
        before = signal.signal(signal.SIGTERM, processes.stop)
        try:
            for stage in stages:
                left = seconds - (time.monotonic() - begun)
                if left > 0:
                    run_stage(stage, out, left, processes)
                else:
                    print(f"{stage.name}: not reached")
        finally:
            signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=530.0, help="for everything")
    parser.add_argument("--patience", type=float, default=1.0, help="times every stage's limit")
    parser.add_argument("--stages", nargs="+", choices=[s.name for s in STAGES])
    options = parser.parse_args(arguments)
    stages = [
        stage._replace(limit=options.patience * stage.limit)
        for stage in STAGES
        if options.stages is None or stage.name in options.stages
    ]
    run(stages, options.out, options.seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
