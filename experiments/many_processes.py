"""Train one model with several processes, on one machine or many.

    python -m experiments.many_processes --coordinator localhost:9876 --processes 2 --process 0 &
    python -m experiments.many_processes --coordinator localhost:9876 --processes 2 --process 1

Each process loads only its rows of the digits, holds the whole model, and does its share of every
batch; JAX sums the gradients. The model is that of one process but for rounding. On a machine with
accelerators start one process a machine: its devices are all used.

The first process saves into runs/many/, which all must see. SIGTERM to any of them has all save the
same step and exit with 143. When one dies, the others end within seconds: with exit code 1, or
aborted by JAX, which says that another task died, where it was process 0. Start all of them again
with the same commands, and the run goes on with the same numbers.
"""

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro
from flax import nnx
from jax.sharding import AxisType

import jaxvae
from experiments.common.data import load
from jaxvae import nn


@dataclass(frozen=True)
class Config:
    coordinator: str = "localhost:9876"
    """address of process 0"""
    processes: int = 1
    process: int = 0
    epochs: int = 200
    batch: int = 64
    """rows a step, over all processes"""
    steps_per_call: int | None = None
    latent: int = 8
    hidden: int = 400
    output: Path = Path("runs/many")


def train(c: Config) -> jaxvae.TrainState:
    """The same program in every process."""
    images = load("digits").train.images
    # whole batches, and as many rows for each device
    even = len(images) // c.batch * c.batch
    mine = images[:even][c.process * even // c.processes : (c.process + 1) * even // c.processes]
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    init_key, run_key = jax.random.split(jax.random.key(0))
    rngs, network = nnx.Rngs(init_key), partial(nn.MLP, hidden=(c.hidden,))
    shape, latent = images.shape[1:], (c.latent,)
    model = jaxvae.VAE(
        encode=nn.Conditional(network, nn.NormalHead(), shape, latent, rngs=rngs),
        decode=nn.Conditional(network, nn.NormalHead(0.2), latent, shape, rngs=rngs),
        prior=jaxvae.StandardNormal(latent),
    )
    optimizer = optax.adam(1e-3)
    objective = jaxvae.preprocessed(jaxvae.elbo, partial(jaxvae.rescale, max_value=16.0))
    state, _ = jaxvae.fit(
        jaxvae.train_step(objective, optimizer),
        jaxvae.init_state(model, optimizer),
        run_key,
        jaxvae.training.shard_rows(mesh, mine),
        epochs=c.epochs,
        batch_size=c.batch,
        steps_per_call=c.steps_per_call,
        callbacks=[show] if c.process == 0 else [],
        checkpoints=jaxvae.Checkpoints(c.output, config={"latent": c.latent, "hidden": c.hidden}),
        mesh=mesh,
    )
    return state


def show(state: jaxvae.TrainState, metrics: dict[str, np.ndarray], *_: Any) -> None:
    print(f"step {int(state.step)}: loss {np.mean(metrics['loss']):.2f}", flush=True)


def main() -> int:
    c = tyro.cli(Config, description=__doc__)
    if c.processes > 1:
        jax.distributed.initialize(
            c.coordinator,
            c.processes,
            c.process,
            heartbeat_timeout_seconds=10,  # how soon a process that hangs is given up
            shutdown_timeout_seconds=10,
        )
    try:
        train(c)
    except jaxvae.training.CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        leave(c, 1)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and "Gloo" not in str(error):
            raise
        print(
            f"error: process {c.process} can't go on ({str(error).splitlines()[0][:200]}); where "
            f"another one is gone, start all {c.processes} again with the same commands, and the "
            f"run goes on from {c.output}",
            file=sys.stderr,
        )
        leave(c, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def leave(c: Config, code: int) -> None:
    """At once: to part from processes that are gone would mean to wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
