"""Where a training step's time goes: every part of it alone, in a loop on the device, in turns.

    python -m experiments.benchmarks.parts

Prints milliseconds a step (median over rounds) and the share of the whole. What is left beside the
parts is bias, activations and their gradients, copies of images into the form that products take,
and what two cores lose by waiting for one another.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments.benchmarks.peers.matmuls import products
from experiments.benchmarks.peers.ours import make_model, objective
from experiments.benchmarks.workloads import WORKLOADS, Workload, pixels


def repeated(steps: int, body: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """So many turns of `carry = body(i, carry)` as one program."""
    return jax.jit(lambda carry: jax.lax.fori_loop(0, steps, body, carry))


def parts(w: Workload) -> dict[str, tuple[Callable[[Any], Any], Any]]:
    """Name -> a program of `w.chunk` steps, and its argument."""
    key, optimizer = jax.random.key(0), optax.adam(1e-3)
    model = make_model(w, key)
    state = jaxvae.init_state(model, optimizer)
    data = jnp.asarray(pixels(w.chunk * w.batch, w.shape))
    order = jaxvae.training.epoch_order(key, 0, len(data), w.batch)
    step = jaxvae.train_step(objective(w), optimizer)
    epoch = jax.jit(jaxvae.training.scan_steps(step))
    rows, k = w.batch, w.num_samples

    def multiply(_: Any, carry: Any) -> Any:
        pairs, outs = carry
        pairs = [
            (a.at[0, 0].add(1e-20 * out[0, 0]), b) for (a, b), out in zip(pairs, outs, strict=True)
        ]
        return pairs, [a @ b for a, b in pairs]

    def optimise(_: Any, carry: Any) -> Any:
        model, opt_state = carry
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(model, opt_state, model)
        return optax.apply_updates(model, updates), opt_state

    def draw(i: Any, z: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(key, i), rows)

        def one(key: jax.Array) -> jax.Array:
            each = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(k))
            return jax.vmap(lambda key: jax.random.normal(key, (w.latent,)))(each)

        return z + jax.vmap(one)(keys)

    def gather(i: Any, carry: Any) -> Any:
        return carry + data[order[i]]

    x = data[:rows]

    def likelihood(_: Any, logits: Any) -> Any:
        def mean(logits: Any) -> jax.Array:
            one = jax.vmap(lambda l, x: jaxvae.Bernoulli(l).log_prob(x), (0, None))
            return jnp.mean(jax.vmap(one)(logits, x))

        return logits + jax.grad(mean)(logits)

    shapes = products(w)
    pairs = [(jnp.ones((r, n)), jnp.ones((n, m))) for r, n, m in shapes]
    outs = [jnp.zeros((r, m)) for r, _, m in shapes]
    return {
        "whole step": (lambda state: epoch(state, key, data, order), state),
        "matrix products": (repeated(w.chunk, multiply), (pairs, outs)),
        "optimiser": (repeated(w.chunk, optimise), (model, state.opt_state)),
        "random numbers": (repeated(w.chunk, draw), jnp.zeros((rows, k, w.latent))),
        "gather": (repeated(w.chunk, gather), jnp.zeros_like(x)),
        "likelihood": (repeated(w.chunk, likelihood), jnp.zeros((rows, k, *w.shape))),
    }


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workloads", nargs="+", choices=("W1", "W2", "W3"), default=["W1", "W2", "W3"]
    )
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    for workload in options.workloads:
        jobs = parts(WORKLOADS[workload])
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for turn in range(options.rounds + 1):
            for name, (program, argument) in jobs.items():
                start = time.perf_counter()
                jax.block_until_ready(program(argument))
                if turn:  # the first compiles
                    seconds[name].append((time.perf_counter() - start) / WORKLOADS[workload].chunk)
        whole = float(np.median(seconds["whole step"]))
        for name, times in seconds.items():
            ms = float(np.median(times))
            print(f"{workload} {name}: {1e3 * ms:.2f} ms, {ms / whole:.0%}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
