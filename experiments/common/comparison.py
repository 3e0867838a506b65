"""What scripts that compare models share: a report over seeds, of runs that can be ended."""

import hashlib
import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.progress import bar
from jaxvae.training import load_checkpoint, read_checkpoint, save_checkpoint


class Comparison(NamedTuple):
    """For each label a list over the seeds: of what was measured, and of the trained models."""

    results: dict[str, list[Any]]
    models: dict[str, list[Any]]

    @property
    def firsts(self) -> dict[str, Any]:
        """The model of seed 0 of every label."""
        return {label: of_seeds[0] for label, of_seeds in self.models.items()}


def compare(
    name: str,
    runs: dict[str, Callable[[jax.Array], Any]],
    measure: Callable[[jax.Array, Any], Any],
    *,
    seeds: int,
    unit: str = "",
) -> Comparison:
    """Train and measure every model from every seed; print mean and spread, and keep each number.

    A trained model is kept, under a hash of all that it was computed from: of the same command
    after it was ended, only what was not trained yet is trained. `rm -r runs/NAME` starts anew.

    Args:
      name: of the folder in runs/ that result.json goes to.
      runs: key -> trained model, a pure function that closes over its data; each is compiled once.
      measure: (key, model) -> a number, or several by what they are.
      seeds: how many: keys 0, 1, ... train and 1000, 1001, ... measure.
      unit: of the number.

    Returns:
      The numbers and the models of every label, seed by seed.
    """
    results: dict[str, list[Any]] = {}
    models: dict[str, list[Any]] = {}
    folder = Path("runs") / name
    with bar(len(runs) * seeds) as at:
        for label, run in runs.items():
            start, trained, before = time.process_time(), kept(run, folder / "models"), 0.0
            results[label], models[label] = [], []
            for seed in range(seeds):
                at(f"{label}, seed {seed}")
                model, spent = trained(seed)
                before += spent
                models[label].append(model)
                measured = measure(jax.random.key(1000 + seed), model)
                results[label].append(jax.tree.map(float, measured))
                print(f"{label}, seed {seed}: {_said(results[label][-1], unit)}", flush=True)
            minutes = (before + time.process_time() - start) / 60
            mean, spread = (
                jax.tree.map(lambda *values, of=of: of(values), *results[label])
                for of in (np.mean, _spread)
            )
            print(f"{label}: {_said(mean, unit, spread)}, {minutes:.1f} min of processor time")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(results, indent=2) + "\n")
    return Comparison(results, models)


def kept(run: Callable[[jax.Array], Any], folder: Path) -> Callable[[int], tuple[Any, float]]:
    """seed -> (trained model, seconds of processor time of an earlier call), from a file or now.

    A file is found again by what is computed: the program and all its constants, the data among
    them, on what it runs, and the seed.
    """
    lowered = jax.jit(run).lower(jax.random.key(0))
    compiled = cache(lowered.compile)
    computed = hashlib.sha256(f"{jax.__version__} {jax.default_backend()}\n".encode())
    computed.update(lowered.as_text().encode())

    def trained(seed: int) -> tuple[Any, float]:
        path = folder / f"{computed.hexdigest()[:16]}_{seed}.ckpt"
        if path.exists():
            seconds = read_checkpoint(path, leaves=False).info["seconds"]
            return load_checkpoint(path, lowered.out_info), seconds
        start = time.process_time()
        model = jax.block_until_ready(compiled()(jax.random.key(seed)))
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, model, info={"seconds": time.process_time() - start})
        return model, 0.0

    return trained


def _spread(values: tuple[float, ...]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def _said(numbers: Any, unit: str, spread: Any = None) -> str:
    if not isinstance(numbers, dict):
        numbers, spread = {unit: numbers}, {unit: spread}
    of = {
        name: "" if spread is None or spread[name] is None else f" +- {spread[name]:.3f}"
        for name in numbers
    }
    return ", ".join(f"{value:.3f}{of[name]} {name}" for name, value in numbers.items())
