"""Densities of a location and a scale with heavier tails than the Gaussian's."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Leaf, Numbers, Tree, check_scale, refuse_bytes
from jaxvae.distributions.special import float_type, log_beta, real
from jaxvae.protocols import distribution
from jaxvae.pytrees import stacked


@distribution
@dataclass(frozen=True, eq=False)
class Laplace:
    """Independent Laplace: log p(z) = -sum_i [ |z_i - m_i| / b_i + log 2 b_i ].

    Args:
      loc: m, any shape [...]; that is the event's shape.
      scale: b > 0, the same shape or a scalar.

    >>> round(float(Laplace(jnp.zeros(1), jnp.ones(1)).log_prob(jnp.zeros(1))), 5)  # -log 2
    -0.69315
    """

    loc: Leaf
    scale: Leaf
    filler: ClassVar[float] = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        check_scale("Laplace", self.loc, self.scale)
        return jnp.shape(self.loc)

    def sample(self, key: Array) -> Array:
        return self.sample_and_log_prob(key)[0]

    def log_prob(self, z: Tree) -> Array:
        refuse_bytes("Laplace.log_prob", z)
        return self._log_density((real(z) - real(self.loc)) / self.scale)

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        eps = jax.random.laplace(key, self.shape, float_type(self.loc, self.scale))
        return self.loc + self.scale * eps, self._log_density(eps)

    def mean(self) -> Array:
        return jnp.broadcast_to(self.loc, self.shape)

    def covariance(self) -> Array:
        """diag 2 b^2 of the flattened event, [d, d]."""
        return jnp.diag(2.0 * jnp.square(jnp.broadcast_to(self.scale, self.shape)).reshape(-1))

    def cdf(self, z: Tree) -> Array:
        """P(z_i' <= z_i) of each coordinate, in the shape of the event."""
        y = (z - self.loc) / self.scale
        return jnp.where(y < 0, 0.5 * jnp.exp(-jnp.abs(y)), 1.0 - 0.5 * jnp.exp(-jnp.abs(y)))

    def unstack(self) -> Any:
        return stacked(self, self.shape)

    def _log_density(self, eps: Numbers) -> Array:
        return -jnp.sum(jnp.abs(eps) + jnp.log(2.0 * self.scale))


@distribution
@dataclass(frozen=True, eq=False)
class StudentT:
    """Independent Student t: tails of power df + 1, and a Gaussian as df goes to infinity.

    log p(z) = -sum_i [ (nu + 1)/2 log(1 + y_i^2 / nu) + log B(nu/2, 1/2) + 1/2 log nu
                        + log sigma_i ],   y = (z - mu) / sigma

    Args:
      df: nu > 0, the shape of `loc` or a scalar.
      loc: mu, any shape [...]; that is the event's shape. It is the mean where df > 1.
      scale: sigma > 0, the same shape or a scalar.

    >>> d = StudentT(1.0, jnp.zeros(1), 1.0)
    >>> round(float(d.log_prob(jnp.zeros(1))), 5)  # Cauchy: -log pi
    -1.14473
    """

    df: Leaf
    loc: Leaf
    scale: Leaf
    filler: ClassVar[float] = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        check_scale("StudentT", self.loc, self.scale)
        check_scale("StudentT", self.loc, self.df, name="df")
        return jnp.shape(self.loc)

    def sample(self, key: Array) -> Array:
        return self.sample_and_log_prob(key)[0]

    def log_prob(self, z: Tree) -> Array:
        refuse_bytes("StudentT.log_prob", z)
        return self._log_density((real(z) - real(self.loc)) / self.scale)

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        dtype = float_type(self.df, self.loc, self.scale)
        y = jax.random.t(key, jnp.asarray(self.df, dtype), self.shape, dtype)
        return self.loc + self.scale * y, self._log_density(y)

    def mean(self) -> Array:
        """loc: the median, where df is 1 or less and there is no mean."""
        return jnp.broadcast_to(self.loc, self.shape)

    def unstack(self) -> Any:
        return stacked(self, self.shape)

    def _log_density(self, y: Numbers) -> Array:
        half = 0.5 * jnp.asarray(self.df, jnp.result_type(y))
        norm = log_beta(half, jnp.full_like(half, 0.5)) + 0.5 * jnp.log(self.df)
        # log(1 + y^2 / df), whose square overflows long before y
        r = jnp.abs(y) / jnp.sqrt(jnp.asarray(self.df, half.dtype))
        far = r > 1.0
        safe = jnp.where(far, r, 1.0)
        inner = jnp.where(far, 1.0 / safe, r)
        power = (half + 0.5) * (jnp.log1p(jnp.square(inner)) + 2.0 * jnp.log(safe))
        return -jnp.sum(power + norm + jnp.log(self.scale))
