"""Heads: from a network's raw output to a distribution, whatever the network.

A head is a frozen dataclass with `raw_shape(event_shape)`, what it needs of the network, and
`raw -> Distribution`. Raw parameters may be any real numbers.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.discrete import Bernoulli
from jaxvae.distributions import MultivariateNormal, Normal

Array = jax.Array
Shape = tuple[int, ...]


def positive(raw: Array, floor: float = 1e-6) -> Array:
    """softplus(raw) + floor: smooth, and neither overflowing nor reaching 0 for any raw output.

    >>> [f"{scale:.0e}" for scale in positive(jnp.array([-1e4, 1e4]))]
    ['1e-06', '1e+04']
    """
    return jax.nn.softplus(raw) + floor


@dataclass(frozen=True)
class NormalHead:
    """Raw parameters -> `Normal`: the last axis holds mu and, unless fixed, the raw sigma.

    Args:
      scale: a fixed sigma, which never trains; None (the default) lets the network give it.
    """

    scale: float | None = None

    def raw_shape(self, shape: Shape) -> Shape:
        return shape if self.scale is not None else (*shape[:-1], 2 * shape[-1])

    def __call__(self, raw: Array) -> Normal:
        if self.scale is not None:
            return Normal(raw, self.scale)
        loc, raw_scale = jnp.split(raw, 2, axis=-1)
        return Normal(loc, positive(raw_scale))


@dataclass(frozen=True)
class MultivariateNormalHead:
    """Raw parameters -> `MultivariateNormal`: mu [d], then the lower triangle of L row by row."""

    def raw_shape(self, shape: Shape) -> Shape:
        (d,) = shape
        return (d + d * (d + 1) // 2,)

    def __call__(self, raw: Array) -> MultivariateNormal:
        d = (isqrt(9 + 8 * raw.size) - 3) // 2  # solves d + d (d + 1) / 2 = raw.size
        loc, triangle = raw[:d], raw[d:]
        tril = jnp.zeros((d, d), raw.dtype).at[jnp.tril_indices(d)].set(triangle)
        diagonal = jnp.diag_indices(d)
        return MultivariateNormal(loc, tril.at[diagonal].set(positive(tril[diagonal])))


@dataclass(frozen=True)
class BernoulliHead:
    """Raw parameters -> `Bernoulli`: they are the logits."""

    def raw_shape(self, shape: Shape) -> Shape:
        return shape

    def __call__(self, raw: Array) -> Bernoulli:
        return Bernoulli(raw)


Head = NormalHead | MultivariateNormalHead | BernoulliHead | Any
