"""A prior whose closest posterior is not close: codes that cannot collapse."""

import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Count, Scalar, checked
from jaxvae.distributions import MultivariateNormal


@checked
def ar1(length: Count, alpha: Scalar) -> MultivariateNormal:
    """The stationary first-order autoregression, whose every latent is N(0, 1).

    z_1 = eps_1,  z_t = alpha z_{t-1} + sqrt(1 - alpha^2) eps_t

    A posterior of independent Gaussians costs at least `delta_vae_rate(length, alpha)` nats under
    it, whatever x: a delta-VAE. Wrap it in `Constant`, or alpha trains, and the rate with it.
    Razavi et al. 2019a, "Preventing posterior collapse with delta-VAEs".

    Args:
      length: n, how many latents follow each other.
      alpha: the correlation of neighbours, in (-1, 1).

    >>> ar1(3, 0.5).scale_tril.shape
    (3, 3)
    """
    alpha = jnp.asarray(alpha, jnp.result_type(float))
    row, column = jnp.indices((length, length))
    # z_t = sum_{s <= t} alpha^(t - s) sigma_s eps_s
    sigma = jnp.where(jnp.arange(length) == 0, 1.0, jnp.sqrt(1.0 - jnp.square(alpha)))
    powers = jnp.cumprod(jnp.where(jnp.arange(length) == 0, 1.0, alpha))  # 0^n has a slope, too
    lag = jnp.maximum(row - column, 0)
    scale_tril = jnp.where(row >= column, powers[lag], 0.0) * sigma[None, :]
    return MultivariateNormal(jnp.zeros(length, alpha.dtype), scale_tril)


@checked
def delta_vae_rate(length: Count, alpha: Scalar) -> Array:
    """The least KL of a posterior of independent Gaussians to `ar1(length, alpha)`, in nats.

    delta = 1/2 [ (n - 2) log(1 + alpha^2) - log(1 - alpha^2) ], n = length >= 2

    Razavi et al. 2019a.

    >>> round(float(delta_vae_rate(32, 0.5)), 4)
    3.491
    """
    if length < 2:
        raise ValueError("delta_vae_rate: length is 1, expected at least 2 latents")
    alpha = jnp.asarray(alpha, jnp.result_type(float))
    return 0.5 * ((length - 2) * jnp.log1p(alpha**2) - jnp.log1p(-(alpha**2)))
