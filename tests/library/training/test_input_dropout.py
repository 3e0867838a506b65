"""Coordinated dropout: what the encoder sees is not scored, and what is scored it doesn't see."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.training import coordinated_dropout
from tests.common import close, draws, standard_errors_off

N, RATE = 50, 0.3
X = np.random.default_rng(0).poisson(3.0, N) + 1.0


def copier(w):
    """q(z|x) = N(w x, 1), p(x|z) = N(z, 1), an entry at a time: w = 1 copies."""
    encode = Partial(lambda w, x: jv.Normal(w * x, jnp.ones_like(x)), w)
    return jv.VAE(
        encode, Partial(lambda z: jv.Normal(z, jnp.ones_like(z))), jv.StandardNormal((N,))
    )


def seen_and_scored(key):
    """Of each entry: what the encoder was shown, and whether its density counts."""

    def objective(model, key, event):
        x, mask = event
        shown = model.encode(event).loc
        counts = jax.grad(lambda z: model.decode(z).log_prob(event))(x + 1.0)
        return jnp.array(0.0), (shown, counts, mask)

    _, aux = coordinated_dropout(objective)(copier(jnp.array(1.0)), key, jnp.asarray(X), rate=RATE)
    return aux


def test_the_two_halves_are_complements(x64):
    shown, counts, dropped = draws(seen_and_scored, 2_000)
    assert np.array_equal(shown != 0.0, counts == 0.0)
    assert np.array_equal(dropped, shown == 0.0)
    assert close(shown, np.where(dropped, 0.0, X / (1.0 - RATE)))
    assert close(counts, np.where(dropped, -1.0, 0.0))  # d log N(x; x + 1, 1)
    assert standard_errors_off(dropped.astype(float), np.full(N, RATE)) < 4
    assert standard_errors_off(shown, X) < 4  # E[shown] = x
    together = np.cov(dropped.T.astype(float))
    assert np.max(np.abs(together - np.diag(np.diag(together)))) < 5 * RATE * 0.7 / 2_000**0.5


def test_the_bound_is_that_of_the_entries_dropped(x64):
    """Terms by hand, and the draw of z has a key that the mask has not."""
    model, key = copier(jnp.array(0.4)), jax.random.key(3)
    objective = jax.jit(coordinated_dropout(jv.elbo))
    bound, terms = objective(model, key, jnp.asarray(X), rate=RATE)
    drop_key, z_key = jax.random.split(jax.random.clone(key))
    dropped = np.asarray(jax.random.bernoulli(drop_key, RATE, (N,)))
    loc = np.where(dropped, 0.0, 0.4 * X / (1.0 - RATE))
    z = loc + np.asarray(jax.random.normal(z_key, (N,)))
    assert close(terms.rate, 0.5 * np.sum(loc**2))
    log_p = -0.5 * (X - z) ** 2 - 0.5 * np.log(2 * np.pi)
    assert close(terms.distortion, -np.sum(log_p[dropped]))
    assert close(bound, -terms.distortion - terms.rate)


@pytest.mark.thorough
def test_a_copier_gains_nothing_by_copying():
    """Entry by entry x is noise alone: w goes to 0, where an autoencoder's would go up."""
    xs = np.random.default_rng(0).normal(size=(64, N)).astype(np.float32) * 3
    objective = partial(coordinated_dropout(jv.elbo), rate=RATE)
    found = {}
    for name, loss in ("plain", jv.elbo), ("coordinated", objective):
        step = jax.jit(jv.train_step(loss, optax.adam(0.02)))
        state = jv.init_state(copier(jnp.array(0.3)), optax.adam(0.02))
        for _ in range(150):
            state, _ = step(state, jax.random.key(0), jnp.asarray(xs))
        encode: Any = state.model.encode
        found[name] = float(encode.args[0])
    assert found["plain"] > 0.4
    assert abs(found["coordinated"]) < 0.02


@pytest.mark.thorough
def test_it_lifts_any_objective_and_says_what_is_wrong():
    x = jnp.asarray(X, jnp.float32)
    bound, log_w = coordinated_dropout(jv.iwae)(
        copier(jnp.array(0.1)), jax.random.key(0), x, rate=0.5, num_samples=3
    )
    assert close(bound, jv.bounds.log_mean_exp(log_w))
    with pytest.raises(TypeError, match="coordinated_dropout: objective is"):
        coordinated_dropout(3)  # pyright: ignore
    with pytest.raises(ValueError, match="coordinated_dropout: rate has shape"):
        coordinated_dropout(jv.elbo)(copier(0.1), jax.random.key(0), x, rate=jnp.ones(2))
