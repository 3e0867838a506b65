"""A class beside the code: objectives of examples with a label and of examples without one."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

from jax import Array
from jax.tree_util import Partial

from jaxvae.batching import Objective, conditioned, lifts
from jaxvae.checks import Key, Scalar, Tree, check_leaves, check_pair, checked, kind
from jaxvae.distributions import Joint
from jaxvae.distributions.special import weighted
from jaxvae.gradients.discrete import enumeration
from jaxvae.gradients.reparameterized import at_one_sample
from jaxvae.model import Model, likelihood, posterior, prior
from jaxvae.protocols import Distribution, check_distribution, log_prob_of
from jaxvae.pytrees import shown, swappable
from jaxvae.pytrees.libraries import functional

Labelled = Annotated[tuple[Any, Any], partial(check_pair, of="(x, y)")]


@shown
@kind("a LabelVAE; make one, jaxvae.models.LabelVAE(classify, given, labels)")
@swappable
class LabelVAE(NamedTuple):
    """A VAE with a class y beside z: p(y) p(z|y) p(x|y, z), inferred by q(y|x) q(z|x, y).

    `labelled` and `unlabelled` train it. It is also a `Model` whose latents are the pairs (y, z),
    for every bound, evaluator and estimator that a posterior without derivative is good for.
    Kingma, Mohamed, Rezende & Welling 2014, equations 2 and 4, there M2.

    Args:
      classify: x -> q(y|x), with `enumerate_support()`: a `Categorical`, a `OneHotCategorical`.
      given: y -> the `Model` of x given y, a callable pytree.
      labels: p(y).

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxvae import VAE, Categorical, Normal, StandardNormal
    >>> given = Partial(lambda y: VAE(
    ...     encode=lambda x: Normal(x / 2.0 - y, 0.7 * jnp.ones(2)),
    ...     decode=lambda z: Normal(z + y, jnp.ones(2)),
    ...     prior=StandardNormal((2,)),
    ... ))
    >>> classify = Partial(lambda x: Categorical(jnp.stack([0.0 * x[0], x[0], x[1]])))
    >>> model = LabelVAE(classify, given, labels=Categorical(jnp.zeros(3)))
    >>> y, z = model.prior.sample(jax.random.key(0))
    >>> y.shape, z.shape
    ((), (2,))
    """

    classify: Callable[[Any], Distribution]
    given: Callable[[Any], Model]
    labels: Distribution

    @checked
    def encode(self, x: Tree) -> Joint:
        return Joint(_class_posterior(self, x), Partial(_posterior_given, self.given, x))

    def decode(self, yz: tuple[Any, Any]) -> Any:
        y, z = yz
        return likelihood(self.given(y), z)

    @property
    @checked
    def prior(self) -> Joint:
        return Joint(self.labels, Partial(_prior_given, self.given))


@checked
def labelled(objective: Objective) -> Objective:
    """The objective of examples with a label: log p(y) + bound(x|y) + alpha log q(y|x).

    At alpha = 0 it is below log p(x, y), and nothing in it trains q(y|x): alpha > 0 is what makes
    that a classifier. Kingma et al. 2014, equations 6 and 9.

    Args:
      objective: `(model, key, x, **hyper) -> (bound, aux)`, such as `elbo` or `iwae`, of x given y.

    Returns:
      `(model, key, (x, y), *, alpha, **hyper)` of a `LabelVAE`: the sum in nats, and the aux of the
      objective. alpha is traced; 0.0 by default.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxvae import VAE, Categorical, Normal, StandardNormal, elbo
    >>> idle, x = StandardNormal((1,)), jnp.zeros(1)
    >>> given = Partial(lambda y: VAE(lambda x: idle, lambda z: Normal(jnp.zeros(1), 1.0), idle))
    >>> model = LabelVAE(lambda x: Categorical(jnp.zeros(2)), given, Categorical(jnp.zeros(2)))
    >>> bound, _ = labelled(elbo)(model, jax.random.key(0), (x, jnp.array(0)), alpha=1.0)
    >>> round(float(bound), 4)  # -1/2 log 2 pi, and -log 2 twice
    -2.3052
    """

    @lifts(objective)
    @checked
    def labelled_objective(
        model: LabelVAE, key: Key, xy: Labelled, *, alpha: Scalar = 0.0, **hyper: Any
    ) -> tuple[Array, Any]:
        x, y = xy
        bound, aux = conditioned(objective)(model.given, key, xy, **hyper)
        log_q = log_prob_of("classify(x)", _class_posterior(model, x), "y", y)
        return bound + _log_prior(model, y) + weighted(alpha, log_q), aux

    return labelled_objective


@checked
def unlabelled(objective: Objective) -> Objective:
    """The objective of examples without a label, by summing over all classes.

    log p(x) >= sum_y q(y|x) [ bound(x|y) + log p(y) - log q(y|x) ]

    The classes share one key, so that what tells them apart is the class and not the draw. With
    `elbo` it is the ELBO of the pair (y, z), exact in y. Kingma et al. 2014, equation 7.

    Args:
      objective: as for `labelled`.

    Returns:
      `(model, key, x, **hyper)` of a `LabelVAE`: the bound in nats, and the mean under q(y|x) of
      the objective's aux.

    Raises:
      TypeError: by the objective, where `model` is no `LabelVAE` or a part of it no distribution,
        or q(y|x) cannot be enumerated.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxvae import VAE, Categorical, Normal, StandardNormal, elbo
    >>> idle, x = StandardNormal((1,)), jnp.zeros(1)
    >>> given = Partial(lambda y: VAE(lambda x: idle, lambda z: Normal(jnp.zeros(1), 1.0), idle))
    >>> model = LabelVAE(lambda x: Categorical(jnp.zeros(2)), given, Categorical(jnp.zeros(2)))
    >>> round(float(unlabelled(elbo)(model, jax.random.key(0), x)[0]), 4)  # -1/2 log 2 pi
    -0.9189
    """

    @lifts(objective)
    @checked
    def unlabelled_objective(model: LabelVAE, key: Key, x: Tree, **hyper: Any) -> tuple[Array, Any]:
        def term(q: Distribution, y: Tree, log_q: Array) -> tuple[Array, Any]:
            del q
            bound, aux = conditioned(objective)(model.given, key, (x, y), **hyper)
            return bound + _log_prior(model, y) - log_q, aux

        return at_one_sample(enumeration, term, _class_posterior(model, x), key)

    return unlabelled_objective


def _class_posterior(model: LabelVAE, x: Tree) -> Any:
    check_leaves("model", "x", x)
    q = functional(model.classify)(x)
    check_distribution("model.classify returned", q)
    return q


def _log_prior(model: LabelVAE, y: Tree) -> Array:
    return log_prob_of("labels", model.labels, "y", y)


def _posterior_given(given: Callable[..., Any], x: Tree, y: Tree) -> Any:
    return posterior(given(y), x)


def _prior_given(given: Callable[..., Any], y: Tree) -> Any:
    return prior(given(y))
