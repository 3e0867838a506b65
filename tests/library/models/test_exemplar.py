"""The exemplar prior, by hand: who is left out, who is drawn, and what it costs."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.models import ExemplarVAE, left_out
from tests.common import draws, standard_errors_off

ROWS = np.array([[-1.0, 0.2], [0.5, 0.5], [2.0, -1.0], [0.3, 1.4]])


def encoded(w, x):
    return jv.Normal(w * x, jnp.full_like(x, 0.3))


def decoded(z):
    return jv.Normal(z, jnp.ones_like(z))


def model(log_scale=-0.5):
    encode = Partial(encoded, jnp.asarray(0.7))
    return ExemplarVAE(
        encode, Partial(decoded), jnp.asarray(log_scale), jv.Constant(jnp.asarray(ROWS))
    )


def log_mean_of(z, which):
    """log 1/M sum_m N(z; 0.7 x_m, s^2 I), in NumPy."""
    s2 = np.exp(-1.0)
    squared = np.sum((np.asarray(z) - 0.7 * ROWS[list(which)]) ** 2, axis=1)
    return np.log(np.mean(np.exp(-0.5 * squared / s2) / (2 * np.pi * s2)))


Z = np.array([0.4, -0.1])


@pytest.mark.thorough
def test_the_prior_is_all_exemplars_and_in_training_all_others(x64):
    assert np.isclose(model().prior.log_prob(jnp.asarray(Z)), log_mean_of(Z, range(4)), atol=1e-12)
    for n in range(4):
        others = [m for m in range(4) if m != n]
        for out in (n, jnp.asarray(n)):
            left = model().among(jnp.arange(4), out).prior
            assert np.isclose(left.log_prob(jnp.asarray(Z)), log_mean_of(Z, others), atol=1e-12)


@pytest.mark.thorough
def test_the_objective_leaves_each_row_out_of_its_own_prior(x64):
    objective, xs = jv.batched(left_out(jv.elbo)), jnp.asarray(ROWS)
    _, terms = objective(model(), jax.random.key(3), (xs, jnp.arange(4)))
    for n, key in enumerate(jax.random.split(jax.random.key(3), 4)):
        alone = left_out(jv.elbo)(model(), key, (xs[n], jnp.asarray(n)))[1]
        assert np.isclose(terms.rate[n], alone.rate, atol=1e-12)
        by_hand = model().among(jnp.array([m for m in range(4) if m != n]), -1)
        assert np.isclose(alone.rate, jv.elbo(by_hand, key, xs[n])[1].rate, atol=1e-12)


def test_some_exemplars_are_a_bound_on_all(x64):
    """All pairs are drawn alike often, and by Jensen's inequality their mean is below."""
    n, num, vae = 1, 2, model()
    kl = lambda q, p, z, log_q: -p.log_prob(jnp.asarray(Z))
    objective = jv.batched(left_out(lambda *a, **h: jv.elbo(*a, kl=kl, **h), num))
    batch = jnp.asarray(ROWS)[jnp.array([n, 0])], jnp.array([n, 0])
    found = draws(lambda k: -objective(vae, k, batch)[1].rate[0], 4000)
    each = [log_mean_of(Z, [m for m in pair if m != n]) for pair in combinations(range(4), num)]
    assert standard_errors_off(found, np.mean(each)) < 4
    assert np.mean(each) < log_mean_of(Z, [m for m in range(4) if m != n])


@pytest.mark.thorough
def test_a_batch_shares_its_exemplars(x64):
    """One draw for all, and another with another key; the rows of a batch still have own noise."""
    seen = lambda q, p, z, log_q: p.mean()[0]  # tells which exemplars
    objective = jv.batched(left_out(lambda *a, **h: jv.elbo(*a, kl=seen, **h), 2))
    batch = jnp.asarray(ROWS)[:3] + 9.0, jnp.full(3, -1)  # none of them left out
    of_keys = [objective(model(), jax.random.key(i), batch)[1] for i in range(6)]
    for terms in of_keys:
        assert np.ptp(terms.rate) == 0
        assert len(np.unique(terms.distortion)) == 3
    assert len({float(terms.rate[0]) for terms in of_keys}) > 1


def test_the_key_that_draws_exemplars_draws_nothing_else():
    """No example's objective has the key of the batch's draw, which came of the first's own."""
    told = jv.batched(left_out(lambda vae, key, x: (0.0 * x[0], jax.random.key_data(key)), 2))
    batch = jnp.asarray(ROWS, jnp.float32)[:3], jnp.arange(3)
    _, given = told(model(), jax.random.key(0), batch)
    own = jax.random.key_data(jax.random.split(jax.random.key(0), 3))
    assert not np.any(np.all(np.asarray(given)[:, None] == np.asarray(own)[None], axis=-1))
    assert len(np.unique(given, axis=0)) == 3


@pytest.mark.thorough
def test_it_trains_and_is_evaluated_as_any_model():
    """The scale moves, the exemplars stay, and a new x is scored with all of them."""
    optimizer = optax.adam(1e-2)
    step = jax.jit(jv.train_step(left_out(jv.elbo, 3), optimizer))
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), model())
    start = start._replace(exemplars=jv.Constant(jnp.asarray(ROWS, jnp.float32)))
    state = jv.init_state(start, optimizer)
    for i in range(3):
        state, _ = step(state, jax.random.key(i), (start.exemplars.value, jnp.arange(4)))
    assert state.model.log_scale != start.log_scale
    assert np.array_equal(state.model.exemplars.value, start.exemplars.value)
    found = jv.log_marginal(state.model, jax.random.key(9), jnp.ones(2), num_samples=50)
    assert jnp.isfinite(found.value)
    assert jv.generate(state.model, jax.random.key(9)).mean().shape == (2,)


def test_what_makes_no_prior_is_refused():
    with pytest.raises(ValueError, match="left_out: num_exemplars is 1, expected 2"):
        left_out(jv.elbo, 1)
    with pytest.raises(TypeError, match=r"left_out: data is an array, expected a pair \(x, i"):
        left_out(jv.elbo)(model(), jax.random.key(0), jnp.ones(2))
    with pytest.raises(ValueError, match="left_out: num_exemplars is 5, expected at most 4"):
        jv.batched(left_out(jv.elbo, 5))(
            model(), jax.random.key(0), (jnp.ones((2, 2)), jnp.arange(2))
        )


@pytest.mark.thorough
def test_some_exemplars_are_drawn_by_any_generator():
    pairs = jnp.asarray(ROWS), jnp.arange(len(ROWS))
    key = jax.random.key(0, impl="rbg")
    bound, _ = jv.batched(left_out(jv.elbo, 2))(model(), key, pairs)
    assert np.isfinite(bound)
