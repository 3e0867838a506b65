"""A row from end to end: three runs as one sweep, and what is measured of each."""

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxvae as jv
from experiments.common.evaluate import each, generated
from experiments.common.methods import ROWS, Row
from experiments.zoo.data import Data, read
from experiments.zoo.found import BASES, base_of, evaluated, seen
from experiments.zoo.rules import Fit, rule_of
from experiments.zoo.tables import data_of
from jaxvae import evaluation, models

SEEDS = 3  # runs of each row, from keys 0, 1, 2; keys 1000, 1001, 1002 measure them
SHOWN = 20  # draws of a model of images


class Trained(NamedTuple):
    """A row's models, stacked, and how one is measured."""

    models: Any
    fit: Fit
    data: Data


def trained(row: Row, folder: Path, seeds: int = SEEDS, steps: int | None = None) -> Trained:
    """The row's runs from all seeds."""
    data = read(data_of(row), folder)
    rule = rule_of(row)
    fit = rule(row, nnx.Rngs(0), data)  # whose objective is that of all seeds
    rows = len(jax.tree.leaves(data.train)[0])
    batch = min(data.batch, rows)
    epochs = max(1, (steps or data.steps) // (rows // batch))

    def run(key: jax.Array, train: Any) -> Any:
        init_key, key = jax.random.split(key)
        objective = jv.preprocessed(fit.objective, data.transform)
        step = partial(fit.step(objective, fit.optimizer), **fit.hyper)
        epoch = jv.train_epoch(step, batch_size=batch)
        state = jv.init_state(rule(row, nnx.Rngs(init_key), data).model, fit.optimizer)
        state, _ = jax.lax.scan(lambda s, _: epoch(s, key, train), state, length=epochs)
        return fit.trained(state)

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return Trained(jv.sweep(run, {"key": keys}, train=data.train).results, fit, data)


@cache
def kept(path: str, folder: Path) -> Trained:
    """Of a row on whose models others are evaluated."""
    return trained(ROWS[path], folder)


def measured(found: Trained, model: Any, key: jax.Array) -> dict[str, Any]:
    """Bound, NLL, its error, k-hat and active units of the examples to test on.

    What a model has not, the TypeError or ValueError of the library says: its text is kept.
    """
    _, fit, data = found
    bound_key, key, use_key, seen_key = jax.random.split(key, 4)
    last = {name: of(data.steps) for name, of in fit.hyper.items()}
    xs = seen(seen_key, data)

    def bound(model: Any) -> Any:
        return jnp.mean(jv.batched(partial(fit.objective, **last))(model, bound_key, xs)[0])

    def nll(model: Any) -> Any:
        vae, rows, given = fit.scored(model, xs)
        if isinstance(vae, models.VQVAE):
            raise TypeError("a code that is certain has one weight: the bound is all that is known")
        if fit.refined is not None:
            one = partial(fit.refined(jv.log_marginal), vae, num_samples=data.samples)
            of = each(one, key, rows)
            error = jnp.sqrt(jnp.sum(of.standard_error**2)) / len(of.value)
            return -jnp.mean(of.value), error, jnp.mean(of.reliable)
        of = evaluation.evaluate(vae, key, rows, num_samples=data.samples, given=given)
        return -of.value, of.standard_error, of.reliable

    def active(model: Any) -> Any:
        vae, rows, given = fit.scored(model, xs)
        units = jax.tree.leaves(evaluation.active_units(vae, rows, given=given, key=use_key))
        return sum(jnp.sum(unit) for unit in units), sum(unit.size for unit in units)

    told: dict[str, Any] = {}
    for name, of in {"bound": bound, "nll": nll, "active": active}.items():
        told |= known(name, of, model)
    for name, sign in {"bound": 1.0, "nll": -1.0}.items():
        if name in told:
            told[name] += sign * data.unit
    return told


def known(name: str, of: Callable[[Any], Any], model: Any) -> dict[str, Any]:
    """`of(model)` by the names of its parts, or why there is none."""
    parts = {"nll": ("nll", "error", "reliable"), "active": ("active", "latents")}
    try:
        found = jax.jit(of)(model)
    except (TypeError, ValueError, NotImplementedError) as error:
        return {f"no {name}": str(error)}
    found = found if isinstance(found, tuple) else (found,)
    return {n: float(v) for n, v in zip(parts.get(name, (name,)), found, strict=True)}


def result(row: Row, folder: Path) -> tuple[dict[str, Any], Any]:
    """All that is known of a row, seed by seed, and draws of an image model of seed 0, or None."""
    base, images, start = base_of(row), None, time.process_time()
    path = base or row.path
    found = kept(path, folder) if path in BASES else trained(row, folder)
    start = start if base is None else time.process_time()  # another row's training isn't its own
    seeds = []
    for seed in range(SEEDS):
        model = jax.tree.map(lambda leaf, i=seed: leaf[i], found.models)
        key = jax.random.key(1000 + seed)
        if base is not None:
            seeds.append(evaluated(row, model, key, found.data))
            continue
        seeds.append(measured(found, model, key))
        if seed == 0:
            images = drawn(found, model)
    told = {"data": data_of(row), "seeds": seeds, "on": base}
    return told | {"seconds": time.process_time() - start}, images


def drawn(found: Trained, model: Any) -> Any:
    """Means of p(x|z) at draws of the prior, in [0, 1], where these are images."""
    vae, *_ = found.fit.scored(model, seen(jax.random.key(0), found.data))
    try:
        images = np.asarray(generated(vae, jax.random.key(7), SHOWN))
    except (TypeError, ValueError, NotImplementedError, AttributeError):
        return None
    if images.ndim != 4 or found.data.sizes.get("shape") != images.shape[1:]:
        return None
    return images / 255.0 if images.max() > 2.0 else images
