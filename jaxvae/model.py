"""A model is three things: a prior p(z), a posterior q(z|x) and a likelihood p(x|z)."""

from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Key, Numbers, Tree, a_class_of, check_leaves, checked
from jaxvae.distributions import Mixture
from jaxvae.protocols import D, Density, Distribution, check_distribution, log_prob_of
from jaxvae.pytrees import shown, swappable
from jaxvae.pytrees.libraries import functional
from jaxvae.pytrees.networks import BATCH

Posterior = TypeVar("Posterior", bound=Distribution, covariant=True)
Likelihood = TypeVar("Likelihood", bound=Density, covariant=True)
Prior = TypeVar("Prior", bound=Distribution, covariant=True)


class Conditional(Protocol[D]):
    """A callable that returns a distribution: q(z|x) of x, or p(x|z) of z."""

    def __call__(self, event: Tree, /) -> D: ...


class Model(Protocol[Posterior, Likelihood, Prior]):
    """Any object with these three is a model. Data and latents may be any pytree.

    Its type says what the three are, where that is known: the posterior of a `VAE` whose encoder
    returns a `Normal` has a mean.

    >>> from types import SimpleNamespace
    >>> from jaxvae import Normal, StandardNormal, elbo
    >>> of = lambda v: Normal(v, 1.0)
    >>> model = SimpleNamespace(encode=of, decode=of, prior=StandardNormal((2,)))
    >>> float(elbo(model, jax.random.key(0), jnp.ones(2))[1].rate)
    1.0
    """

    @property
    def encode(self) -> Conditional[Posterior]:
        """x -> q(z|x)"""
        ...

    @property
    def decode(self) -> Conditional[Likelihood]:
        """z -> p(x|z)"""
        ...

    @property
    def prior(self) -> Prior:
        """p(z)"""
        ...


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


def log_likelihood(model: Model, x: Tree, z: Tree) -> Array:
    """log p(x|z), a scalar in nats; ValueError where x has not the shapes of its draws."""
    check_leaves("model", "x", x)
    return log_prob_of("decode(z)", likelihood(model, z), "x", x)


def likelihood(model: Model[Any, Likelihood, Any], z: Tree) -> Likelihood:
    """p(x|z), having checked that it is a distribution, else TypeError."""
    p = part(model, "decode")(z)
    check_distribution("model.decode returned", p)
    return p


def prior(model: Model[Any, Any, Prior]) -> Prior:
    """p(z), having checked that it is a distribution, else TypeError."""
    p = part(model, "prior")
    check_distribution("model.prior is", p)
    return p


def posterior(model: Model[Posterior, Any, Any], x: Tree) -> Posterior:
    """q(z|x), having checked that it is a distribution, else TypeError."""
    check_leaves("model", "x", x)
    q = part(model, "encode")(x)
    check_distribution("model.encode returned", q)
    return q


def part(model: Any, name: str) -> Any:
    """`model.encode`, `decode` or `prior`; TypeError where it has none that can be used."""
    if hasattr(model, "opt_state"):
        raise TypeError(
            "model is a TrainState, expected its model, state.model; fit takes "
            "jaxvae.train_step(objective, optimizer) and not the objective"
        )
    try:
        part = getattr(functional(model), name)  # once: it may encode pseudo-inputs
    except AttributeError as error:
        of_y = "; of a function y -> model give model(y), given= beside rows, or " * callable(model)
        of_y += "jaxvae.conditioned(objective)" * callable(model)
        raise TypeError(
            f"model is {a_class_of(model)} without {name}, expected an object with encode, "
            f"decode and prior such as jaxvae.VAE(encode, decode, prior){of_y}: {error}"
        ) from error
    if name != "prior" and not callable(part):
        raise TypeError(
            f"model.{name} is {a_class_of(part)}, expected a function that returns a distribution"
        )
    return part
