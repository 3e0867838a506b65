"""One peer on one workload, in a process of its own: prints one line of JSON.

python -m experiments.benchmarks.measure jaxvae W1
"""

import argparse
import importlib
import json
import resource
import sys
import time
from contextlib import suppress
from typing import Any

import numpy as np

from experiments.benchmarks.workloads import WORKLOADS, Workload, pixels

PEERS = {
    "jaxvae": "ours:train",
    "Flax loop": "flax_loop:train",
    "NumPyro SVI": "numpyro_svi:train",
    "PyTorch, best effort": "pytorch:train",
    "PyTorch, compiled": "pytorch:compiled",
    "PyTorch, eager": "pytorch:eager",
    "pythae": "pythae_trainer:train",
    "matmuls alone, JAX": "matmuls:train",
    "matmuls alone, PyTorch": "pytorch:matmuls",
}
ON_ACCELERATORS = {
    "PyTorch, CUDA graphs": "pytorch:graphs",
    "PyTorch, one CUDA graph": "pytorch:one_graph",
    "PyTorch, torch.func": "pytorch_ensemble:train",
    "PyTorch, torch.func compiled": "pytorch_ensemble:compiled",
}


class Enough(Exception):
    """Raised by a look at the clock when there is nothing more to learn."""


def measure(peer: str, workload: str) -> dict[str, float]:
    """Seconds and examples of one run of one of `WORKLOADS`: see `timed`."""
    w, began = WORKLOADS[workload], time.perf_counter()
    found = timed(peer, w, lambda: pixels(w.chunk * w.batch, w.shape), began)
    return {name: value for name, value in found.items() if value is not None}


def timed(
    peer: str, w: Workload, images: Any, began: float, seconds: float | None = None
) -> dict[str, float | None]:
    """One peer's run of a workload.

    Args:
      peer: one of `PEERS` or `ON_ACCELERATORS`.
      w: the workload.
      images: () -> the data.
      began: when the process did.
      seconds: how long to go on looking; by default just `w.looks` times, and never fewer.

    Returns:
      `examples_per_second`, at the median look after the first; `import_seconds`;
      `first_look_seconds`, with the imports;
      `first_step_seconds`, from the imports' end to the end of the first step, the other steps of
      the first look left out; `peak_megabytes` of the process; `device_megabytes`, the peak on an
      accelerator; and the `loss` at look `w.looks`.
    """
    module, function = (PEERS | ON_ACCELERATORS)[peer].split(":")
    train = getattr(importlib.import_module(f"experiments.benchmarks.peers.{module}"), function)
    data, imported = images(), time.perf_counter()
    looks: list[float] = []
    losses: list[float] = []

    def look(loss: float) -> None:
        losses.append(float(loss))
        looks.append(time.perf_counter())
        if seconds is not None and len(looks) >= w.looks and looks[-1] - looks[0] > seconds:
            raise Enough

    with suppress(Enough):
        train(w if seconds is None else w._replace(looks=10**6), data, look)
    between = float(np.median(np.diff(looks)))
    steps = w.chunk * w.runs
    return {
        "examples_per_second": w.examples / between,
        "import_seconds": imported - began,
        "first_look_seconds": looks[0] - began,
        "first_step_seconds": looks[0] - imported - between * (steps - 1) / steps,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device_megabytes": device_megabytes(),
        "loss": losses[w.looks - 1],
    }


HIGHEST = [0.0]  # megabytes so far


def device_megabytes() -> float | None:
    """The peak on the accelerator since the last call; None on a CPU, or where it is not known.

    JAX tells the peak of the whole process: of a job that needs less than one before, it is not.
    """
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    import jax

    stats = jax.local_devices()[0].memory_stats()
    peak = stats["peak_bytes_in_use"] / 2**20 if stats else 0.0
    HIGHEST.append(max(HIGHEST[-1], peak))
    return peak if peak > HIGHEST[-2] else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=[*PEERS, *ON_ACCELERATORS])
    parser.add_argument("workload", choices=WORKLOADS)
    print(json.dumps(measure(**vars(parser.parse_args()))))
