"""The gamma family: positive numbers, proportions, and points of the simplex.

Draws carry implicit gradients in their parameters (Figurnov, Mohamed & Mnih 2018), jax.random's.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Leaf, Tree, check_scale, within
from jaxvae.distributions.deviance import deviance, log_gamma_peak
from jaxvae.distributions.special import floating, rounding
from jaxvae.protocols import check_factor, distribution
from jaxvae.pytrees import stacked, wide


@distribution
@dataclass(frozen=True, eq=False)
class Gamma:
    """Independent gammas: log p(z) = sum_i [ a log b + (a - 1) log z_i - b z_i - log Gamma(a) ].

    Floats end at 1e-38, below which lies about 1e-38^a of the mass: below a = 0.05 draws pile up
    there, and what is taken at a draw, as the rate of a bound, is wrong. The closed KL is not, nor
    is float64, `jax_enable_x64`.

    Args:
      concentration: a > 0, any shape [...]; that is the event's shape.
      rate: b > 0, the same shape or a scalar; the mean is a / b.

    >>> round(float(Gamma(jnp.ones(1), 2.0).log_prob(jnp.ones(1))), 5)  # log 2 - 2
    -1.30685
    """

    concentration: Leaf
    rate: Leaf
    filler: ClassVar[float] = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        check_scale("Gamma", self.concentration, self.rate, name="rate", of="concentration")
        return jnp.shape(self.concentration)

    def sample(self, key: Array) -> Array:
        a = floating(self.concentration)
        z = jnp.exp(jax.random.loggamma(key, a, self.shape, a.dtype)) / self.rate
        return jnp.maximum(z, jnp.finfo(a.dtype).tiny)

    def log_prob(self, z: Tree) -> Array:
        inside = within("Gamma.log_prob", z, (z > 0) & (z < jnp.inf), "positive numbers")
        z = jnp.where(inside, z, 1.0)
        a, rate, log_z = floating(self.concentration), floating(self.rate), jnp.log(z)
        gap = deviance(a, rate * z, jnp.log(rate) + log_z)
        return jnp.where(inside, jnp.sum(log_gamma_peak(a) - gap - log_z), -jnp.inf)

    def mean(self) -> Array:
        return self.concentration / self.rate

    def unstack(self) -> Any:
        return stacked(self, self.shape)

    def times(self, other: "Gamma") -> "Gamma":
        """Of rates that add up; proper where the concentrations are more than 1 together."""
        check_factor(self, other)
        a = floating(self.concentration) + other.concentration - 1.0
        return Gamma(a, jnp.asarray(self.rate) + other.rate)


@distribution
@dataclass(frozen=True, eq=False)
class Beta:
    """Independent betas: log p(z) = sum_i [ (a-1) log z_i + (b-1) log(1 - z_i) - log B(a, b) ].

    Floats end at 1 - 6e-8, above which lies about 6e-8^b of the mass: below b = 0.3 draws pile up
    there, as those of a `Gamma` do at 0 below a = 0.05, and what is taken at a draw, as the rate of
    a bound, is wrong. The closed KL is not, nor is float64, `jax_enable_x64`; where b alone is that
    small, model 1 - z, whose parameters are (b, a).

    Args:
      a: > 0, any shape [...]; that is the event's shape.
      b: > 0, the same shape or a scalar.

    >>> round(float(Beta(jnp.array([2.0]), 1.0).log_prob(jnp.array([0.25]))), 5)  # density 2 z
    -0.69315
    """

    a: Leaf
    b: Leaf
    filler: ClassVar[float] = 0.5

    @property
    def shape(self) -> tuple[int, ...]:
        check_scale("Beta", self.a, self.b, name="b", of="a")
        return jnp.shape(self.a)

    def sample(self, key: Array) -> Array:
        a = floating(self.a)
        z = jax.random.beta(
            key, a, jnp.broadcast_to(floating(self.b), self.shape), self.shape, a.dtype
        )
        info = jnp.finfo(a.dtype)
        return jnp.clip(z, info.tiny, 1.0 - info.epsneg)

    def log_prob(self, z: Tree) -> Array:
        inside = within("Beta.log_prob", z, (z > 0) & (z < 1), "numbers between 0 and 1")
        z = jnp.where(inside, z, 0.5)
        a, b = floating(self.a), jnp.broadcast_to(floating(self.b), self.shape)
        log_p = _log_part(a, a + b, z, jnp.log(z)) + _log_part(b, a + b, 1.0 - z, jnp.log1p(-z))
        return jnp.where(inside, jnp.sum(log_p - log_gamma_peak(a + b)), -jnp.inf)

    def mean(self) -> Array:
        return self.a / (self.a + self.b)

    def unstack(self) -> Any:
        return stacked(self, self.shape)

    def times(self, other: "Beta") -> "Beta":
        """Proper where the a's are more than 1 together, and the b's."""
        check_factor(self, other)
        return Beta(jnp.asarray(self.a) + other.a - 1.0, jnp.asarray(self.b) + other.b - 1.0)


@distribution
@dataclass(frozen=True, eq=False)
class Dirichlet:
    """A point of the simplex, by the density of the first d - 1 coordinates.

    Below a = 0.05 draws pile up where floats end, as those of a `Gamma`.

    log p(z) = log Gamma(sum_i a_i) + sum_i [ (a_i - 1) log z_i - log Gamma(a_i) ]

    Args:
      concentration: a > 0, shape [d]; events are positive and sum to 1.

    >>> round(float(Dirichlet(jnp.ones(3)).log_prob(jnp.ones(3) / 3)), 5)  # log 2
    0.69315
    """

    concentration: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        shape = jnp.shape(self.concentration)
        if len(shape) != 1:
            raise ValueError(
                f"Dirichlet: concentration has shape {shape}, expected [d]; several are an "
                "Independent(Dirichlet(...))"
            )
        return shape

    @property
    def filler(self) -> Array:
        return jnp.full(self.shape, 1.0 / self.shape[0])

    def sample(self, key: Array) -> Array:
        a = floating(self.concentration)
        z = jax.random.dirichlet(key, a, self.shape[:-1], a.dtype)
        return jnp.maximum(z, jnp.finfo(a.dtype).tiny)

    def log_prob(self, z: Tree) -> Array:
        sums = jnp.abs(jnp.sum(wide(z)) - 1.0) < rounding(z)
        inside = within("Dirichlet.log_prob", z, (z > 0) & sums, "positive numbers that sum to 1")
        a, z = floating(self.concentration), jnp.where(inside, z, 1.0)
        total = jnp.sum(z)  # what it is off 1 by rounding would count sum_i a_i times
        log_p = _log_part(a, jnp.sum(a), z / total, jnp.log(z) - jnp.log(total))
        return jnp.where(inside, jnp.sum(log_p) - log_gamma_peak(jnp.sum(a)), -jnp.inf)

    def mean(self) -> Array:
        return self.concentration / jnp.sum(self.concentration)

    def times(self, other: "Dirichlet") -> "Dirichlet":
        """Proper where the concentrations of each coordinate are more than 1 together."""
        check_factor(self, other)
        return Dirichlet(floating(self.concentration) + other.concentration - 1.0)


def _log_part(a: Array, total: Array, z: Array, log_z: Array) -> Array:
    """What a coordinate of concentration a, of `total` in all, adds to log p(z)."""
    return log_gamma_peak(a) - deviance(a, total * z, jnp.log(total) + log_z) - log_z
