"""Measurements of one stage, each written once it is known.

python -m experiments.benchmarks.accelerator.measure FOLDER JOB NAME...
"""

import argparse
import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.benchmarks import measure as peers
from experiments.benchmarks.accelerator import sizes
from experiments.benchmarks.accelerator.stages import write


def peer(name: str) -> dict[str, Any]:
    """`W1/float32/jaxvae`: see `peers.timed`."""
    workload, dtype, who = name.split("/")
    w = sizes.workload(workload, dtype)
    began = time.perf_counter()
    return peers.timed(who, w, lambda: sizes.images(w), began, seconds=sizes.SECONDS)


def main(folder: Path, job: str, names: list[str]) -> None:
    """What goes wrong in Python is a result too; without the process that asked, nothing is."""
    parent = os.getppid()
    for name in names:
        if os.getppid() != parent:
            return
        try:
            if job == "peer":
                found = peer(name)
            else:
                module = import_module(f"experiments.benchmarks.accelerator.{job}")
                found = module.measure(name)
        except Exception as error:
            package = str(error.name) if isinstance(error, ModuleNotFoundError) else ""
            said = (str(error).strip().splitlines() or [""])[0]
            if package and package.split(".")[0] not in ("experiments", "jaxvae"):
                found = {"missing": package}
            else:
                found = {"error": f"{type(error).__name__}: {said}"}
        write(folder, name, found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("job")
    parser.add_argument("names", nargs="+")
    options = parser.parse_args()
    main(options.folder, options.job, options.names)
