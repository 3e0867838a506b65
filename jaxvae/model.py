"""A model is three things: a prior p(z), a posterior q(z|x) and a likelihood p(x|z)."""

from typing import Any, NamedTuple

import jax

from jaxvae.protocols import Conditional, Distribution, Model, likelihood, posterior, prior

Array = jax.Array


class VAE(NamedTuple):
    """The stock model: a NamedTuple of callable pytrees, so that it is a pytree itself.

    `encode` and `decode` RETURN DISTRIBUTIONS. A Flax NNX or Equinox module is callable and a
    pytree already; wrap a plain function in `jax.tree_util.Partial`, and a Linen module as
    `jax.tree_util.Partial(module.apply, params)`. Swap one of the three with `_replace`.

    Args:
      encode: x -> q(z|x).
      decode: z -> p(x|z).
      prior: p(z).

    >>> import jax.numpy as jnp
    >>> from jax.tree_util import Partial
    >>> from jaxvae import Normal, StandardNormal
    >>> model = VAE(
    ...     encode=Partial(lambda x: Normal(0.5 * x, jnp.full_like(x, 0.7))),
    ...     decode=Partial(lambda z: Normal(z, jnp.ones_like(z))),
    ...     prior=StandardNormal((2,)),
    ... )
    >>> generate(model, jax.random.key(0)).sample(jax.random.key(1)).shape
    (2,)
    """

    encode: Conditional
    decode: Conditional
    prior: Distribution


def reconstruct(model: Model, key: Array, x: Any) -> Distribution:
    """p(x'|z) with z ~ q(z|x): what the model remembers of x; show its `mean()`.

    Args:
      model: any `Model`.
      key: a PRNG key.
      x: one example.

    Returns:
      The distribution of a reconstruction.
    """
    return likelihood(model, posterior(model, x).sample(key))


def generate(model: Model, key: Array) -> Distribution:
    """p(x|z) with z ~ p(z): a new example; show its `mean()` or draw from it.

    Args:
      model: any `Model`.
      key: a PRNG key.

    Returns:
      The distribution of a new example.
    """
    return likelihood(model, prior(model).sample(key))
