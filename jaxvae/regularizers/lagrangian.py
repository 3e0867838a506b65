"""One half of the ELBO minimised under a constraint on the other, the multiplier learned too."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from typing_extensions import TypeAliasType

from jaxvae.bounds.evidence import Terms
from jaxvae.bounds.kl import KL, auto_kl
from jaxvae.checks import Key, Scalar, Tree, check_scalar, checked, kind
from jaxvae.distributions.special import weighted
from jaxvae.gradients.reparameterized import Estimator, at_one_sample, pathwise
from jaxvae.model import Model, log_likelihood, posterior, prior
from jaxvae.protocols import Distribution
from jaxvae.pytrees import shown

Number = TypeAliasType("Number", Annotated[Array, check_scalar])
"""A scalar array."""


@shown
@kind("a Constrained; make one, jaxvae.regularizers.Constrained(model, jnp.zeros(()))")
class Constrained(NamedTuple):
    """A model and the multiplier of its constraint: a `Model` itself, so evaluators take it.

    Args:
      model: any `Model`.
      log_multiplier: log lambda, a float scalar; 0 to begin with.

    >>> from jaxvae import elbo
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> constrained = Constrained(model, jnp.zeros(()))
    >>> bound, terms = geco(constrained, jax.random.key(0), jnp.ones(3), tolerance=4.0)
    >>> bool(jnp.isclose(bound, -(terms.rate + terms.multiplier * (terms.distortion - 4.0))))
    True
    """

    model: Any
    log_multiplier: Number

    @property
    def encode(self) -> Any:
        return self.model.encode

    @property
    def decode(self) -> Any:
        return self.model.decode

    @property
    def prior(self) -> Any:
        return self.model.prior


@shown
class ConstrainedTerms(NamedTuple):
    """`Terms` and the multiplier lambda they were weighed with.

    Args:
      distortion: -log p(x|z), nats.
      rate: KL(q(z|x) || p(z)), nats.
      multiplier: lambda.
    """

    distortion: Array
    rate: Array
    multiplier: Array


@checked
def geco(
    model: Constrained,
    key: Key,
    x: Tree,
    *,
    tolerance: Scalar,
    kl: KL = auto_kl,
    gradient: Estimator = pathwise,
) -> tuple[Array, ConstrainedTerms]:
    """GECO: the least rate at a distortion of at most D.

    rate + lambda (distortion - D), which the model descends and lambda climbs

    lambda grows while the batch's mean distortion is above D and shrinks below it, by the same
    optimiser that moves the model, which descends: lambda's gradient has the sign turned.
    Rezende & Viola 2018, "Taming VAEs", algorithm 1.

    Args:
      tolerance: D, nats an example; traced.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> key, x = jax.random.key(0), jnp.ones(3)
    >>> bound = lambda l, D: geco(Constrained(model, l), key, x, tolerance=D)[0]
    >>> [bool(jax.grad(bound)(jnp.zeros(()), D) > 0) for D in (0.0, 100.0)]  # lambda grows, shrinks
    [True, False]
    """
    weights = jnp.exp(model.log_multiplier), jnp.ones(())
    bound, terms = _weighted_elbo(model.model, key, x, kl, gradient, weights)
    return _lagrangian(model, terms, bound, terms.distortion, tolerance)


@checked
def target_rate(
    model: Constrained,
    key: Key,
    x: Tree,
    *,
    target: Scalar,
    kl: KL = auto_kl,
    gradient: Estimator = pathwise,
) -> tuple[Array, ConstrainedTerms]:
    """The least distortion at a rate of R: a beta that finds itself.

    distortion + lambda (rate - R), which the model descends and lambda climbs

    lambda is the beta of a beta-VAE, raised while the batch's mean rate is above R and lowered
    below it: a code of R nats, whatever the data. Where lambda -> 0 R is out of reach.
    Alemi et al. 2018, at a rate fixed beforehand; the multiplier as in `geco`.

    Args:
      target: R, nats an example; traced.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> constrained = Constrained(model, jnp.zeros(()))
    >>> bound, terms = target_rate(constrained, jax.random.key(0), jnp.ones(3), target=2.0)
    >>> bool(jnp.isclose(bound, -(terms.distortion + terms.multiplier * (terms.rate - 2.0))))
    True
    """
    weights = jnp.ones(()), jnp.exp(model.log_multiplier)
    bound, terms = _weighted_elbo(model.model, key, x, kl, gradient, weights)
    return _lagrangian(model, terms, bound, terms.rate, target)


def _weighted_elbo(
    model: Model,
    key: Key,
    x: Tree,
    kl: KL,
    gradient: Estimator,
    weights: tuple[Array, Array],
) -> tuple[Array, Terms]:
    """-(weighted distortion + weighted rate), with the estimator's gradient; weights are held."""
    of_distortion, of_rate = jax.lax.stop_gradient(weights)

    def term(q: Distribution, z: Tree, log_q: Array) -> tuple[Array, Terms]:
        terms = Terms(distortion=-log_likelihood(model, x, z), rate=kl(q, prior(model), z, log_q))
        distortion = weighted(of_distortion.astype(terms.distortion.dtype), terms.distortion)
        return -(distortion + weighted(of_rate.astype(terms.rate.dtype), terms.rate)), terms

    return at_one_sample(gradient, term, posterior(model, x), key)


def _lagrangian(
    model: Constrained, terms: Terms, bound: Array, constrained: Array, limit: Scalar
) -> tuple[Array, ConstrainedTerms]:
    """-(cost + lambda excess), whose ascent moves the model one way and lambda the other."""
    multiplier = jnp.exp(model.log_multiplier)
    held = jax.lax.stop_gradient(multiplier)
    # 0, but for its gradient
    ascent = (multiplier - held) * jax.lax.stop_gradient(constrained - limit)
    aux = ConstrainedTerms(terms.distortion, terms.rate, held)
    return bound + held * limit + ascent, aux
