"""What holds of every model, on models drawn at random: the order of the bounds.

Random linear-Gaussian models, whose log p(x) is exact, with random posteriors that are not.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from jaxvae import Normal, ciwae, cubo, elbo, eubo, iwae, log_marginal, miwae, renyi, tvo, vr_max
from jaxvae.models import ppca

NUM = 4_000
BETAS = jnp.array([0.0, 0.05, 0.3, 1.0])
K = 4
# below log p(x) in mean, in this order; each is run on one set of NUM keys
BELOW = {
    "elbo": elbo,
    "renyi 2": partial(renyi, num_samples=K, alpha=2.0),
    "miwae": partial(miwae, num_outer=2, num_samples=K // 2),
    "ciwae": partial(ciwae, num_samples=K, beta=0.5),
    "iwae_2": partial(iwae, num_samples=K // 2),
    "iwae_4": partial(iwae, num_samples=K),
    "iwae_8": partial(iwae, num_samples=2 * K),
    "tvo": partial(tvo, num_samples=K, betas=BETAS),
}


def linear_model(seed, latents):
    """p(z) = N(0, I), p(x|z) = N(W z + mu, s2 I), and an x that it draws."""
    rng = np.random.default_rng(seed)
    params = ppca.PPCA(
        jnp.asarray(0.7 * rng.normal(size=(3, latents)), jnp.float32),
        jnp.asarray(rng.normal(size=3), jnp.float32),
        jnp.asarray(rng.uniform(0.3, 2.0), jnp.float32),
    )
    x = params.weight @ rng.normal(size=latents).astype(np.float32) + params.mean
    x = x + np.sqrt(params.variance) * rng.normal(size=3).astype(np.float32)
    posterior = ppca.posterior(params, x)
    # off by up to a standard deviation in the mean, and broader by up to a half: light tails of w
    scale = jnp.sqrt(jnp.diagonal(posterior.scale_tril @ posterior.scale_tril.T))
    shift = jnp.asarray(rng.uniform(-1.0, 1.0, latents), jnp.float32)
    broader = jnp.asarray(rng.uniform(1.0, 1.5, latents), jnp.float32)
    return params, x, Normal(posterior.loc + shift * scale, broader * scale)


def model_of(params, q):
    return ppca.as_vae(params)._replace(encode=Partial(lambda q, x: q, q))


@partial(jax.jit, static_argnames="name")
def bounds(name, params, q, x, key):
    keys = jax.random.split(key, NUM)
    model = model_of(params, q)
    return jax.vmap(lambda key: BELOW[name](model, key, x)[0])(keys)


random_models = given(seed=st.integers(0, 2**32 - 1), latents=st.integers(1, 2))


@pytest.mark.thorough
@random_models
@settings(max_examples=12, deadline=None, derandomize=True)
def test_bounds_are_in_order(seed, latents):
    """ELBO <= IWAE_2 <= IWAE_4 <= IWAE_8 <= log p(x) in mean, and each other bound in its place."""
    params, x, q = linear_model(seed, latents)
    exact = ppca.log_marginal(params, x)
    mean, error = {}, {}
    for name in BELOW:
        values = bounds(name, params, q, x, jax.random.key(seed))
        mean[name], error[name] = jnp.mean(values), jnp.std(values) / NUM**0.5

    def at_most(a, b):
        return mean[a] <= mean[b] + 4 * (error[a] ** 2 + error[b] ** 2) ** 0.5 + 1e-4

    for name in BELOW:
        assert mean[name] <= exact + 4 * error[name] + 1e-4, name
        assert at_most("elbo", name) or name == "renyi 2", name
    for looser, tighter in (
        ("renyi 2", "elbo"),
        ("elbo", "iwae_2"),
        ("iwae_2", "iwae_4"),
        ("iwae_4", "iwae_8"),
        ("miwae", "iwae_4"),
        ("ciwae", "iwae_4"),
    ):
        assert at_most(looser, tighter), (looser, tighter)


@jax.jit
def above(params, q, x, keys):
    model = model_of(params, q)
    sampler = ppca.posterior(params, x).sample
    many = jax.vmap(lambda key: cubo(model, key, x, num_samples=2_000)[0])(keys)
    evidence = jax.vmap(lambda key: eubo(model, key, x, sample_posterior=sampler)[0])(keys)
    best = jax.vmap(lambda key: vr_max(model, key, x, num_samples=50)[0])(keys)
    estimate = jax.vmap(lambda key: log_marginal(model, key, x, num_samples=2_000))(keys)
    return many, evidence, best, estimate


@random_models
@settings(max_examples=12, deadline=None, derandomize=True)
@pytest.mark.slow
def test_upper_bounds_are_above(seed, latents):
    """CUBO, EUBO and VR-max are not below log p(x), and log_marginal is at it, within its error."""
    params, x, q = linear_model(seed, latents)
    exact = ppca.log_marginal(params, x)
    keys = jax.random.split(jax.random.key(seed), 400)
    with jax.debug_key_reuse(False):  # the four share their keys
        many, evidence, best, estimate = above(params, q, x, keys)
    for values in (many, evidence, best):
        assert jnp.mean(values) >= exact - 4 * jnp.std(values) / 20 - 1e-4
    pull = (estimate.value - exact) / estimate.standard_error
    assert abs(jnp.mean(pull)) < 4 / 20 + 0.1
    assert 0.7 < jnp.std(pull) < 1.3
    assert bool(jnp.mean(estimate.reliable) > 0.95)
