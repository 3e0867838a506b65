"""A deep hierarchy as its script trains it: its levels in a loop, or written out."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx

import jaxvae
from experiments.benchmarks.accelerator import sizes
from experiments.benchmarks.accelerator.programs import Program, operations_of, timed
from experiments.benchmarks.workloads import pixels
from experiments.structures import deep_hierarchy as script
from jaxvae.models import alike, deep_bound
from jaxvae.nn import deep

STEPS = 2 if sizes.TINY else 20  # of a call
TINY = script.Setting((1, 2), 4, epochs=1, batch=4, rate=1e-3, free=0.0, images=1)


def in_bfloat16(model: deep.DeepHierarchy, key: jax.Array, x: jax.Array, *, beta: Any = 1.0) -> Any:
    """`deep_elbo` with all but the likelihood in bfloat16, the rates too: for its time alone."""
    half: Any = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), model._replace(likelihood=None)
    )
    down = half.top_down()
    raw, rates = deep_bound.descend(down, key, down.up(x.astype(jnp.bfloat16)))
    distortion = -model.likelihood(raw.astype(jnp.float32)).log_prob(x)
    rate = jnp.sum(rates.astype(jnp.float32))
    return -(distortion + beta * rate), jaxvae.Terms(distortion, rate)


def hierarchy(
    *, scanned: bool = False, objective: Callable[..., Any] = deep_bound.deep_elbo
) -> Program:
    setting = TINY if sizes.TINY else script.SETTINGS["accelerator"]
    adam = script.optimizer(setting.rate, 2400)
    step = jaxvae.train_step(jaxvae.preprocessed(objective, script.AS_STORED), adam)

    def start(key: jax.Array) -> Any:
        sizes_of = {"levels": setting.levels, "width": setting.width}
        model = deep.deep_hierarchy(script.SHAPE, **sizes_of, rngs=nnx.Rngs(key))
        return jaxvae.init_state(model, adam)

    def arguments() -> tuple[Any, ...]:
        data = jnp.asarray(pixels(STEPS * setting.batch, script.SHAPE) > 0.5).astype(jnp.uint8)
        order = jaxvae.training.epoch_order(jax.random.key(2), 0, len(data), setting.batch)
        return jax.jit(start)(jax.random.key(0)), jax.random.key(1), data, order

    def operations() -> float:
        """With every level written out, as a loop's body counts once."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        xs = jax.ShapeDtypeStruct((setting.batch, *script.SHAPE), jnp.uint8)
        with turns(lambda count: count):
            return operations_of(lambda *a: step(*a), jax.eval_shape(start, key), key, xs)

    turns_at_once = (lambda count: 1) if scanned else (lambda count: count)
    return Program(
        jax.jit(jaxvae.training.scan_steps(step)),
        arguments,
        STEPS,
        setting.batch,
        operations,
        forms=partial(turns, turns_at_once),
    )


def turns(at_once: Callable[[int], int]) -> Any:
    """How many levels a turn of a loop writes out."""
    return mock.patch.object(alike, "turns_at_once", at_once)


VARIANTS = {
    "scanned": partial(hierarchy, scanned=True),
    "written out": hierarchy,
    "written out, bfloat16": partial(hierarchy, objective=in_bfloat16),
}


def build(name: str) -> Program:
    return VARIANTS[name]()


def measure(name: str) -> dict[str, Any]:
    return timed(build(name))
