"""Importance weights w = p(x, z) / q(z|x): what every bound beyond the ELBO is made of."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Count, Key, Tree, checked
from jaxvae.model import Model, log_likelihood, posterior, prior
from jaxvae.protocols import Distribution, log_prior_of, sample_and_log_prob


@checked
def log_weights(model: Model, key: Key, x: Tree, *, num_samples: Count) -> Array:
    """log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x), with z_k ~ q(z|x) independent.

    E[w] = p(x), so the mean of the log-weights is an ELBO and the log of their mean a tighter
    bound. Sample k is drawn with `fold_in(key, k)`: asking for more keeps the first ones.
    Burda, Grosse & Salakhutdinov 2016.

    >>> from jaxvae.models import ppca
    >>> linear = ppca.PPCA(weight=jnp.ones((3, 1)), mean=jnp.zeros(3), variance=jnp.array(0.5))
    >>> log_w = log_weights(ppca.as_vae(linear), jax.random.key(0), jnp.ones(3), num_samples=4)
    >>> bool(jnp.ptp(log_w) < 1e-5)  # q is the exact posterior: every weight is p(x)
    True
    """
    q = posterior(model, x)
    term = importance_term(model, x)
    keys = sample_keys(key, num_samples)
    return jax.vmap(lambda key: term(q, *sample_and_log_prob(q, key))[0])(keys)


def importance_term(model: Model, x: Tree) -> Callable[[Any, Any, Array], tuple[Array, Array]]:
    """The term (q, z, log_q) -> (log w, log w) of which importance-weighted bounds are made.

    log w = log p(x|z) + log p(z) - log_q, whatever z was drawn from with log-density log_q.
    """

    def term(q: Distribution, z: Tree, log_q: Array) -> tuple[Array, Array]:
        del q
        log_w = log_likelihood(model, x, z) + log_prior(model, z) - log_q
        return log_w, log_w

    return term


def sample_keys(key: Key, num_samples: Count) -> Array:
    """The key of each sample: `fold_in(key, k)`, k = 0..K-1."""
    return jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(num_samples))


def log_prior(model: Model, z: Tree) -> Array:
    """log p(z), a scalar in nats; ValueError if it is none, or z has another shape."""
    return log_prior_of(prior(model), z)
