"""What the scripts of this folder share: what a run is measured by, and where that is kept."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import jaxvae
from jaxvae import evaluation
from jaxvae.training import average_parameters, json_lines

AVERAGED = 0.02  # of the steps, the last of which are in the average of the parameters


def train(
    objective: Any,
    model: Any,
    key: jax.Array,
    images: jax.Array,
    folder: Path,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    callbacks: Any = (),
    **schedules: Any,
) -> Any:
    """The state after all epochs, by Adam's rate that falls to 0 along a cosine.

    What is looked at on the way is in metrics.jsonl of the folder.
    """
    steps = epochs * (len(images) // batch_size)
    rate = optax.cosine_decay_schedule(learning_rate, steps)
    last = max(AVERAGED * steps, 1.0)
    optimizer = optax.chain(optax.adam(rate), average_parameters(1.0 - 1.0 / last))
    state, _ = jaxvae.fit(
        jaxvae.train_step(objective, optimizer),
        jaxvae.init_state(model, optimizer),
        key,
        images,
        epochs=epochs,
        batch_size=batch_size,
        callbacks=[*callbacks, json_lines(folder / "metrics.jsonl")],
        checkpoints=jaxvae.Checkpoints(folder, keep=1),
        **schedules,
    )
    return state


def measured(model: Any, key: jax.Array, xs: Any, num_samples: int) -> dict[str, float]:
    """-log p(x) of the rows in nats, how well it is known, and what k-hat says of it."""
    found = evaluation.evaluate(model, key, xs, num_samples=num_samples)
    return {
        "NLL": -float(found.value),
        "error by sampling": float(found.standard_error),
        "rate": float(found.rate),
        "median k-hat": float(np.median(found.rows.pareto_k)),
        "trusted": float(found.reliable),
        "rows": len(xs),
        "samples": num_samples,
    }


def kept(folder: Path, seed: int, numbers: dict[str, Any]) -> None:
    """In result_SEED.json of the run's folder; the mean and spread over all that are there."""
    (folder / f"result_{seed}.json").write_text(json.dumps(numbers, indent=2) + "\n")
    every = [json.loads(file.read_text()) for file in sorted(folder.glob("result_*.json"))]
    print(f"{folder.name}, seed {seed}: {numbers}")
    values = [found["NLL"] for found in every]
    spread = f" +- {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    print(f"{folder.name}: {np.mean(values):.2f}{spread} nats, {len(values)} seeds", flush=True)
