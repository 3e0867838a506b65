"""Distributions of the indices of codes: one that is sure, and a prior that minds a mask."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Integers, Key, Leaf, Tree, checked
from jaxvae.distributions.masked import Masked
from jaxvae.protocols import Distribution, check_event, distribution
from jaxvae.pytrees import pytree


@distribution
@dataclass(frozen=True, eq=False)
class Delta:
    """All probability on one event, an array of integers: the posterior of what is deterministic.

    >>> import jax
    >>> q = Delta(jnp.array([3, 1]))
    >>> float(q.log_prob(q.sample(jax.random.key(0)))), float(q.log_prob(jnp.array([3, 2])))
    (0.0, -inf)
    """

    value: Leaf
    reparameterized: ClassVar[bool] = False
    certain: ClassVar[bool] = True

    @property
    @checked
    def shape(self) -> tuple[int, ...]:
        return jnp.shape(self.value)

    def sample(self, key: Key) -> Any:
        del key
        return self.value

    def log_prob(self, event: Tree) -> Array:
        return jnp.where(jnp.all(event == self.value), 0.0, -jnp.inf)


@pytree
@dataclass(frozen=True, eq=False)
class MaskedCodes:
    """A prior of indices in which -1 stands for no vector, and costs nothing.

    log p(k) = sum_{i: k_i >= 0} log p_i(k_i), given which vectors there are; draws have them all.

    Args:
      distribution: of independent indices, as a `Categorical`; whatever `Masked` takes.

    >>> from jaxvae import Categorical
    >>> prior = MaskedCodes(Categorical(jnp.zeros((3, 2))))
    >>> round(float(prior.log_prob(jnp.array([1, 0, -1]))), 5)  # -2 log 2
    -1.38629
    """

    distribution: Distribution
    reparameterized: ClassVar[bool] = False

    def sample(self, key: Key) -> Any:
        return self.distribution.sample(key)

    @checked
    def log_prob(self, event: Integers) -> Array:
        check_event("distribution", self.distribution, "event", event)
        return Masked(self.distribution).log_prob((jnp.maximum(event, 0), event >= 0))
