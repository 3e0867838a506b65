"""The workloads at the sizes of an accelerator; tiny ones where TINY is in the environment."""

import os

import numpy as np

from experiments.benchmarks.workloads import WORKLOADS, Workload, pixels

TINY = bool(os.environ.get("TINY"))
SECONDS = 0.05 if TINY else 0.8  # of looks at the clock
DIGITS = Workload(
    "digits", "64-256-z8 on 8x8, 100 epochs", "mlp", (256,), 8, "relu", 64, 1, 8, 2200, 2,
    shape=(8, 8, 1), sigma=0.2, betas=(0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
)  # fmt: skip
EPOCH = {"W1": 468, "W2": 600, "W3": 468, "W5": 100, "digits": 22}  # steps


def workload(name: str, dtype: str = "float32") -> Workload:
    """`W1`, or sixteen runs of it: `W1 x16`.

    >>> workload("W1 x16").seeds, workload("digits x64").runs
    (16, 64)
    """
    base, _, times = name.partition(" x")
    runs = int(times or 1)
    w = DIGITS if base == "digits" else WORKLOADS[base]
    looks = 3 if runs > 1 else 5
    # many runs make fewer steps between looks, so that one look stays below a second
    chunk = 2200 if base == "digits" else max(min(EPOCH[base], EPOCH[base] * 16 // runs), 32)
    w = w._replace(seeds=runs // len(w.betas) or 1, chunk=chunk, looks=looks, dtype=dtype)
    if TINY:
        small = {"hidden": (8,) * len(w.hidden), "latent": 2, "batch": 4, "looks": 2}
        w = w._replace(**small, num_samples=min(w.num_samples, 3), levels=min(w.levels, 2))
        w = w._replace(chunk=4, betas=w.betas[:2], seeds=min(w.seeds, 2))
    return w


def images(w: Workload) -> np.ndarray:
    """An epoch's rows, some again and again, as speed does not depend on what they show."""
    steps = 22 if w.shape == DIGITS.shape and not TINY else w.chunk
    rows = steps * w.batch
    return np.resize(pixels(min(rows, 2000), w.shape), (rows, *w.shape))
