"""One peer on one workload, in a process of its own: prints one line of JSON.

python -m experiments.benchmarks.measure jaxvae W1
"""

import importlib
import json
import resource
import sys
import time

import numpy as np

from experiments.benchmarks.workloads import WORKLOADS, pixels

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


def measure(peer: str, workload: str) -> dict[str, float]:
    """Seconds and examples of one run.

    Returns:
      `examples_per_second`, at the median look after the first; `import_seconds`;
      `first_step_seconds`, from the imports' end to the end of the first step, the other steps of
      the first look left out; `peak_megabytes` of the process; and the last `loss`.
    """
    w, began = WORKLOADS[workload], time.perf_counter()
    module, function = PEERS[peer].split(":")
    train = getattr(importlib.import_module(f"experiments.benchmarks.peers.{module}"), function)
    images, imported = pixels(w.chunk * w.batch, w.shape), time.perf_counter()
    looks: list[float] = []
    losses: list[float] = []

    def look(loss: float) -> None:
        losses.append(float(loss))
        looks.append(time.perf_counter())

    train(w, images, look)
    seconds = float(np.median(np.diff(looks)))
    steps = w.chunk * w.seeds
    return {
        "examples_per_second": w.examples / seconds,
        "import_seconds": imported - began,
        "first_step_seconds": looks[0] - imported - seconds * (steps - 1) / steps,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss": losses[-1],
    }


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
