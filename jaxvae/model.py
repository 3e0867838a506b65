"""A model is three things: a prior p(z), a posterior q(z|x) and a likelihood p(x|z)."""

from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.checks import Key, Numbers, Tree, checked
from jaxvae.distributions import Mixture
from jaxvae.protocols import (
    Conditional,
    Likelihood,
    Model,
    Posterior,
    Prior,
    likelihood,
    posterior,
    prior,
)
from jaxvae.pytrees import shown, swappable
from jaxvae.pytrees.networks import BATCH


@shown
@swappable
class VAE(NamedTuple, Generic[Posterior, Likelihood, Prior]):
    """The stock model: a NamedTuple of callable pytrees, so that it is a pytree itself.

    `encode` and `decode` RETURN DISTRIBUTIONS. A Flax NNX or Equinox module is callable and a
    pytree already; wrap a plain function in `jax.tree_util.Partial`, and a Linen module as
    `jax.tree_util.Partial(module.apply, params)`. Swap one of the three with `_replace`.

    Args:
      encode: x -> q(z|x).
      decode: z -> p(x|z).
      prior: p(z).

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

    encode: Conditional[Posterior]
    decode: Conditional[Likelihood]
    prior: Prior


@shown
@swappable
class VampVAE(NamedTuple, Generic[Posterior, Likelihood]):
    """A model with a VampPrior, the mixture of its own posteriors at learned pseudo-inputs.

    p(z) = sum_k pi_k q(z|u_k)

    Under `batched` the prior is encoded once a step: K pseudo-inputs cost K encodings, whatever the
    batch. With a single one, p(z) is q(z|u).
    Tomczak & Welling 2018.

    Args:
      encode: x -> q(z|x), one kind of distribution for all x.
      decode: z -> p(x|z).
      pseudo_inputs: u, K examples stacked, floats that train; rows of data make a good start. Of
        bytes they are floats from 0 to 255, and so `encode` takes these:
        `partial(nn.Rescaled, network, max_value=255.0)`.
      logits: of pi, shape [K]; None, the default, holds all at 1/K.

    >>> from jaxvae import Normal
    >>> encode = decode = lambda v: Normal(v, jnp.ones(2))
    >>> prior = VampVAE(encode, decode, pseudo_inputs=jnp.eye(2)).prior
    >>> prior.mean().tolist()
    [0.5, 0.5]
    """

    encode: Conditional[Posterior]
    decode: Conditional[Likelihood]
    pseudo_inputs: Tree
    logits: Numbers | None = None

    @property
    def prior(self) -> Mixture[Posterior]:
        components = jax.vmap(self.encode, axis_name=BATCH)(self.pseudo_inputs)
        k = len(jax.tree.leaves(self.pseudo_inputs)[0])
        logits = jnp.zeros(k) if self.logits is None else self.logits
        return Mixture(logits, components)


@checked
def reconstruct(model: Model[Any, Likelihood, Any], key: Key, x: Tree) -> Likelihood:
    """p(x'|z) with z ~ q(z|x): what the model remembers of x; show its `mean()`.

    >>> from jaxvae import Normal, StandardNormal
    >>> encode, decode = lambda x: Normal(x, 0.0), lambda z: Normal(2.0 * z, 1.0)
    >>> model = VAE(encode, decode, StandardNormal((2,)))
    >>> reconstruct(model, jax.random.key(0), jnp.array([1.0, 3.0])).mean().tolist()
    [2.0, 6.0]
    """
    return likelihood(model, posterior(model, x).sample(key))


@checked
def generate(model: Model[Any, Likelihood, Any], key: Key) -> Likelihood:
    """p(x|z) with z ~ p(z): a new example; show its `mean()` or draw from it.

    >>> from jaxvae import Normal
    >>> encode = decode = lambda v: Normal(2.0 * v, 1.0)
    >>> model = VAE(encode, decode, prior=Normal(jnp.array([1.0, 3.0]), 0.0))
    >>> generate(model, jax.random.key(0)).mean().tolist()
    [2.0, 6.0]
    """
    return likelihood(model, prior(model).sample(key))
