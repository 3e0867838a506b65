"""Forecasts of frames by models of sequences: how likely the truth is in them, and pictures."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxvae
from experiments.common.evaluate import each
from experiments.common.plotting import forecast_bands, image_rows
from experiments.datasets.pendulum import across

DRAWS = 200  # of the future, for the pictures
Forecast = Callable[[Any, jax.Array, jax.Array], Any]
"""(model, key, x) -> p(frames to come | z), an `Independent`, z one draw of the states to come."""


@partial(jax.jit, static_argnames=("forecast", "seen", "num_samples"))
def forecast_nlls(
    forecast: Forecast, model: Any, key: jax.Array, xs: jax.Array, *, seen: int, num_samples: int
) -> jax.Array:
    """-log p(x_t | frames seen), nats, of each frame to come on its own: shape [n, T - seen]."""

    def one(key: jax.Array, x: jax.Array) -> jax.Array:
        def log_p(key: jax.Array) -> jax.Array:
            frames = forecast(model, key, x).parts
            return jax.vmap(lambda d, frame: d.log_prob(frame))(frames, x[seen:])

        keys = jax.random.split(key, num_samples)
        return -jax.vmap(jaxvae.bounds.log_mean_exp, 1)(jax.vmap(log_p)(keys))

    return each(one, key, xs)


@partial(jax.jit, static_argnames="forecast")
def futures(
    forecast: Forecast, model: Any, key: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Forecasts drawn over and over: the means of p(frames | z), and frames drawn from it."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state_key, frame_key = jax.random.split(key)
        ahead = forecast(model, state_key, x)
        return ahead.mean(), ahead.sample(frame_key)

    return jax.vmap(one)(jax.random.split(key, DRAWS))


def draw_futures(
    folder: Path,
    forecast: Forecast,
    trained: dict[str, Any],
    x: jax.Array,
    *,
    seen: int,
    rows: int = 1,
) -> None:
    """What each model takes for possible after the frames seen of one film: forecasts, bands."""
    films, bands = {"truth": film(x[:seen], x[seen:])}, {}
    for name, model in trained.items():
        means, frames = futures(forecast, model, jax.random.key(0), x)
        films[name] = film(x[:seen], means.mean(axis=0))
        bands[name] = across(x), across(frames)
    image_rows(folder / "forecasts.png", films)
    shown = "the bob, left to right"
    forecast_bands(folder / "bands.png", bands, seen=seen, rows=rows, shown=shown)


def film(before: jax.Array, later: jax.Array) -> jax.Array:
    """The frames seen, a grey one, and those after them."""
    return jnp.concatenate([before, jnp.full_like(before[:1], 0.5), later])
