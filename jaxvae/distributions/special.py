"""Special functions that jax.scipy lacks, or has not right."""

from math import log, pi
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln

from jaxvae.checks import Numbers

LARGE = 8.0


@jax.custom_jvp
def softplus(l: Numbers) -> Array:
    """log(1 + exp l) = max(l, 0) + log(1 + exp(-|l|)), with derivative 1 / (1 + exp(-l)).

    Equal to `jax.nn.softplus`, but IWAE of 50 samples of 784 pixels trains 7 % faster on a CPU.

    >>> softplus(jnp.array([-200.0, 0.0, 200.0]))
    Array([  0.       ,   0.6931472, 200.       ], dtype=float32)
    """
    return jnp.maximum(l, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(l)))


softplus.defjvps(lambda tangent, _, l: tangent * jax.nn.sigmoid(l))


@jax.custom_jvp
def sigmoid(l: Numbers) -> Array:
    """1 / (1 + exp(-l)), whose derivative is sigma(l) sigma(-l) to the last digit.

    That of `jax.nn.sigmoid`, sigma (1 - sigma), has none left from l = 17 on in float32.

    >>> round(float(jax.grad(sigmoid)(20.0) * 1e9), 3)
    2.061
    """
    return jax.nn.sigmoid(l)


sigmoid.defjvps(lambda tangent, _, l: tangent * (jax.nn.sigmoid(l) * jax.nn.sigmoid(-l)))


def log_beta(a: Numbers, b: Numbers) -> Array:
    """log B(a, b) = log Gamma(a) + log Gamma(b) - log Gamma(a + b), without cancellation.

    Where an argument is large, its log Gamma is Stirling's, whose leading terms cancel on paper.
    `jax.scipy.special.betaln` (jax 0.10.2) is off by 1e-6 in float64 about a, b = 8.

    >>> round(float(log_beta(2.0, 3.0)), 5)  # log 1/12
    -2.48491
    """
    small, big = jnp.minimum(a, b), jnp.maximum(a, b)
    total = small + big
    direct = gammaln(small) + gammaln(big) - gammaln(total)
    # where an argument is not large, what stands for it is not used
    s = jnp.where(small >= LARGE, small, LARGE)
    b_ = jnp.where(big >= LARGE, big, LARGE)
    rest = (b_ - 0.5) * jnp.log1p(small / b_) - stirling(b_) + stirling(small + b_)
    one = gammaln(small) - small * (jnp.log(small + b_) - 1.0) - rest
    both = 0.5 * (log(2.0 * pi) - jnp.log(s)) - s * jnp.log1p(b_ / s) + stirling(s) - rest
    return jnp.where(small >= LARGE, both, jnp.where(big >= LARGE, one, direct))


def stirling(z: Array) -> Array:
    """log Gamma(z) - [(z - 1/2) log z - z + 1/2 log 2 pi], z large."""
    w = 1.0 / (z * z)
    return (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w * (1 / 1680 - w / 1188)))) / z


def float_type(*values: Numbers) -> Any:
    """The floats that these are together, the default ones where all are whole numbers.

    >>> float_type(0, 1), float_type(jnp.float16(0.0), 1)
    (dtype('float32'), dtype('float16'))
    """
    dtype = jnp.result_type(*values)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)


def floating(v: Numbers) -> Array:
    """v as an array of floats, of the default kind where it holds whole numbers.

    >>> floating(2).dtype, floating(jnp.float16(2.0)).dtype
    (dtype('float32'), dtype('float16'))
    """
    return jnp.asarray(v, float_type(v))


def real(v: Numbers) -> Any:
    """v, in floats of the default kind where it is an array of whole numbers.

    Squared as they are, these would overflow: the square of an int16 of 300 is 24464. A number of
    Python's stays one, and takes the precision of what it meets.

    >>> real(jnp.int16(300)).dtype, real(0.5)
    (dtype('float32'), 0.5)
    """
    dtype = getattr(v, "dtype", jnp.floating)
    return v if jnp.issubdtype(dtype, jnp.floating) else floating(v)


def rounding(x: Any) -> float:
    """By how much coordinates that sum to 1 may miss it.

    >>> rounding(jnp.ones(3)), rounding(jnp.ones(3, jnp.bfloat16))
    (0.001, 0.03125)
    """
    return max(1e-3, 4.0 * float(jnp.finfo(float_type(x)).eps))


def weighted(w: Any, l: Any) -> Array:
    """w l, and 0 where w is 0 even if l is infinite: what weighs nothing says nothing.

    >>> float(weighted(0.0, -jnp.inf)), float(weighted(0.5, -jnp.inf))
    (0.0, -inf)
    """
    return w * jnp.where((w == 0) & jnp.isinf(l), 0.0, l)


@jax.custom_jvp
def log_bernoulli(x: Numbers, l: Numbers) -> Any:
    """sum_i x_i l_i - softplus(l_i), the log-probability of x_i = 0 or 1 at the logits l.

    At an infinite logit, what is certain has 0 and what is impossible the most negative float;
    between x = 0 and 1 it is the linear extension.

    >>> round(float(log_bernoulli(1.0, 0.0)), 5), float(log_bernoulli(1.0, jnp.inf))
    (-0.69315, 0.0)
    """
    l = finite(l)
    return jnp.sum(x * l - jnp.maximum(l, 0.0)) - sum_log1p(jnp.exp(-jnp.abs(l)))


log_bernoulli.defjvps(
    lambda tangent, _, x, l: jnp.sum(tangent * finite(l)),
    # of tangent * (x - sigmoid) XLA computes one copy for the weights and one for the bias
    lambda tangent, _, x, l: jnp.sum(tangent * x - tangent * jax.nn.sigmoid(l)),
)


def sum_log1p(e: Array) -> Array:
    """sum_i log(1 + e_i) of 0 <= e_i <= 1: one logarithm for eight, as these cost most.

    prod_i (1 + e_i) = 1 + q, where one more makes of q (1 + q) (1 + e) - 1 = q + e + q e, without
    cancellation: the smallest e keep their digits.

    >>> float(sum_log1p(jnp.array([0.0, 1e-9, 0.0])))
    9.999999717180685e-10
    """
    eights = jnp.pad(jnp.ravel(e), (0, -jnp.size(e) % 8)).reshape(8, -1)
    zero = jnp.zeros((), eights.dtype)
    return jnp.sum(jnp.log1p(jax.lax.reduce(eights, zero, lambda q, e: q + e + q * e, (0,))))


def finite(l: Numbers) -> Array:
    """The largest float in place of infinity: 0 times it is 0."""
    largest = jnp.finfo(jnp.result_type(l)).max
    return jnp.clip(l, -largest, largest)
