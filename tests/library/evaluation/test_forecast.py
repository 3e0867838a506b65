"""Forecasts of chains of latents: each from its own end, against an autoregression's exact law."""

from functools import cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxvae
from jaxvae import use
from jaxvae.models import LinearChain, Markov, Padded, emissions, ppca
from tests.common import standard_errors_off

T, STEPS, KEY = 5, 7, jax.random.key(0)
A, S, R, E = 0.8, 0.5, 0.3, 0.1  # z_t = A z_{t-1} + S noise, x_t = z_t + R noise, q(z_t|x) = x_t, E
XS = np.random.default_rng(0).normal(size=(3, T)).astype(np.float32)
ENDS = np.array([2, 5, 4])
MASK = np.arange(T) < ENDS[:, None]
EVENTS = (np.where(MASK, XS, np.nan).astype(np.float32), MASK)


def move(a, z):
    return jaxvae.Normal(a * z, S)


def seen(e, event):
    """q(z_t|x) = N(x_t, e^2)"""
    x = jnp.where(event[1], event[0], 0.0)
    return Markov(jaxvae.Normal(x[0], e), Partial(lambda pair: jaxvae.Normal(pair[1], E)), T, x[1:])


def autoregression(a):
    prior = Markov(jaxvae.Normal(0.0, 1.0), Partial(move, a), T)
    decode = Partial(emissions, lambda z: jaxvae.Normal(z, R))
    return Padded(jaxvae.VAE(Partial(seen, jnp.array(E)), decode, prior))


forecast = partial(use.forecast, steps=STEPS)


@cache
def drawn():
    return forecast(autoregression(jnp.array(A)), KEY, EVENTS, num_samples=4000)


def test_a_forecast_begins_at_the_end_of_its_row_and_goes_beyond_the_padding():
    """x_{t+h} ~ N(A^h x_t, A^2h E^2 + S^2 (1 - A^2h) / (1 - A^2) + R^2), and how two covary."""
    h = np.arange(1, STEPS + 1)
    last = XS[np.arange(3), ENDS - 1]
    of_chain = A ** (2 * h) * E**2 + S**2 * (1 - A ** (2 * h)) / (1 - A**2)
    assert drawn().shape == (3, 4000, STEPS)
    for draws, x in zip(drawn(), last, strict=True):
        off = draws - A**h * x
        assert standard_errors_off(off, np.zeros(STEPS)) < 4
        assert standard_errors_off(off**2, of_chain + R**2) < 4
        assert standard_errors_off(off[:, 1:] * off[:, :-1], A * of_chain[:-1]) < 4


@pytest.mark.thorough
def test_quantiles_are_those_of_the_draws_in_any_batches():
    levels = [0.05, 0.5, 0.95]
    model = autoregression(jnp.array(A))
    draws = forecast(model, KEY, EVENTS, num_samples=40)
    assert draws.shape == (3, 40, STEPS)
    for xs in (EVENTS, [jax.tree.map(lambda a, i=i: a[i : i + 1], EVENTS) for i in range(3)]):
        found = forecast(model, KEY, xs, num_samples=40, quantiles=levels, batch_size=2)
        expected = np.moveaxis(np.quantile(draws, levels, axis=1), 0, 1)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_a_conditional_model_takes_the_y_of_each_row():
    ys = np.array([0.0, A, 1.0], np.float32)
    found = forecast(Partial(autoregression), KEY, EVENTS, num_samples=50, given=ys)
    again = forecast(autoregression(jnp.array(A)), KEY, EVENTS, num_samples=50)
    np.testing.assert_allclose(found[1], again[1], rtol=1e-5, atol=1e-6)
    assert abs(found[0] - again[0]).max() > 0.1


# without noise: the chain, its context and the decoder by hand


def exact(x):
    return jaxvae.Normal(x, 1e-6)


def summed(z):
    """A decoder that looks back: x_t = z_1 + ... + z_t."""
    return jaxvae.Normal(jnp.cumsum(z), 1e-6)


