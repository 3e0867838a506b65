"""The diagonal Gaussian, and the trick that made the VAE: a draw that gradients pass through."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr

from jaxvae.checks import Key, Leaf, Numbers, Tree, check_scale, check_shape, checked, refuse_bytes
from jaxvae.distributions.distances import squared_distances
from jaxvae.distributions.special import float_type, real
from jaxvae.protocols import check_factor, distribution
from jaxvae.pytrees import in_a_row, stacked, wide

LOG_2PI = 1.8378770664093453


@checked
def reparameterize(key: Key, loc: Numbers, scale: Numbers) -> Array:
    """z = mu + sigma * eps, eps ~ N(0, I): a draw that gradients in mu and sigma pass through.

    mu is `loc` [...] and sigma > 0 `scale`, as large or a scalar.
    Kingma & Welling 2014, section 2.4; Rezende et al. 2014.

    >>> reparameterize(jax.random.key(0), jnp.zeros(2), jnp.ones(2)).shape
    (2,)
    """
    return Normal(loc, scale).sample(key)


@distribution
@dataclass(frozen=True, eq=False)
class StandardNormal:
    """N(0, I) over events of a `shape`, a tuple. It has no leaves, so it cannot train by accident.

    log p(z) = -1/2 sum_i (z_i^2 + log 2 pi)

    >>> round(float(StandardNormal((2,)).log_prob(jnp.zeros(2))), 5)  # -log 2 pi
    -1.83788
    """

    shape: tuple[int, ...] = field(metadata={"static": True})
    filler: ClassVar[float] = 0.0

    def __post_init__(self) -> None:  # static metadata alone, so this is safe on unflatten
        if not (isinstance(self.shape, tuple) and all(isinstance(n, int) for n in self.shape)):
            raise TypeError(
                f"StandardNormal: shape is {self.shape!r}, expected a tuple such as (20,)"
            )

    def sample(self, key: Key) -> Array:
        return jax.random.normal(key, self.shape)

    def log_prob(self, z: Tree) -> Array:
        refuse_bytes("StandardNormal.log_prob", z)
        return -0.5 * jnp.sum(jnp.square(real(z)) + LOG_2PI)

    def mean(self) -> Array:
        return jnp.zeros(self.shape)

    def unstack(self) -> "Normal":
        return Normal(jnp.zeros(self.shape), jnp.ones(self.shape))

    def times(self, other: "Normal") -> "Normal":
        return self.unstack().times(other)


@distribution
@dataclass(frozen=True, eq=False)
class Normal:
    """N(mu, diag sigma^2), the diagonal Gaussian.

    log p(z) = -sum_i [ 1/2 ((z_i - mu_i) / sigma_i)^2 + log sigma_i + 1/2 log 2 pi ]

    Args:
      loc: mu, any shape [...]; that is the event's shape.
      scale: sigma > 0, the same shape or a scalar.

    >>> d = Normal(jnp.array([1.0, 2.0]), jnp.array([0.5, 0.5]))
    >>> round(float(d.log_prob(d.mean())), 5)  # -2 log(0.5) - log 2 pi
    -0.45158
    """

    loc: Leaf
    scale: Leaf
    filler: ClassVar[float] = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        check_scale("Normal", self.loc, self.scale)
        return jnp.shape(self.loc)

    def sample(self, key: Key) -> Array:
        return self.sample_and_log_prob(key)[0]

    def log_prob(self, z: Tree) -> Array:
        refuse_bytes("Normal.log_prob", z)
        z, loc, scale = in_a_row(real(z), real(self.loc), self.scale)
        return Normal(loc, scale)._log_density((z - loc) / scale)

    def log_prob_of_each(self, z: Tree) -> Array:
        """log p_k(z) of K along the leading axis of the leaves, [K]: see `squared_distances`."""
        shape = jax.tree.map(lambda leaf: leaf[0], self).shape
        check_shape("Normal.log_prob", "event", z, shape)
        refuse_bytes("Normal.log_prob", z)
        z, loc, scale = jnp.asarray(real(z)), real(self.loc), self.scale
        dtype, k = jnp.result_type(z, loc, scale), len(loc)
        loc = loc.reshape(k, -1).astype(dtype)
        scale = jnp.broadcast_to(scale.reshape(k, -1), loc.shape).astype(dtype)
        distances = squared_distances(z.reshape(-1).astype(dtype), loc, scale)
        return -0.5 * distances - jnp.sum(jnp.log(scale) + 0.5 * LOG_2PI, axis=1)

    def sample_and_log_prob(self, key: Key) -> tuple[Array, Array]:
        # log q is read off eps: (z - mu) / sigma would lose digits when sigma is small beside mu
        eps = jax.random.normal(key, self.shape, float_type(self.loc, self.scale))
        return self.loc + self.scale * eps, self._log_density(eps)

    def mean(self) -> Array:
        return jnp.broadcast_to(self.loc, self.shape)

    def covariance(self) -> Array:
        """diag sigma^2 of the flattened event, [d, d]."""
        return jnp.diag(jnp.square(jnp.broadcast_to(self.scale, self.shape)).reshape(-1))

    def cdf(self, z: Tree) -> Array:
        """P(z_i' <= z_i) of each coordinate, in the shape of the event."""
        eps = (z - self.loc) / self.scale
        return ndtr(wide(eps)).astype(eps.dtype)

    def unstack(self) -> "Normal":
        return stacked(self, self.shape)

    def times(self, other: "Normal") -> "Normal":
        """1/sigma^2 = 1/sigma_a^2 + 1/sigma_b^2, and the mean weighted by them."""
        if isinstance(other, StandardNormal):
            other = other.unstack()
        check_factor(self, other)
        # from the narrower factor on, as the share of the flatter may be lost beside 1
        mine = jnp.asarray(self.scale) <= other.scale
        narrow, flat = (jnp.where(m, self.scale, other.scale) for m in (mine, ~mine))
        ratio = jnp.where(jnp.isinf(narrow), 1.0, narrow / flat)
        share = jnp.square(ratio) / (1.0 + jnp.square(ratio))
        start, end = (jnp.where(m, self.loc, other.loc) for m in (mine, ~mine))
        end = jnp.where(share > 0, end, start)  # of no evidence, whose loc may be NaN
        return Normal(start + share * (end - start), narrow / jnp.hypot(1.0, ratio))

    def _log_density(self, eps: Numbers) -> Array:
        return -jnp.sum(0.5 * jnp.square(eps) + jnp.log(self.scale) + 0.5 * LOG_2PI)
