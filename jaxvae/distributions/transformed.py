"""A distribution pushed through a bijector."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax import Array

from jaxvae.checks import Tree
from jaxvae.protocols import (
    distribution,
    has_path,
    is_certain,
    log_density,
    sample_and_log_prob,
)


@distribution
@dataclass(frozen=True, eq=False)
class Transformed:
    """x = f(z), z ~ base: log p(x) = log base(z) - log |det df/dz|.

    Sampling goes forward once, density included, and scoring goes backward once. So an inverse
    autoregressive posterior trains in one pass and never inverts itself, and its `Inverse` makes a
    prior that scores in one. An estimator that holds q still and scores its samples anew,
    `sticking_the_landing` and `doubly_reparameterized`, inverts a posterior for it.
    Rezende & Mohamed 2015, equation 5.

    Args:
      base: a distribution.
      bijector: f, with `forward_and_log_det` and `inverse_and_log_det`; a `Chain` of several.

    >>> import jax.numpy as jnp
    >>> from jaxvae import StandardNormal
    >>> from jaxvae.bijectors import Affine
    >>> d = Transformed(StandardNormal((1,)), Affine(jnp.ones(1), jnp.zeros(1)))
    >>> round(float(d.log_prob(jnp.ones(1))), 5)  # -1/2 log 2 pi
    -0.91894
    """

    base: Any
    bijector: Any

    @property
    def shape(self) -> Any:
        return getattr(self.base, "shape", None)

    @property
    def reparameterized(self) -> bool:
        return has_path(self.base)

    @property
    def certain(self) -> bool:
        return is_certain(self.base)

    def sample(self, key: Array) -> Any:
        return self.bijector.forward_and_log_det(self.base.sample(key))[0]

    def log_prob(self, x: Tree) -> Array:
        z, log_det = self.bijector.inverse_and_log_det(x)
        return log_density(self.base, z) + log_det

    def sample_and_log_prob(self, key: Array) -> tuple[Any, Array]:
        z, log_p = sample_and_log_prob(self.base, key)
        x, log_det = self.bijector.forward_and_log_det(z)
        return x, log_p - log_det

    def in_parts(self, change: Callable[[Any], Any]) -> "Transformed":
        return Transformed(change(self.base), self.bijector)