def test_a_decoder_may_look_back_and_rows_without_a_mask_are_seen_whole():
    prior = Markov(jaxvae.Normal(0.0, 1.0), Partial(lambda z: jaxvae.Normal(2.0 * z, 1e-6)), T)
    model = jaxvae.VAE(Partial(exact), Partial(summed), prior)
    found = forecast(model, KEY, XS, num_samples=2)
    chain = XS[:, -1:] * 2.0 ** np.arange(1, STEPS + 1)
    expected = XS.sum(1, keepdims=True) + np.cumsum(chain, axis=1)
    np.testing.assert_allclose(found, np.stack([expected] * 2, 1), rtol=1e-3, atol=1e-3)


def test_a_context_is_read_from_the_end_of_the_row_as_far_as_it_goes():
    c = np.array([1.0, 10.0, 100.0, 1000.0], np.float32)  # of steps 2 to 5
    add = Partial(lambda pair: jaxvae.Normal(pair[0] + pair[1], 1e-6))
    prior = Markov(jaxvae.Normal(0.0, 1.0), add, T, jnp.asarray(c))
    decode = Partial(lambda z: jaxvae.distributions.Masked(emissions(exact, z)))
    model = jaxvae.VAE(Partial(lambda event: exact(event[0])), decode, prior)
    mask = np.arange(T) < np.array([[1], [3], [2]])
    events = (XS, mask)
    found = use.forecast(model, KEY, events, steps=2, num_samples=1)[:, 0]
    added = np.array([[1.0, 11.0], [100.0, 1100.0], [10.0, 110.0]])
    expected = XS[np.arange(3), [0, 2, 1], None] + added
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    refused = r"^forecast: steps is 3, expected at most 2 behind 3 steps seen, as the prior's cont"
    with pytest.raises(ValueError, match=refused):
        use.forecast(model, KEY, events, steps=3)
    with pytest.raises(
        ValueError, match=r"^Markov: steps is 3, expected at most 2 behind step 3, a"
    ):
        prior.after(jnp.asarray(XS[0]), 3, 3)
    with pytest.raises(ValueError, match=r"^Markov: t is 6, expected 1 to 5, the states of z$"):
        prior.after(jnp.asarray(XS[0]), 6, 1)


def test_what_is_refused_is_refused_in_a_line():
    model = autoregression(jnp.array(A))
    none = (XS, MASK & (np.arange(3) != 1)[:, None])
    linear = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    for call, message in (
        (lambda: forecast(model, KEY, none), "forecast: row 1 has no step seen, expected one at l"),
        (lambda: forecast(model, KEY, [EVENTS, none]), "forecast: row 4 has no step seen"),
        (lambda: forecast(linear, KEY, np.ones((2, 3), np.float32)), "forecast: StandardNormal ha"),
        (lambda: forecast(model, KEY, EVENTS, quantiles=(5, 95)), r"forecast: quantiles is \(5, "),
        (
            lambda: forecast(model, KEY, EVENTS, quantiles=cast("Any", 0.5)),
            r"forecast: quantiles is 0\.5, expec",
        ),
        (lambda: use.forecast(model, KEY, EVENTS, steps=0), "forecast: steps is 0, expected an in"),
        (lambda: use.encode(model, EVENTS), "encode: give it a key, .*; Markov has no mean"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^{message}") as error:
            call()
        assert "\n" not in str(error.value).split("\n---")[0]
    assert use.encode(model, EVENTS, key=KEY).shape == (3, T)


def test_a_chain_whose_gains_end_is_not_forecast_beyond():
    one = jnp.eye(1)
    chain = LinearChain(
        jaxvae.MultivariateNormal(jnp.zeros(1), one),
        jnp.array([1.0, 1.0, 100.0])[:, None, None],
        jnp.zeros((3, 1)),
        jnp.broadcast_to(0.01 * one, (3, 1, 1)),
        4,
    )
    model = jaxvae.VAE(
        Partial(lambda x: jaxvae.Normal(x, 0.01)),
        Partial(emissions, lambda z: jaxvae.Normal(z, 0.01)),
        chain,
    )
    with pytest.raises(ValueError, match="forecast: steps is 1, expected at most 0 behind 4"):
        use.forecast(model, jax.random.key(0), np.ones((1, 4, 1), np.float32), steps=1)
