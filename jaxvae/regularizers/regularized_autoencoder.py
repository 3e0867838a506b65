"""Deterministic autoencoders whose decoders are smooth, so that what lies between codes decodes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxvae.bounds.evidence import autoencoder
from jaxvae.checks import Floats, Key, Scalar, Tree, check_array, check_scalar, checked
from jaxvae.model import Model, likelihood, part, posterior
from jaxvae.protocols import mean_of
from jaxvae.pytrees import shown
from jaxvae.pytrees.libraries import functional
from jaxvae.pytrees.networks import parameters, quiet

Penalty = Callable[[Model, Array, Any], Array]


@shown
class RAETerms(NamedTuple):
    """The three parts of the RAE's loss of one example, without their weights.

    Args:
      distortion: |x - x'|^2.
      rate: 1/2 |z|^2, that is -log N(z; 0, I) in nats up to a constant.
      penalty: how rough the decoder is, as the penalty measures it.
    """

    distortion: Array
    rate: Array
    penalty: Array


@checked
def weight_penalty(model: Model, key: Key | None, z: Tree) -> Array:
    """|theta|^2 over all parameters of the decoder, a pytree of floats: RAE-L2, the same at any z.

    Running statistics, as of a batch norm, are no parameters.

    Ghosh et al. 2020, section 3.1.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(2.0 * jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.0)))
    >>> float(weight_penalty(model, jax.random.key(0), jnp.zeros(1)))
    12.0
    """
    del key, z
    return optax.tree.norm(parameters(functional(part(model, "decode"))), squared=True)


@checked
def gradient_penalty(model: Model, key: Key, z: Floats) -> Array:
    """1/2 |J|_F^2 at the code z, J = dx'/dz with x' the mean of p(x|z): RAE-GP.

    1/2 |J v|^2 with v ~ N(0, I), one forward derivative: unbiased, where J itself would take a pass
    for every latent.
    Ghosh et al. 2020, section 3.1, there without the 1/2; the estimate: Hutchinson 1990.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(2.0 * jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> keys = jax.random.split(jax.random.key(0), 10_000)
    >>> draws = jax.vmap(lambda key: gradient_penalty(model, key, jnp.zeros(1)))(keys)
    >>> bool(jnp.abs(jnp.mean(draws) - 6.0) < 0.3)
    True
    """
    z = jnp.asarray(z)
    v = jax.random.normal(key, z.shape, z.dtype)
    _, jv = jax.jvp(lambda z: mean_of(likelihood(quiet(model), z)), (z,), (v,))
    return 0.5 * jnp.sum(jnp.square(jv))


@checked
def rae(
    model: Model, key: Key, x: Tree, *, penalty: Penalty, beta: Scalar, weight: Scalar
) -> tuple[Array, RAETerms]:
    """The regularized autoencoder (RAE): a certain code near the origin, and a smooth decoder.

    -|x - x'|^2 - beta 1/2 |z|^2 - lambda penalty,    z the mean of q(z|x), x' that of p(x|z)

    The noise of a VAE's code makes its decoder smooth; here that is asked for openly. Codes are
    near the origin and of no known density: `generate` from one that is fitted to them afterwards,
    `model._replace(prior=fitted)`.
    Ghosh, Sajjadi, Vergari, Black & Scholkopf 2020, section 3.

    Args:
      model: any `Model` whose distributions have `mean()`, z an array.
      penalty: (model, key, z) -> scalar: `weight_penalty`, `gradient_penalty` or any other.
      beta: weight of 1/2 |z|^2, traced; with `weight` 0 too this is `autoencoder`.
      weight: lambda, traced.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(1.0)))
    >>> score, terms = rae(
    ...     model, jax.random.key(0), jnp.ones(3), penalty=gradient_penalty, beta=1.0, weight=0.1
    ... )
    >>> float(terms.distortion), float(terms.rate)  # z = 3/4: 3 (1/4)^2 and 1/2 (3/4)^2
    (0.1875, 0.28125)
    """
    score, (distortion, _) = autoencoder(model, key, x)
    z = mean_of(posterior(model, x))
    check_array("rae", "z", z)
    rate = 0.5 * jnp.sum(jnp.square(z))
    roughness = penalty(model, key, z)
    check_scalar("rae", "penalty's result", roughness)
    return score - beta * rate - weight * roughness, RAETerms(distortion, rate, roughness)
