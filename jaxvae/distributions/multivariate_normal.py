"""Gaussians over a vector whose coordinates depend on each other: full covariance, low rank."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Leaf, Tree, check_array, check_shape
from jaxvae.distributions.normal import LOG_2PI
from jaxvae.distributions.special import float_type
from jaxvae.distributions.triangular import solve_lower
from jaxvae.protocols import distribution


@distribution
@dataclass(frozen=True, eq=False)
class MultivariateNormal:
    """N(mu, L L'), the Gaussian with full covariance.

    log p(z) = -1/2 |L^-1 (z - mu)|^2 - sum_i log |L_ii| - d/2 log 2 pi

    Args:
      loc: mu, shape [d].
      scale_tril: L, shape [d, d], lower triangular; what stands above the diagonal is ignored, and
        signs on it don't matter, so that it can be trained as it is.

    >>> d = MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.0], [0.5, 2.0]]))
    >>> round(float(d.log_prob(jnp.zeros(2))), 5)  # -log 2 - log 2 pi
    -2.53102
    """

    loc: Leaf
    scale_tril: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        shape = jnp.shape(self.loc)
        check_array("MultivariateNormal", "loc", self.loc)
        check_shape("MultivariateNormal", "scale_tril", self.scale_tril, 2 * shape)
        return shape

    def sample(self, key: Array) -> Array:
        return self.sample_and_log_prob(key)[0]

    def log_prob(self, z: Tree) -> Array:
        return self._log_density(solve_lower(self.scale_tril, z - self.loc))

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        eps = jax.random.normal(key, self.shape, float_type(self.loc, self.scale_tril))
        return self.loc + jnp.tril(self.scale_tril) @ eps, self._log_density(eps)

    def mean(self) -> Array:
        return self.loc

    def covariance(self) -> Array:
        """L L', [d, d]."""
        return jnp.tril(self.scale_tril) @ jnp.tril(self.scale_tril).T

    def _log_density(self, eps: Array) -> Array:
        log_diagonal = jnp.log(jnp.abs(jnp.diagonal(self.scale_tril)))
        return -jnp.sum(0.5 * jnp.square(eps) + log_diagonal + 0.5 * LOG_2PI)


@distribution
@dataclass(frozen=True, eq=False)
class LowRankNormal:
    """N(mu, W W' + diag s^2): correlated along r directions, in O(d r^2) for d coordinates.

    With M = I + W' S^-1 W [r, r], S = diag s^2 and e = z - mu (Woodbury, matrix determinant lemma),

    log p(z) = -1/2 [ e' S^-1 e - (W' S^-1 e)' M^-1 (W' S^-1 e) + log |M| + log |S| + d log 2 pi ]

    computed of the QR factors of [I; W / s], whatever r and however alike the columns.

    Rezende, Mohamed & Wierstra 2014; Ong, Nott & Smith 2018.

    Args:
      loc: mu, shape [d].
      factor: W, shape [d, r]; r = 0 is the diagonal Gaussian.
      scale: s > 0, shape [d].

    >>> d = LowRankNormal(jnp.zeros(2), jnp.zeros((2, 0)), jnp.ones(2))
    >>> round(float(d.log_prob(jnp.zeros(2))), 5)  # -log 2 pi
    -1.83788
    """

    loc: Leaf
    factor: Leaf
    scale: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        shape = jnp.shape(self.loc)
        check_array("LowRankNormal", "loc", self.loc)
        check_array("LowRankNormal", "factor", self.factor)
        check_shape("LowRankNormal", "factor", self.factor, (*shape, jnp.shape(self.factor)[-1]))
        check_shape("LowRankNormal", "scale", self.scale, shape)
        return shape

    @property
    def scale_tril(self) -> Array:
        """L, lower triangular, with L L' = W W' + diag s^2."""
        # of [W, diag s]' by QR: the covariance itself would swallow an s that is small beside W
        scale = jnp.broadcast_to(self.scale, self.shape)
        upper = jnp.linalg.qr(jnp.concatenate([self.factor.T, jnp.diag(scale)]), mode="r")
        return (upper * jnp.sign(jnp.diagonal(upper))[:, None]).T

    def sample(self, key: Array) -> Array:
        return self.sample_and_log_prob(key)[0]

    def log_prob(self, z: Tree) -> Array:
        return self._log_density(z - self.loc)

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        (d,), r = self.shape, self.factor.shape[-1]
        eps = jax.random.normal(key, (d + r,), jnp.result_type(self.loc, self.scale))
        e = self.factor @ eps[:r] + self.scale * eps[r:]
        return self.loc + e, self._log_density(e)

    def mean(self) -> Array:
        return self.loc

    def covariance(self) -> Array:
        """W W' + diag s^2, [d, d]."""
        return self.factor @ self.factor.T + jnp.diag(self.scale**2)

    def log_det(self) -> Array:
        """log |W W' + diag s^2|."""
        return self._log_det(self._columns()[1])

    def _log_det(self, r: Array) -> Array:
        log_m = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(r))))
        return 2.0 * (log_m + jnp.sum(jnp.log(self.scale)))

    def _columns(self) -> tuple[Array, Array]:
        """Q [r + d, r] and R of the columns of [I; W / s], so that R' R is M."""
        w = self.factor / self.scale[:, None]
        # not by M itself, in which the 1 of I is lost beside the square of a large W / s
        return jnp.linalg.qr(jnp.concatenate([jnp.eye(w.shape[-1], dtype=w.dtype), w]))

    def _log_density(self, e: Array) -> Array:
        q, r = self._columns()
        y = jnp.concatenate([jnp.zeros(len(r), e.dtype), e / self.scale])
        for _ in range(2):  # what is left of y across the columns; the second takes off rounding
            y = y - q @ (q.T @ y)
        return -0.5 * (jnp.sum(jnp.square(y)) + self._log_det(r) + e.size * LOG_2PI)
