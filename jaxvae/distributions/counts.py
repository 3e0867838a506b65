"""Counts: the likelihoods of reads, words and events. Events are whole numbers of any dtype."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxvae.checks import Leaf, Tree, check_scale, within
from jaxvae.distributions.deviance import deviance, log_gamma_peak, log_poisson_peak
from jaxvae.distributions.special import floating, sigmoid, softplus
from jaxvae.protocols import distribution
from jaxvae.pytrees import stacked, wide


def _counts(owner: str, x: Tree, dtype: DTypeLike) -> tuple[Array, Array]:
    """x as floats, 0 in place of what is no count, and whether all are."""
    counts = jnp.asarray(x).astype(wide(jnp.zeros((), dtype)).dtype)
    valid = (counts >= 0) & (counts == jnp.floor(counts)) & (counts < jnp.inf)
    counts = jnp.minimum(counts, float(jnp.finfo(dtype).max)).astype(dtype)
    expected = "whole numbers of at least 0: raw counts, not scaled ones nor their logarithms"
    return jnp.where(valid, counts, 0.0), within(owner, x, valid, expected)


def _draw(key: Array, rate: Array) -> Array:
    """A Poisson's, in the dtype of its rate: where int32 may not hold it, a normal's, rounded."""
    count_key, eps_key = jax.random.split(key)
    few = rate < 1e8
    x = jax.random.poisson(count_key, jnp.where(few, rate, 0.0), rate.shape).astype(rate.dtype)
    eps = jax.random.normal(eps_key, rate.shape, rate.dtype)
    many = jnp.round(rate * (1.0 + eps * jax.lax.rsqrt(jnp.where(few, 1.0, rate))))
    return jnp.where(few, x, many)


@distribution
@dataclass(frozen=True, eq=False)
class Poisson:
    """Independent Poissons: log p(x) = sum_i [ x_i log r_i - r_i - log x_i! ].

    Args:
      rate: r > 0, any shape [...]; that is the event's shape. A draw has its dtype.

    >>> round(float(Poisson(jnp.array([2.0])).log_prob(jnp.array([0]))), 5)
    -2.0
    """

    rate: Leaf
    reparameterized: ClassVar[bool] = False
    filler: ClassVar[float] = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.shape(self.rate)

    def sample(self, key: Array) -> Array:
        return _draw(key, floating(self.rate))

    def log_prob(self, x: Tree) -> Array:
        rate = floating(self.rate)
        x, valid = _counts("Poisson.log_prob", x, rate.dtype)
        return jnp.where(valid, jnp.sum(log_poisson_peak(x) - deviance(x, rate)), -jnp.inf)

    def mean(self) -> Array:
        return jnp.asarray(self.rate)

    def unstack(self) -> Any:
        return stacked(self, self.shape)


@distribution
@dataclass(frozen=True, eq=False)
class NegativeBinomial:
    """Counts more spread than a Poisson's: a Poisson of rate Gamma(r, e^-l).

    log p(x) = sum_i [ log (x_i + r - 1 choose x_i) + r log sigma(-l_i) + x_i log sigma(l_i) ]

    The mean is m = r e^l and the variance m + m^2 / r: a Poisson as r goes to infinity.

    Args:
      total_count: r > 0, any shape [...]; that is the event's shape.
      logits: l, the same shape or a scalar.

    >>> d = NegativeBinomial(jnp.ones(1), jnp.zeros(1))
    >>> round(float(d.log_prob(jnp.array([1]))), 5)  # geometric: log 1/4
    -1.38629
    """

    total_count: Leaf
    logits: Leaf
    reparameterized: ClassVar[bool] = False
    filler: ClassVar[float] = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        check_scale(
            "NegativeBinomial", self.total_count, self.logits, name="logits", of="total_count"
        )
        return jnp.shape(self.total_count)

    def sample(self, key: Array) -> Array:
        rate_key, count_key = jax.random.split(key)
        r = floating(self.total_count)
        rate = jax.random.gamma(rate_key, r, self.shape, r.dtype) * jnp.exp(self.logits)
        return _draw(count_key, rate)

    def log_prob(self, x: Tree) -> Array:
        r, l = floating(self.total_count), floating(self.logits)
        x, valid = _counts("NegativeBinomial.log_prob", x, r.dtype)
        n, log_n = r + x, jnp.log(r + x)
        # of n trials, what it costs that x succeed and r fail
        successes = deviance(x, n * sigmoid(l), log_n - softplus(-l))
        failures = deviance(r, n * sigmoid(-l), log_n - softplus(l))
        peak = log_poisson_peak(x) + log_gamma_peak(r) - log_gamma_peak(n)
        return jnp.where(valid, jnp.sum(peak - successes - failures), -jnp.inf)

    def mean(self) -> Array:
        return self.total_count * jnp.exp(self.logits)

    def unstack(self) -> Any:
        return stacked(self, self.shape)


@distribution
@dataclass(frozen=True, eq=False)
class ZeroInflated:
    """One count, p(x) = sigma(l) [x = 0] + sigma(-l) base(x): 0 at times whatever the base says.

    Many counts are an `Independent` of it. Lambert 1992; Lopez et al. 2018 (scVI).

    Args:
      base: a distribution of one count, `Poisson` or `NegativeBinomial` with scalar parameters.
      logits: l, a scalar.

    >>> d = ZeroInflated(Poisson(jnp.array(1.0)), jnp.array(0.0))
    >>> round(float(d.log_prob(jnp.array(0))), 5)  # log (1 + 1/e) / 2
    -0.37989
    """

    base: Any
    logits: Leaf
    reparameterized: ClassVar[bool] = False
    shape: ClassVar[tuple[int, ...]] = ()
    filler: ClassVar[float] = 0.0

    def sample(self, key: Array) -> Array:
        zero_key, base_key = jax.random.split(key)
        x = self.base.sample(base_key)
        zero = jax.random.bernoulli(zero_key, jax.nn.sigmoid(self.logits))
        return jnp.where(zero, jnp.zeros_like(x), x)

    def log_prob(self, x: Tree) -> Array:
        log_p = self.base.log_prob(x) - softplus(self.logits)
        zero = jnp.asarray(x) == 0
        inflated = jnp.logaddexp(jnp.where(zero, log_p, 0.0), -softplus(-self.logits))
        return jnp.where(zero, inflated, log_p)

    def mean(self) -> Array:
        return jax.nn.sigmoid(-self.logits) * self.base.mean()
