"""Resampled priors: against all sequences of tries, and a Gaussian acceptance in closed form."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.scipy.stats import norm
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import nn
from jaxvae.distributions import Resampled
from tests.common import draws, standard_errors_off

EVENTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)


def line(w, z):
    return w[0] + jnp.dot(w[1:], z)


def coins(tries):
    """Two fair coins, of which some outcomes are refused: four nodes are all events."""
    proposal = jv.Constant(jv.Bernoulli(jnp.zeros(2)))
    logits = Partial(line, jnp.array([-1.0, 0.7, 1.5]))
    return Resampled(proposal, logits, jv.Constant(events()), tries)


def events():
    return jnp.asarray(EVENTS, float)


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_it_is_every_sequence_of_tries(tries, x64):
    """The first that is accepted, or the last: the sum over all proposals and coins."""
    a = 1 / (1 + np.exp(-(-1.0 + EVENTS @ [0.7, 1.5])))
    p = np.zeros(4)
    for zs, accepted in product(product(range(4), repeat=tries), product((0, 1), repeat=tries)):
        taken = next((z for z, yes in zip(zs, accepted, strict=True) if yes), zs[-1])
        p[taken] += np.prod(
            [0.25 * (a[z] if yes else 1 - a[z]) for z, yes in zip(zs, accepted, strict=True)]
        )
    assert np.allclose(np.exp([coins(tries).log_prob(z) for z in events()]), p, atol=1e-12)


def bell(center, z):
    """The logit of 0.9 exp(-|z - center|^2 / 2)."""
    a = 0.9 * jnp.exp(-0.5 * jnp.sum(jnp.square(z - center)))
    return jnp.log(a) - jnp.log1p(-a)


@pytest.mark.thorough
def test_a_gaussian_acceptance_has_a_closed_form(x64):
    """Z = 0.9 N(center; 0, 2) sqrt(2 pi), by nodes of equal probability; and the density by it."""
    nodes = norm.ppf(jnp.arange(0.5, 20_000.0) / 20_000)[:, None]
    p = Resampled(jv.StandardNormal((1,)), Partial(bell, jnp.array([0.8])), jv.Constant(nodes), 5)
    big_z = 0.9 * np.exp(-(0.8**2) / 4) / np.sqrt(2)
    assert np.isclose(jnp.exp(p.log_normalizer()), big_z, atol=1e-8)
    z = np.array([0.3, -1.7, 2.5])
    rest = (1 - big_z) ** 4
    share = 0.9 * np.exp(-0.5 * (z - 0.8) ** 2) * (1 - rest) / big_z + rest
    found = jnp.exp(jax.vmap(p.log_prob)(jnp.asarray(z)[:, None]))
    assert np.allclose(found, np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) * share, atol=1e-8)


def test_draws_are_as_often_as_they_are_probable(x64):
    p = coins(3)
    found = draws(p.sample, 20_000)
    seen = jnp.all(found[:, None] == events()[None], axis=-1).astype(float)
    assert standard_errors_off(seen, np.exp([p.log_prob(z) for z in events()])) < 4


def test_log_prob_is_finite_where_all_is_accepted_or_refused():
    """Logits of 40 and -40, where 1 - a or a is 0 in float32, gradients included."""
    for logit in (40.0, -40.0):
        flat = Partial(line, jnp.array([logit, 0.0, 0.0]))
        p = Resampled(jv.Constant(jv.Bernoulli(jnp.zeros(2))), flat, jv.Constant(events()), 100)
        value, slope = jax.value_and_grad(lambda p: p.log_prob(events()[1]))(p)
        assert np.isclose(value, np.log(0.25), atol=1e-5)
        assert np.all(np.isfinite(slope.logits.args[0]))


@pytest.mark.thorough
def test_as_a_prior_it_trains_and_is_normalised():
    """On codes in a ring, which N(0, I) is not; with other nodes Z is the same to a few percent."""
    angle = jax.random.uniform(jax.random.key(0), (2000,), maxval=2 * jnp.pi)
    ring = 1.5 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    network = nn.MLP((2,), (), hidden=(32, 32), rngs=nnx.Rngs(0))
    standard = jv.StandardNormal((2,))
    nodes = draws(standard.sample, 4096)
    model = jv.VAE(
        encode=Partial(lambda x: jv.Normal(x, jnp.full(2, 0.2))),
        decode=Partial(lambda z: jv.Normal(z, jnp.ones(2))),
        prior=Resampled(standard, network, jv.Constant(nodes)),
    )
    optimizer = optax.adam(1e-2)
    state, history = jv.fit(
        jv.train_step(jv.elbo, optimizer),
        jv.init_state(model, optimizer),
        jax.random.key(1),
        ring,
        epochs=10,
        batch_size=100,
    )
    trained = state.model.prior
    others = Resampled(standard, trained.logits, jv.Constant(draws(standard.sample, 4096, 2)))
    assert abs(trained.log_normalizer() - others.log_normalizer()) < 0.1
    gained = history["rate"][:20].mean() - history["rate"][-20:].mean()
    assert gained > 0.3
