"""Flows z + something of low rank: planar, radial, Sylvester; and the reflection.

At parameters 0 they are the identity. All invert: planar and Sylvester flows by a root
in one dimension at a time, the others in closed form.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Tree, check_no_larger
from jaxvae.distributions.implicit import increasing_root
from jaxvae.pytrees import pytree
from jaxvae.pytrees.scanning import scan


def _above_minus_one(a: Array) -> Array:
    """An increasing map onto (-1, inf), 0 -> 0; what would round to -1 is some roundings above."""
    least = 4.0 * jnp.finfo(jnp.result_type(a)).eps - 1.0
    return jnp.maximum(jax.nn.softplus(a + 0.5413248546129181) - 1.0, least)  # log(e - 1)


@pytree
@dataclass(frozen=True, eq=False)
class Planar:
    """x = z + u^ tanh(w'z + b), u^ = u + (m(w'u) - w'u) w / |w|^2, m onto (-1, inf).

    Rezende & Mohamed 2015, equations 10 to 12 and appendix A.1 (their m does not take 0 to 0).

    Args:
      u, w: shape [d], any numbers.
      b: a scalar.

    >>> flow = Planar(u=jnp.array([1.0, 0.0]), w=jnp.array([1.0, 0.0]), b=jnp.array(0.0))
    >>> x, log_det = flow.forward_and_log_det(jnp.zeros(2))
    >>> x.tolist(), float(log_det) > 0.0  # stretched about the plane w'z + b = 0
    ([0.0, 0.0], True)
    """

    u: Any
    w: Any
    b: Any

    def forward_and_log_det(self, z: Tree) -> tuple[Array, Array]:
        u, slope = self._direction()
        t = jnp.tanh(self.w @ z + self.b)
        return z + u * t, jnp.log1p(slope * (1.0 - t**2))

    def inverse_and_log_det(self, x: Tree) -> tuple[Array, Array]:
        u, slope = self._direction()
        target, reach = self.w @ x, jnp.abs(slope)  # a + w'u^ tanh(a + b) = w'x, a = w'z
        a = increasing_root(
            lambda a: a + slope * jnp.tanh(a + self.b) - target, target - reach, target + reach
        )
        t = jnp.tanh(a + self.b)
        return x - u * t, -jnp.log1p(slope * (1.0 - t**2))

    def _direction(self) -> tuple[Array, Array]:
        """u^ and w'u^."""
        norm, inner = jnp.sum(jnp.square(self.w)), self.w @ self.u
        slope = _above_minus_one(inner)
        along = jnp.where(norm > 0, self.w / jnp.where(norm > 0, norm, 1.0), 0.0)
        return self.u + (slope - inner) * along, jnp.where(norm > 0, slope, 0.0)


@pytree
@dataclass(frozen=True, eq=False)
class Radial:
    """x = z + beta (z - z0) / (alpha + r), r = |z - z0|, alpha > 0, beta > -alpha.

    Rezende & Mohamed 2015, equation 14 and appendix A.2.

    Args:
      center: z0, shape [d].
      alpha: a scalar, any number; alpha is its softplus.
      beta: a scalar, any number; beta is alpha m(it), m onto (-1, inf) with 0 -> 0.

    >>> flow = Radial(jnp.zeros(2), alpha=jnp.array(0.0), beta=jnp.array(1.0))
    >>> x, _ = flow.forward_and_log_det(jnp.array([1.0, 0.0]))
    >>> bool(x[0] > 1.0), bool(x[1] == 0.0)  # pushed away from the centre
    (True, True)
    """

    center: Any
    alpha: Any
    beta: Any

    def forward_and_log_det(self, z: Tree) -> tuple[Array, Array]:
        check_no_larger("Radial", "center", self.center, z)
        from_center = z - self.center
        r = _norm(from_center)
        alpha, beta = self._parameters()
        return z + beta * from_center / (alpha + r), self._log_det(r, from_center.size)

    def inverse_and_log_det(self, x: Tree) -> tuple[Array, Array]:
        check_no_larger("Radial", "center", self.center, x)
        from_center = x - self.center
        alpha, beta = self._parameters()
        # r + beta r / (alpha + r) = |x - z0|: the positive root of r^2 + p r - alpha |x - z0| = 0
        distance = _norm(from_center)
        p, q = alpha + beta - distance, alpha * distance
        root = jnp.sqrt(p**2 + 4.0 * q)
        r = jnp.where(p > 0, 2.0 * q / jnp.where(p > 0, p + root, 1.0), 0.5 * (root - p))
        z = self.center + from_center * (alpha + r) / (alpha + r + beta)
        return z, -self._log_det(r, from_center.size)

    def _parameters(self) -> tuple[Array, Array]:
        alpha = jax.nn.softplus(self.alpha)
        return alpha, alpha * _above_minus_one(self.beta)

    def _log_det(self, r: Array, d: int) -> Array:
        alpha, beta = self._parameters()
        across, along = beta / (alpha + r), beta * alpha / (alpha + r) ** 2
        return (d - 1) * jnp.log1p(across) + jnp.log1p(along)


