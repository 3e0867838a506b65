"""Monotone maps of each coordinate on its own, and the transformers that make them of raw numbers.

A transformer is a frozen dataclass with `size`, the raw numbers it needs a coordinate, called on
raw [n, size] for a bijector of n coordinates. At raw 0 that is the identity, so a flow whose
network starts at 0 starts as its base.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Tree, check_no_larger
from jaxvae.pytrees import pytree


@pytree
@dataclass(frozen=True, eq=False)
class Affine:
    """x = shift + e^log_scale z.

    Args:
      shift, log_scale: the event's shape, or scalars.

    >>> x, log_det = Affine(jnp.ones(2), jnp.zeros(2)).forward_and_log_det(jnp.zeros(2))
    >>> x.tolist(), float(log_det)
    ([1.0, 1.0], 0.0)
    """

    shift: Any
    log_scale: Any

    def forward_and_log_det(self, z: Tree) -> tuple[Array, Array]:
        log_det = self._log_det(z)
        return self.shift + jnp.exp(self.log_scale) * z, log_det

    def inverse_and_log_det(self, x: Tree) -> tuple[Array, Array]:
        log_det = self._log_det(x)
        return (x - self.shift) * jnp.exp(-self.log_scale), -log_det

    def _log_det(self, event: Tree) -> Array:
        for name in ("shift", "log_scale"):
            check_no_larger("Affine", name, getattr(self, name), event)
        return jnp.sum(jnp.broadcast_to(self.log_scale, jnp.shape(event)))


@dataclass(frozen=True)
class AffineTransformer:
    """raw [n, 2] -> `Affine` of shift raw_0 and log-scale 2 tanh(raw_1 / 2), between -2 and 2.

    The bound keeps many layers stacked from overflowing. Dinh et al. 2017.

    >>> affine = AffineTransformer()(jnp.array([[0.0, 0.0], [1.0, 1e4]]))
    >>> affine.shift.tolist(), affine.log_scale.tolist()
    ([0.0, 1.0], [0.0, 2.0])
    """

    size: int = 2

    def __call__(self, raw: Array) -> Affine:
        return Affine(raw[:, 0], 2.0 * jnp.tanh(0.5 * raw[:, 1]))


@pytree
@dataclass(frozen=True, eq=False)
class RationalQuadraticSpline:
    """A monotone spline of [-B, B] in K bins, the identity outside: Durkan et al. 2019, eq. 4 to 8.

    In the bin of width w and height h, with s = h / w, slopes d0 and d1 at its ends and
    t = (z - left) / w,

        x = bottom + h (s t^2 + d0 t (1 - t)) / (s + (d0 + d1 - 2 s) t (1 - t))

    Args:
      widths, heights: of the bins, positive, summing to 2 B in the last axis; shape [n, K].
      slopes: at the inner knots, positive, shape [n, K - 1]; at +-B the slope is 1.

    >>> spline = SplineTransformer(bins=4, bound=2.0)(jnp.zeros((3, 11)))
    >>> z = jnp.array([-5.0, 0.5, 1.9])
    >>> [round(float(x), 4) for x in spline.forward_and_log_det(z)[0]]
    [-5.0, 0.5, 1.9]
    """

    widths: Any
    heights: Any
    slopes: Any

    def forward_and_log_det(self, z: Tree) -> tuple[Array, Array]:
        x, log_slope = jax.vmap(_spline)(z, self.widths, self.heights, self.slopes)
        return x, jnp.sum(log_slope)

    def inverse_and_log_det(self, x: Tree) -> tuple[Array, Array]:
        z, log_slope = jax.vmap(_inverse_spline)(x, self.widths, self.heights, self.slopes)
        return z, -jnp.sum(log_slope)


def _bin(edges: Array, at: Array) -> tuple[Array, Array]:
    """Which bin `at` is in, and whether it is in any."""
    index = jnp.clip(jnp.searchsorted(edges, at, side="right") - 1, 0, edges.size - 2)
    return index, (at > edges[0]) & (at < edges[-1])


def _knots(w: Array, h: Array, d: Array) -> tuple[Array, Array, Array]:
    one, half = jnp.ones_like(w[:1]), 0.5 * jnp.sum(w, keepdims=True)
    left, bottom = (
        jnp.concatenate([-half, jnp.cumsum(sizes[:-1]) - half, half]) for sizes in (w, h)
    )
    return left, bottom, jnp.concatenate([one, d, one])


def _spline(z: Array, w: Array, h: Array, d: Array) -> tuple[Array, Array]:
    """One coordinate: x and log dx/dz."""
    left, bottom, slope = _knots(w, h, d)
    k, inside = _bin(left, z)
    w, h = left[k + 1] - left[k], bottom[k + 1] - bottom[k]  # so that t in 0..1 survives rounding
    t = jnp.where(inside, (z - left[k]) / w, 0.5)
    x, log_slope = _rational_quadratic(t, bottom[k], h, h / w, slope[k], slope[k + 1])
    return jnp.where(inside, x, z), jnp.where(inside, log_slope, jnp.zeros_like(x))


def _inverse_spline(x: Array, w: Array, h: Array, d: Array) -> tuple[Array, Array]:
    """One coordinate: z and log dx/dz, by the root of a quadratic in t."""
    left, bottom, slope = _knots(w, h, d)
    k, inside = _bin(bottom, x)
    w, h = left[k + 1] - left[k], bottom[k + 1] - bottom[k]
    s, d0, d1 = h / w, slope[k], slope[k + 1]
    y = jnp.where(inside, (x - bottom[k]) / h, 0.5)
    m = d0 * (1.0 - y) - d1 * y
    # the discriminant, which no rounding makes negative
    root = jnp.sqrt(m**2 + 4.0 * s**2 * y * (1.0 - y))
    # the same root twice: root and m do not cancel in the first where m > 0, in the second else
    first = 2.0 * s * y / (root + m + 2.0 * s * y)
    second = (root - m) / (root - m + 2.0 * s * (1.0 - y))
    t = jnp.where(m > 0, first, second)
    _, log_slope = _rational_quadratic(t, bottom[k], h, s, d0, d1)
    z = left[k] + w * t
    return jnp.where(inside, z, x), jnp.where(inside, log_slope, jnp.zeros_like(z))


def _rational_quadratic(
    t: Array, bottom: Array, h: Array, s: Array, d0: Array, d1: Array
) -> tuple[Array, Array]:
    below = s + (d0 + d1 - 2.0 * s) * t * (1.0 - t)
    x = bottom + h * (s * t**2 + d0 * t * (1.0 - t)) / below
    slope = s**2 * (d1 * t**2 + 2.0 * s * t * (1.0 - t) + d0 * (1.0 - t) ** 2) / below**2
    return x, jnp.log(slope)


@dataclass(frozen=True)
class SplineTransformer:
    """raw [n, 3 K - 1] -> `RationalQuadraticSpline` in K = `bins` bins on [-B, B], B = `bound`.

    Bins are a softmax, none narrower than a thousandth of 2 B; slopes a softplus.

    >>> spline = SplineTransformer(bins=4)(jnp.zeros((1, 11)))  # the identity, as any at raw 0
    >>> [round(float(z), 4) for z in (spline.widths[0, 0], spline.slopes[0, 0])]
    [2.5, 1.0]
    """

    bins: int = 8
    bound: float = 5.0

    @property
    def size(self) -> int:
        return 3 * self.bins - 1

    def __call__(self, raw: Array) -> RationalQuadraticSpline:
        k, least = self.bins, 1e-3

        def partition(raw: Array) -> Array:
            return 2.0 * self.bound * (least + (1.0 - k * least) * jax.nn.softmax(raw))

        one = 0.5413248546129181  # log(e - 1): softplus(0 + one) = 1
        slopes = least + (1.0 - least) * jax.nn.softplus(raw[:, 2 * k :] + one)
        return RationalQuadraticSpline(partition(raw[:, :k]), partition(raw[:, k : 2 * k]), slopes)
