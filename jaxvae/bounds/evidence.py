"""The evidence lower bound, and the deterministic autoencoder that it becomes at beta = 0."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxvae.bounds.kl import KL, auto_kl
from jaxvae.checks import Key, Scalar, Tree, check_shape, checked
from jaxvae.distributions.special import weighted
from jaxvae.gradients.reparameterized import Estimator, at_one_sample, pathwise
from jaxvae.model import Model, likelihood, log_likelihood, posterior, prior
from jaxvae.protocols import Distribution, mean_of
from jaxvae.pytrees import shown


@shown
class Terms(NamedTuple):
    """The two halves of the ELBO of one example, in nats, without beta: Alemi et al. 2018.

    Args:
      distortion: -log p(x|z), the price of describing x given its code.
      rate: KL(q(z|x) || p(z)), the price of the code, exact or at one sample.
    """

    distortion: Array
    rate: Array


@checked
def elbo(
    model: Model,
    key: Key,
    x: Tree,
    *,
    beta: Scalar = 1.0,
    kl: KL = auto_kl,
    gradient: Estimator = pathwise,
) -> tuple[Array, Terms]:
    """The evidence lower bound: log p(x) >= E_q[log p(x|z)] - beta KL(q(z|x) || p(z)), one draw z.

    At beta = 1 the gap is KL(q(z|x) || p(z|x)). beta > 1 buys a cheaper code with distortion;
    beta = 0 is reconstruction alone, and with sigma -> 0 the deterministic `autoencoder`.
    Kingma & Welling 2014, equation 10; beta-VAE: Higgins et al. 2017, equation 4.

    Args:
      beta: weight of the rate, traced: anneal it, or vmap over it.
      gradient: the gradient estimator; all but `vimco`, which needs several samples: those are
        `miwae(..., num_outer=M, num_samples=1)`.

    Raises:
      NotImplementedError: `analytic_kl` of a pair without a closed form, or under
        `sticking_the_landing`, which is made for the sampled one.

    >>> import jax
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> bound, terms = elbo(model, jax.random.key(0), jnp.ones(3))
    >>> bool(jnp.isclose(bound, -(terms.distortion + terms.rate)))
    True
    """

    def term(q: Distribution, z: Tree, log_q: Array) -> tuple[Array, Terms]:
        terms = Terms(distortion=-log_likelihood(model, x, z), rate=kl(q, prior(model), z, log_q))
        return -(terms.distortion + weighted(beta, terms.rate)), terms

    return at_one_sample(gradient, term, posterior(model, x), key)


@checked
def autoencoder(model: Model, key: Key | None, x: Tree) -> tuple[Array, Terms]:
    """The deterministic autoencoder: -|x - x'|^2, x' = E[p(x|z)] at the mean z of q(z|x).

    Nothing is drawn and nothing is paid for the code, so the codes may lie anywhere, and decoding a
    draw of the prior need not give anything like the data. It is the limit of `elbo` at beta = 0,
    sigma -> 0 under a Gaussian likelihood of variance 1/2, up to a constant, and its `Terms` have
    |x - x'|^2, summed over x, and a rate of 0. Both distributions need a `mean()`.
    Hinton & Salakhutdinov 2006; the limit: Kingma & Welling 2014, section 2.3.

    >>> import jax
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(1.0)))
    >>> round(float(autoencoder(model, jax.random.key(0), jnp.ones(3))[0]), 5)  # -3 (1/4)^2
    -0.1875
    """
    del key
    x_mean = mean_of(likelihood(model, mean_of(posterior(model, x))))
    check_shape("autoencoder", "x", x, jnp.shape(x_mean))
    squared_error = jnp.sum(jnp.square(x - x_mean))
    return -squared_error, Terms(squared_error, jnp.zeros_like(squared_error))