def _norm(v: Array) -> Array:
    """|v|, with gradient 0 at 0."""
    square = jnp.sum(jnp.square(v))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


@pytree
@dataclass(frozen=True, eq=False)
class Sylvester:
    """x = z + Q R tanh(R~ Q'z + b): m units wide, Q orthonormal, R and R~ upper triangular.

    Q is the first m columns of a product of Householder reflections. The diagonals are passed
    through tanh, so that R_ii R~_ii > -1 and the map inverts.
    van den Berg, Hasenclever, Tomczak & Welling 2018.

    Args:
      vectors: one reflection a row, shape [h, d].
      r, r_tilde: R and R~, shape [m, m], m <= d; what stands below the diagonal is ignored.
      b: shape [m].

    >>> flow = Sylvester(jnp.ones((1, 3)), jnp.zeros((2, 2)), jnp.zeros((2, 2)), jnp.zeros(2))
    >>> flow.forward_and_log_det(jnp.ones(3))[0].tolist()
    [1.0, 1.0, 1.0]
    """

    vectors: Any
    r: Any
    r_tilde: Any
    b: Any

    def forward_and_log_det(self, z: Tree) -> tuple[Array, Array]:
        q, r, r_tilde = self._matrices()
        t = jnp.tanh(r_tilde @ (q.T @ z) + self.b)
        return z + q @ (r @ t), self._log_det(t)

    def inverse_and_log_det(self, x: Tree) -> tuple[Array, Array]:
        q, r, r_tilde = self._matrices()
        target = q.T @ x  # y + R tanh(R~ y + b) = Q'x with y = Q'z: row by row from the last

        def row(y: Array, i: Array) -> tuple[Array, None]:
            """Adds y_i to y, known below row i and 0 elsewhere."""
            h = r_tilde @ y + self.b
            rest = target[i] - jnp.triu(r, 1)[i] @ jnp.tanh(h)
            reach = jnp.abs(r[i, i])
            y_i = increasing_root(
                lambda y_i: y_i + r[i, i] * jnp.tanh(r_tilde[i, i] * y_i + h[i]) - rest,
                rest - reach,
                rest + reach,
            )
            return y.at[i].set(y_i), None

        y, _ = scan(row, jnp.zeros_like(target), jnp.arange(target.size), reverse=True)
        t = jnp.tanh(r_tilde @ y + self.b)
        return x - q @ (r @ t), -self._log_det(t)

    def _matrices(self) -> tuple[Array, Array, Array]:
        m, d = self.b.size, self.vectors.shape[-1]
        if m > d:
            raise ValueError(f"Sylvester: b has {m} entries, expected at most the {d} of a vector")
        q = jnp.eye(d, m, dtype=self.vectors.dtype)
        for v in self.vectors:
            q = jax.vmap(Householder(v).reflect, 1, 1)(q)
        return q, _bounded_diagonal(self.r), _bounded_diagonal(self.r_tilde)

    def _log_det(self, t: Array) -> Array:
        product = _below_one(jnp.diagonal(self.r)) * _below_one(jnp.diagonal(self.r_tilde))
        return jnp.sum(jnp.log1p(product * (1.0 - t**2)))


def _bounded_diagonal(r: Array) -> Array:
    return jnp.triu(r, 1) + jnp.diag(_below_one(jnp.diagonal(r)))


def _below_one(r: Array) -> Array:
    """tanh r, short of the +-1 that it rounds to."""
    return (1.0 - jnp.finfo(r.dtype).eps) * jnp.tanh(r)


@pytree
@dataclass(frozen=True, eq=False)
class Householder:
    """x = z - 2 v v'z / |v|^2: a reflection, its own inverse, of log-determinant 0.

    A product of them turns a diagonal Gaussian into one of full covariance. v has shape [d];
    at 0 the map is the identity. Tomczak & Welling 2016.

    >>> Householder(jnp.array([1.0, -1.0])).reflect(jnp.array([3.0, 5.0])).tolist()
    [5.0, 3.0]
    """

    v: Any

    def forward_and_log_det(self, z: Tree) -> tuple[Array, Array]:
        return self.reflect(z), jnp.asarray(0.0)

    def inverse_and_log_det(self, x: Tree) -> tuple[Array, Array]:
        return self.forward_and_log_det(x)

    def reflect(self, z: Tree) -> Array:
        square = jnp.sum(jnp.square(self.v))
        along = self.v * (self.v @ z) / jnp.where(square > 0, square, 1.0)
        return z - 2.0 * along
