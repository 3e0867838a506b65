"""The continuous Bernoulli: a normalised density of grey pixels in [0, 1]."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Key, Leaf, Numbers, Tree, check_floats, checked, logits_shape, within
from jaxvae.protocols import distribution
from jaxvae.pytrees import in_a_row, stacked

_BERNOULLI = [
    *(-3617 / 10670622842880000, 1 / 74724249600, -691 / 1307674368000, 1 / 47900160),
    *(-1 / 1209600, 1 / 30240, -1 / 720, 1 / 12),
]  # B_2n / (2n)!, n = 8 ... 1, of 1 / (e^a - 1) - 1 / a + 1/2


@distribution
@dataclass(frozen=True, eq=False)
class ContinuousBernoulli:
    """log p(x) = sum_i [ x_i l_i - log(1 + exp l_i) + log C(l_i) ] on [0, 1], C = l / tanh(l / 2).

    What a Bernoulli likelihood of grey images lacks is C: without it they are no densities, and
    the bound no bound. C is smooth through l = 0, where it is 2; log C is a series there.
    Loaiza-Ganem & Cunningham 2019.

    Args:
      logits: l, finite, any shape [...]; events are numbers in [0, 1] in that shape.

    >>> float(ContinuousBernoulli(jnp.zeros(1)).log_prob(jnp.array([0.3])))  # uniform
    0.0
    """

    logits: Leaf
    filler: ClassVar[float] = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return logits_shape("ContinuousBernoulli", self.logits)

    def sample(self, key: Key) -> Array:
        # the quantile log(1 + u (e^l - 1)) / l, from the side where e^l <= 1
        l = jnp.asarray(self.logits)
        u = jax.random.uniform(key, self.shape, l.dtype)
        a = jnp.where(l > 0, -l, l)  # -|l|, with the slope at 0 of the side that is taken below
        near = a > -0.02
        safe = jnp.where(near, -1.0, a)
        z = jnp.log1p(u * jnp.expm1(safe)) / safe
        # near 0 the logarithm, that of E[e^(a b)], is a series of the cumulants of b ~ Bernoulli(u)
        v, w = u * (1.0 - u), 1.0 - 2.0 * u
        cumulants = u, v, v * w, v * (1 - 6 * v), v * w * (1 - 12 * v), v * (1 - v * (30 - 120 * v))
        series = sum(k * a**n / math.factorial(n + 1) for n, k in enumerate(cumulants))
        z = jnp.clip(jnp.where(near, series, z), 0.0, 1.0)
        return jnp.where(l > 0, 1.0 - z, z)

    def log_prob(self, x: Tree) -> Array:
        owner, expected = "ContinuousBernoulli.log_prob", "floats in [0, 1]; see jaxvae.rescale"
        check_floats(owner, "event", x, expected=expected)
        inside = within(owner, x, (x >= 0) & (x <= 1), expected)
        x, l = in_a_row(x, jnp.asarray(self.logits))
        # x l - log(1 + exp l) from the side where x and 1 do not cancel
        a, far = jnp.where(l > 0, l, -l), jnp.where(l > 0, 1.0 - x, x)
        log_p = log_normalizer(l) - a * far - jnp.log1p(jnp.exp(-a))
        return jnp.where(inside, jnp.sum(log_p), -jnp.inf)

    def mean(self) -> Array:
        """1 / (1 - e^-l) - 1 / l."""
        a = jnp.abs(self.logits)  # the mean of l is 1 - that of -l, which keeps its digits
        near = a < 1.0
        safe = jnp.where(near, 1.0, a)
        a = jnp.where(near, a, 0.0)
        series = 0.0
        for b in _BERNOULLI:
            series = series * jnp.square(a) + b
        series = 0.5 - a * series
        mean = jnp.where(near, series, 1.0 / safe + jnp.exp(-safe) / jnp.expm1(-safe))
        return jnp.where(self.logits < 0, mean, 1.0 - mean)

    def unstack(self) -> Any:
        return stacked(self, self.shape)


@checked
def log_normalizer(l: Numbers) -> Array:
    """log C = log(l / tanh(l / 2)), even in l, with log 2 at 0.

    >>> round(float(log_normalizer(jnp.log(0.3 / 0.7))), 6)
    0.750588
    """
    square = jnp.square(l)
    near = square < 0.1
    square = jnp.where(near, square, 0.0)
    safe = jnp.where(near, 1.0, jnp.abs(l))
    far = jnp.log(safe) + jnp.log1p(jnp.exp(-safe)) - jnp.log(-jnp.expm1(-safe))
    series = 31 / 90720 - square * 127 / 4838400
    series = square * (1 / 12 - square * (7 / 1440 - square * series))
    return jnp.where(near, series + math.log(2.0), far)
