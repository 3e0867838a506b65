"""What scripts that compare models share: a run as one program, and a report over seeds."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae


def train(
    make_model: Callable[[jax.Array], Any],
    objective: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    images: jax.Array,
    *,
    epochs: int,
    batch_size: int,
    **hyper: Any,
) -> Any:
    """A whole training run as a pure function of its key: returns the trained model.

    Args:
      make_model: key -> model.
      objective: of one image as stored.
      optimizer: any optax optimiser.
      key: the run's key.
      images: as stored, leading axis n.
      epochs: how many passes.
      batch_size: rows a batch.
      **hyper: hyper-parameters of the objective, or schedules of the step count.
    """
    init_key, run_key = jax.random.split(key)
    step = jaxvae.train_step(objective, optimizer)
    epoch = jaxvae.train_epoch(step, batch_size=batch_size)
    state, _ = jax.lax.scan(
        lambda state, _: epoch(state, run_key, images, **hyper),
        jaxvae.init_state(make_model(init_key), optimizer),
        length=epochs,
    )
    return state.model


def compare(
    name: str,
    runs: dict[str, Callable[[jax.Array], Any]],
    measure: Callable[[jax.Array, Any], Any],
    *,
    seeds: int,
    unit: str,
) -> dict[str, list[float]]:
    """Train and measure every model from every seed; print mean and spread, and keep each number.

    Args:
      name: of the folder in runs/ that result.json goes to.
      runs: key -> trained model, pure; each is compiled once.
      measure: (key, model) -> a number.
      seeds: how many: keys 0, 1, ... train and 1000, 1001, ... measure.
      unit: of the number.
    """
    results: dict[str, list[float]] = {}
    for label, run in runs.items():
        compiled, start = jax.jit(run), time.process_time()
        results[label] = []
        for seed in range(seeds):
            model = compiled(jax.random.key(seed))
            results[label].append(float(measure(jax.random.key(1000 + seed), model)))
            print(f"{label}, seed {seed}: {results[label][-1]:.3f} {unit}", flush=True)
        minutes = (time.process_time() - start) / 60
        spread = np.std(results[label], ddof=1) if seeds > 1 else jnp.nan
        mean = np.mean(results[label])
        print(f"{label}: {mean:.3f} +- {spread:.3f} {unit}, {minutes:.1f} min of processor time")
    path = Path("runs") / name / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    return results
