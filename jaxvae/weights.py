"""Importance weights w = p(x, z) / q(z|x): what every bound beyond the ELBO is made of."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxvae.checks import check_log_prob, check_positive
from jaxvae.protocols import (
    Distribution,
    Model,
    log_likelihood,
    posterior,
    prior,
    sample_and_log_prob,
)

Array = jax.Array


def log_weights(model: Model, key: Array, x: Any, *, num_samples: int) -> Array:
    """log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x), with z_k ~ q(z|x) independent.

    E[w] = p(x), so the mean of the log-weights is an ELBO and the log of their mean a tighter
    bound. Sample k is drawn with `fold_in(key, k)`: asking for more keeps the first ones.

    Args:
      model: any `Model`.
      key: a PRNG key.
      x: one example.
      num_samples: K, a Python integer.

    Returns:
      Log-weights, shape [K], in nats.

    >>> from jaxvae import ppca
    >>> linear = ppca.PPCA(weight=jnp.ones((3, 1)), mean=jnp.zeros(3), variance=jnp.array(0.5))
    >>> log_w = log_weights(ppca.as_vae(linear), jax.random.key(0), jnp.ones(3), num_samples=4)
    >>> bool(jnp.ptp(log_w) < 1e-5)  # q is the exact posterior: every weight is p(x)
    True

    Burda, Grosse & Salakhutdinov 2016, equation 8.
    """
    check_positive("log_weights", "num_samples", num_samples)
    q = posterior(model, x)
    keys = sample_keys(key, num_samples)
    return jax.vmap(lambda k: log_weight(model, k, x, q))(keys)


def sample_keys(key: Array, num_samples: int) -> Array:
    """The key of each sample: `fold_in(key, k)`, k = 0..K-1."""
    return jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(num_samples))


def log_weight(model: Model, key: Array, x: Any, q: Distribution) -> Array:
    """One log-weight, log p(x|z) + log p(z) - log q(z) with z ~ q, whatever the proposal q.

    Args:
      model: any `Model`.
      key: a PRNG key.
      x: one example.
      q: the distribution z is drawn from; with q = p(z) this is log p(x|z).

    Returns:
      A scalar in nats.
    """
    z, log_q = sample_and_log_prob(q, key)
    return log_likelihood(model, x, z) + log_prior(model, z) - log_q


def log_prior(model: Model, z: Any) -> Array:
    """log p(z), a scalar in nats; ValueError if it is none."""
    log_p = prior(model).log_prob(z)
    check_log_prob("model.prior", log_p)
    return log_p


def log_mean_exp(log_w: Array) -> Array:
    """log 1/K sum_k w_k: the reduction of log-weights that makes the importance-weighted bound.

    Args:
      log_w: log-weights, shape [K].

    Returns:
      A scalar in nats.

    >>> float(log_mean_exp(jnp.zeros(5)))
    0.0
    """
    return logsumexp(log_w) - jnp.log(log_w.size)
