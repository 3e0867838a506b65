"""Draws of choices with a derivative of their own, where no estimator can reach: within a chain."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax import Array

from jaxvae.checks import Key, Tree
from jaxvae.distributions.kl import closed_form
from jaxvae.protocols import (
    Distribution,
    event_shape,
    log_density,
    log_density_relaxed,
    mean_of,
    method_of,
)
from jaxvae.pytrees import pytree, value_of, with_path


@pytree
@dataclass(frozen=True, eq=False)
class StraightThrough:
    """A distribution of choices whose draws are samples forwards and its mean backwards: biased.

    z = sg(sample) + mean - sg(mean)

    The estimator `straight_through` does this to a posterior as a whole; this one serves step by
    step in a chain or a hierarchy, where the mean of a step depends on the draws before it.
    Bengio, Leonard & Courville 2013; in a chain: Hafner et al. 2021 (DreamerV2), algorithm 1.

    Args:
      distribution: with a `mean()` of a sample's shape: `OneHotCategorical`, `Bernoulli`.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxvae import OneHotCategorical
    >>> key, draw = jax.random.key(0), lambda d: d.sample(key)
    >>> d = StraightThrough(OneHotCategorical(jnp.zeros(2)))
    >>> jax.jacobian(draw)(d).distribution.logits.tolist()  # that of softmax
    [[0.25, -0.25], [-0.25, 0.25]]
    """

    distribution: Distribution

    @property
    def shape(self) -> Any:
        return event_shape(self.distribution)

    def sample(self, key: Key) -> Array:
        return with_path(self.distribution.sample(key), self.mean())

    def log_prob(self, z: Tree) -> Array:
        return log_density(self.distribution, z)

    def log_prob_relaxed(self, z: Tree) -> Array:
        return log_density_relaxed(self.distribution, z)

    def mean(self) -> Array:
        return mean_of(self.distribution)

    def unstack(self) -> "StraightThrough":
        return StraightThrough(method_of(self.distribution, "unstack")())

    def in_parts(self, change: Callable[[Any], Any]) -> "StraightThrough":
        return StraightThrough(change(self.distribution))

    def kl_to(self, p: Distribution) -> Array | None:
        p = value_of(p)
        return closed_form(self.distribution, p.distribution if isinstance(p, type(self)) else p)
