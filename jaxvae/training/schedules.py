"""Hyper-parameters that change with the step: `schedule(step) -> value`, as optax makes them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxvae.checks import Count, Scalar, checked, warn

Schedule = Callable[[Any], Any]
"""step -> the hyper-parameter's value there."""


@checked
def sigmoid_annealing(
    init_value: Scalar, end_value: Scalar, transition_steps: Count, *, sharpness: Scalar = 12.0
) -> Schedule:
    """From one value to another along a logistic curve, both ends met exactly, in steps.

    v(t) = init + (end - init) (s(t) - s(0)) / (s(T) - s(0)),  s(t) = sigmoid(k (t/T - 1/2))

    Linear annealing, the limit at `sharpness` k = 0, is `optax.linear_schedule(0.0, 1.0, T)`.
    Bowman et al. 2016.

    >>> schedule = sigmoid_annealing(0.0, 1.0, 1000)
    >>> [round(float(schedule(t)), 3) for t in (0, 400, 500, 1000, 5000)]
    [0.0, 0.23, 0.5, 1.0, 1.0]
    """

    def schedule(step: Scalar) -> Any:
        t = jnp.clip(jnp.asarray(step) / transition_steps, 0.0, 1.0)
        # sigmoid(a) = (1 + tanh(a / 2)) / 2, and tanh loses nothing where k is small
        k = jnp.asarray(sharpness, t.dtype) / 4.0
        s = 0.5 + 0.5 * jnp.tanh(k * (2.0 * t - 1.0)) / jnp.where(k == 0.0, 1.0, jnp.tanh(k))
        return init_value + (end_value - init_value) * jnp.where(k == 0.0, t, s)

    return schedule


@checked
def cyclical(schedule: Schedule, period: Count) -> Schedule:
    """A schedule begun again every `period` steps.

    The paper's, half of each period a rise and half at 1: `cyclical(optax.linear_schedule(0.0, 1.0,
    period // 2), period)`.
    Fu et al. 2019, "Cyclical annealing schedule".

    >>> import optax
    >>> beta = cyclical(optax.linear_schedule(0.0, 1.0, 5), 10)
    >>> [float(beta(step)) for step in (0, 5, 9, 10, 15)]
    [0.0, 1.0, 1.0, 0.0, 1.0]
    """
    return lambda step: schedule(step % period)


@partial(jax.jit, static_argnames=("schedule", "num_steps"))
def _values(schedule: Schedule, begun: Scalar, num_steps: int) -> Any:
    return jax.lax.map(schedule, begun + jnp.arange(num_steps, dtype=jnp.int32))


def at_steps(schedule: Schedule, begun: int, end: int) -> Array:
    """A schedule's values at the steps begun, ..., end - 1, in that order."""
    return _values(schedule, begun, end - begun)


@checked
def warn_if_unfinished(name: str, schedule: Schedule, values: Array) -> None:
    """Warn of a warm-up that is longer than the run: the schedule never reaches where it leads."""
    if np.ndim(values) != 1:
        return
    seen, leads_to = float(np.max(values)), float(schedule(jnp.int32(2**30)))
    if seen < leads_to - 1e-3 * abs(leads_to):
        warn(
            f"{name} rises to {leads_to:g}, but only {seen:g} is reached in the {len(values)} "
            "steps of this run; make its warm-up shorter or the run longer",
        )
