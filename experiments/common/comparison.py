"""What scripts that compare models share: a report over seeds."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.progress import bar


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

    Args:
      name: of the folder in runs/ that result.json goes to.
      runs: key -> trained model, pure; each is compiled once.
      measure: (key, model) -> a number, or several by what they are.
      seeds: how many: keys 0, 1, ... train and 1000, 1001, ... measure.
      unit: of the number.

    Returns:
      The numbers and the models of every label, seed by seed.
    """
    results: dict[str, list[Any]] = {}
    models: dict[str, list[Any]] = {}
    with bar(len(runs) * seeds) as at:
        for label, run in runs.items():
            compiled, start = jax.jit(run), time.process_time()
            results[label], models[label] = [], []
            for seed in range(seeds):
                at(f"{label}, seed {seed}")
                models[label].append(compiled(jax.random.key(seed)))
                measured = measure(jax.random.key(1000 + seed), models[label][-1])
                results[label].append(jax.tree.map(float, measured))
                print(f"{label}, seed {seed}: {_said(results[label][-1], unit)}", flush=True)
            minutes = (time.process_time() - start) / 60
            mean, spread = (
                jax.tree.map(lambda *values, of=of: of(values), *results[label])
                for of in (np.mean, _spread)
            )
            print(f"{label}: {_said(mean, unit, spread)}, {minutes:.1f} min of processor time")
    path = Path("runs") / name / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    return Comparison(results, models)


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
