"""Data that are missing because of what they are: not-MIWAE, a mechanism as one more likelihood."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Tree, check_leaves, checked
from jaxvae.distributions import Joint, Masked
from jaxvae.distributions.special import float_type
from jaxvae.protocols import Distribution, check_event, log_density
from jaxvae.pytrees import pytree, shown, swappable


@pytree
@dataclass(frozen=True, eq=False)
class MaskedBy:
    """p(x_observed, s | z, x'): what was seen, and that it was, with x' in the gaps.

    log p(x_observed|z) + log p(s | x_observed, x'_missing)

    Args:
      distribution: p(x|z) of all entries, as `Masked` takes it.
      imputed: x', an event of it.
      mechanism: x -> p(s|x), over floats 1. where x is seen and 0. where not: `Bernoulli`s.

    >>> from jaxvae import Bernoulli, Normal
    >>> coin = lambda x: Bernoulli(jnp.zeros_like(x))
    >>> d = MaskedBy(Normal(jnp.zeros(2), 1.0), jnp.zeros(2), coin)
    >>> x, mask = jnp.array([0.0, jnp.nan]), jnp.array([True, False])
    >>> round(float(d.log_prob((x, mask))), 4)  # -1/2 log 2 pi - 2 log 2
    -2.3052
    """

    distribution: Any
    imputed: Any
    mechanism: Callable[[Any], Any]
    with_mask: ClassVar[bool] = True  # events are pairs (x, mask)

    def sample(self, key: Array) -> tuple[Any, Any]:
        x_key, s_key = jax.random.split(key)
        x = self.distribution.sample(x_key)
        s = self.mechanism(x).sample(s_key)
        return x, jax.tree.map(lambda s: s > 0.5, s)

    def log_prob(self, event: tuple[Any, Any]) -> Array:
        self.check_event("MaskedBy", "event", event)
        x, mask = event
        for name, tree in ("x", x), ("mask", mask), ("imputed", self.imputed):
            check_leaves("MaskedBy", name, tree)
            check_event("MaskedBy", self.distribution, name, tree)
        whole = jax.tree.map(jnp.where, mask, x, self.imputed)
        s = jax.tree.map(lambda m, x: jnp.asarray(m).astype(float_type(x)), mask, whole)
        return Masked(self.distribution).log_prob(event) + log_density(self.mechanism(whole), s)

    def check_event(self, name: str, what: str, event: Any) -> None:
        check_event(name, Masked(self.distribution), what, event)


@shown
@swappable
class NotAtRandom(NamedTuple):
    """A model of rows whose gaps say something: p(x, s, z) = p(z) p(x|z) p(s|x). not-MIWAE.

    Events are pairs (x, mask), and latents pairs (z, x') with x' ~ p(x|z) under prior and posterior
    alike, of which what is missing is used. So every bound is one of log p(x_observed, s):

        iwae:  E[ log 1/K sum_k p(x_observed|z_k) p(s|x_observed, x'_k) p(z_k) / q(z_k|x_observed) ]

    and `evaluation.impute` weighs the x'. Which values hide is not in the data: only a mechanism
    that is nearly known, as a self-masking one with a slope of known sign, tells of the gaps.
    Ipsen, Mattei & Frellsen 2021.

    Args:
      posterior: (x, mask) -> q(z|x_observed).
      likelihood: z -> p(x|z) of all entries; draws need a derivative for `pathwise`.
      latent_prior: p(z).
      mechanism: x -> p(s|x), over floats in the shape of x.

    >>> from jaxvae import Bernoulli, Normal, StandardNormal
    >>> model = NotAtRandom(
    ...     posterior=lambda event: Normal(jnp.zeros(1), 1.0),
    ...     likelihood=lambda z: Normal(jnp.concatenate([z, -z]), 1.0),
    ...     latent_prior=StandardNormal((1,)),
    ...     mechanism=lambda x: Bernoulli(-2.0 * x),  # what is large hides
    ... )
    >>> from jaxvae.evaluation import impute
    >>> event = jnp.array([0.0, jnp.nan]), jnp.array([True, False])
    >>> bool(impute(model, jax.random.key(0), event, num_samples=1000)[1] > 0.5)
    True
    """

    posterior: Callable[[Any], Any]
    likelihood: Callable[[Any], Any]
    latent_prior: Distribution
    mechanism: Callable[[Any], Any]

    @property
    def prior(self) -> Joint:
        return Joint(self.latent_prior, self.likelihood)

    @checked
    def encode(self, event: tuple[Any, Any]) -> Joint:
        return Joint(self.posterior(event), self.likelihood)

    @checked
    def decode(self, z: Tree) -> MaskedBy:
        z, imputed = z
        return MaskedBy(self.likelihood(z), imputed, self.mechanism)
