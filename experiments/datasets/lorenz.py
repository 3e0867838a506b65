"""Spikes of a population driven by Lorenz's system, drawn: counts in bins, and the true rates.

No file is read. Each condition starts from a point of the attractor; its trials share the rates.
As Sussillo, Jozefowicz, Abbott & Pandarinath 2016, section 4.1: Lorenz's system, read out by 30
neurons with random weights, exponentiated, with Poisson spikes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NEURONS = 30
BINS = 50  # of 20 ms, one second
TIME = 0.03  # of the system, a bin
BASE = 0.3  # spikes a bin of a neuron that nothing drives: 15 a second
WEIGHT = 0.8  # standard deviation of a neuron's log-rate


class Spikes(NamedTuple):
    """Counts of every trial and the rates that they were drawn with, both [n, BINS, NEURONS]."""

    counts: jax.Array
    rates: jax.Array


def spikes(key: jax.Array, conditions: int, trials: int) -> Spikes:
    """Trials of each condition, one condition after the other."""
    start_key, weight_key, spike_key = jax.random.split(key, 3)
    near = jnp.array([[0.0, 0.0, 25.0]]) + 5.0 * jax.random.normal(start_key, (conditions, 3))
    states = jax.vmap(lambda s: _path(_path(s, 500)[-1], BINS))(near)
    states = (states - states.mean((0, 1), keepdims=True)) / states.std((0, 1), keepdims=True)
    weights = jax.random.normal(weight_key, (3, NEURONS))
    weights = WEIGHT * weights / jnp.linalg.norm(weights, axis=0, keepdims=True)
    rates = jnp.repeat(BASE * jnp.exp(states @ weights), trials, axis=0)
    return Spikes(jax.random.poisson(spike_key, rates).astype(float), rates)


def _path(state: jax.Array, bins: int) -> jax.Array:
    """The states of so many bins from this one on, [bins, 3], by Runge and Kutta's fourth order."""

    def bin_of(s: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        for _step in range(5):
            h = TIME / 5
            k1 = _slope(s)
            k2 = _slope(s + h / 2 * k1)
            k3 = _slope(s + h / 2 * k2)
            k4 = _slope(s + h * k3)
            s = s + h / 6 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        return s, s

    return jax.lax.scan(bin_of, state, length=bins)[1]


def _slope(state: jax.Array) -> jax.Array:
    x, y, z = state
    return jnp.array([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z])
