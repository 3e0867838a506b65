"""Special functions that jax.scipy lacks, or has not right."""

from math import lgamma, log, pi
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln

Array = jax.Array
_LARGE = 8.0


@jax.custom_jvp
def softplus(l: Any) -> Array:
    """log(1 + exp l) = max(l, 0) + log(1 + exp(-|l|)), with derivative 1 / (1 + exp(-l)).

    Equal to `jax.nn.softplus`, and the derivative is written rather than derived: so IWAE of 50
    samples of 784 pixels trains 7 % faster on a CPU.

    Args:
      l: any shape.

    Returns:
      log(1 + exp l), the same shape.

    >>> softplus(jnp.array([-200.0, 0.0, 200.0]))
    Array([  0.       ,   0.6931472, 200.       ], dtype=float32)
    """
    return jnp.maximum(l, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(l)))


softplus.defjvps(lambda tangent, _, l: tangent * jax.nn.sigmoid(l))


@jax.custom_jvp
def sigmoid(l: Any) -> Array:
    """1 / (1 + exp(-l)), whose derivative is sigma(l) sigma(-l) to the last digit.

    That of `jax.nn.sigmoid`, sigma (1 - sigma), has none left from l = 17 on in float32.

    Args:
      l: any shape.

    Returns:
      Between 0 and 1, the same shape.

    >>> round(float(jax.grad(sigmoid)(20.0) * 1e9), 3)
    2.061
    """
    return jax.nn.sigmoid(l)


sigmoid.defjvps(lambda tangent, _, l: tangent * (jax.nn.sigmoid(l) * jax.nn.sigmoid(-l)))


def log_beta(a: Any, b: Any) -> Array:
    """log B(a, b) = log Gamma(a) + log Gamma(b) - log Gamma(a + b), without cancellation.

    Where an argument is large, its log Gamma is Stirling's, whose leading terms cancel on paper.
    `jax.scipy.special.betaln` (jax 0.10.2) is off by 1e-6 in float64 about a, b = 8.

    Args:
      a: > 0, any shape.
      b: > 0, the same shape.

    Returns:
      log B, the same shape.

    >>> round(float(log_beta(2.0, 3.0)), 5)  # log 1/12
    -2.48491
    """
    small, big = jnp.minimum(a, b), jnp.maximum(a, b)
    total = small + big
    direct = gammaln(small) + gammaln(big) - gammaln(total)
    # where an argument is not large, what stands for it is not used
    s = jnp.where(small >= _LARGE, small, _LARGE)
    b_ = jnp.where(big >= _LARGE, big, _LARGE)
    rest = (b_ - 0.5) * jnp.log1p(small / b_) - _stirling(b_) + _stirling(small + b_)
    one = gammaln(small) - small * (jnp.log(small + b_) - 1.0) - rest
    both = 0.5 * (log(2.0 * pi) - jnp.log(s)) - s * jnp.log1p(b_ / s) + _stirling(s) - rest
    return jnp.where(small >= _LARGE, both, jnp.where(big >= _LARGE, one, direct))


def _stirling(z: Array) -> Array:
    """log Gamma(z) - [(z - 1/2) log z - z + 1/2 log 2 pi], z large."""
    w = 1.0 / (z * z)
    return (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w * (1 / 1680 - w / 1188)))) / z


def weighted(w: Any, l: Any) -> Array:
    """w l, and 0 where w is 0 even if l is infinite: what weighs nothing says nothing.

    Args:
      w: a weight, any shape.
      l: nats, the same shape.

    Returns:
      w l, the same shape.

    >>> float(weighted(0.0, -jnp.inf)), float(weighted(0.5, -jnp.inf))
    (0.0, -inf)
    """
    return w * jnp.where((w == 0) & jnp.isinf(l), 0.0, l)


@jax.custom_jvp
def log_bernoulli(x: Any, l: Any) -> Any:
    """x l - softplus(l), the log-probability of x = 0 or 1 at the logit l.

    At an infinite logit, what is certain has 0 and what is impossible the most negative float.

    Args:
      x: any shape; between 0 and 1 it is the linear extension.
      l: the same shape.

    Returns:
      Nats, the same shape.

    >>> round(float(log_bernoulli(1.0, 0.0)), 5), float(log_bernoulli(1.0, jnp.inf))
    (-0.69315, 0.0)
    """
    l = _finite(l)
    return x * l - softplus(l)


log_bernoulli.defjvps(
    lambda tangent, _, x, l: tangent * _finite(l),
    lambda tangent, _, x, l: tangent * (x - jax.nn.sigmoid(l)),
)


def _finite(l: Any) -> Array:
    """The largest float in place of infinity: 0 times it is 0."""
    largest = jnp.finfo(jnp.result_type(l)).max
    return jnp.clip(l, -largest, largest)


# A Poisson's or a gamma's log-probability is that at its peak, P or G, less a deviance D, which is
# 0 there, where the terms of the usual formula are as large as n log n and cancel (Loader 2000,
# "Fast and accurate computation of binomial probabilities"):
#
#     Poisson            log p(n) = P(n) - D(n, r)
#     negative binomial  log p(n) = P(n) - D(n, N sigma(l)) + G(r) - D(r, N sigma(-l)) - G(N)
#     gamma              log p(z) = G(a) - D(a, b z) - log z
#     Dirichlet          log p(z) = sum_i [ G(a_i) - D(a_i, N z_i) - log z_i ] - G(N)
#
# with N = n + r and sum_i a_i.


def deviance(a: Any, b: Any, log_b: Any = None) -> Array:
    """D(a, b) = a log(a / b) - a + b, which is KL(Poisson(a) || Poisson(b)), in nats.

    Exact to rounding: where a and b are near, by the series of log in v = (b - a) / (b + a),

        D = (b - a) v - 2 a v^3 (1/3 + v^2 / 5 + v^4 / 7 + ...)

    D(0, b) = b. The derivatives are log(a / b) and 1 - a / b; at 0, where the first is infinite, it
    is that of the least normal number.

    Args:
      a: >= 0, any shape.
      b: >= 0, the same shape.
      log_b: log b, for a b that no float holds; taken from b by default.

    Returns:
      D, the same shape.

    >>> round(float(deviance(2.0, 3.0)), 5), float(deviance(0.0, 3.0)), float(deviance(1.0, 0.0))
    (0.18907, 3.0, inf)
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    if log_b is None:
        positive = b > 0  # at 0 the derivative of b alone counts
        log_b = jnp.where(positive, jnp.log(jnp.where(positive, b, 1.0)), -jnp.inf)
    return _deviance(a, b, log_b)


@jax.custom_jvp
def _deviance(a: Any, b: Any, log_b: Any) -> Array:
    v, near = _half_ratio(a, b)
    square, series = v * v, 0.0
    for k in reversed(range(16)):
        series = series * square + 1.0 / (2 * k + 3)
    log_ratio = jnp.where((a > 0) & (b < jnp.inf), _log_ratio(a, b, log_b), 0.0)
    return jnp.where(near, (b - a) * v - 2.0 * a * v * square * series, b - a - a * log_ratio)


@_deviance.defjvp
def _deviance_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (a, b, log_b), (da, db, dlog_b) = primals, tangents
    _, near = _half_ratio(a, b)
    u = jnp.where(near, (b - a) / jnp.where(near, a, 1.0), 0.0)
    least = jnp.finfo(jnp.result_type(a)).tiny
    log_b = jnp.where(log_b == -jnp.inf, jnp.log(least), log_b)
    log_ratio = jnp.where(near, jnp.log1p(u), _log_ratio(jnp.maximum(a, least), b, log_b))
    by_b = jnp.where(near, (b - a) / jnp.where(near, b, 1.0), 1.0)
    by_log_b = jnp.where(near, 0.0, -a)
    tangent = by_b * db + by_log_b * dlog_b - _finite(log_ratio) * da
    return _deviance(*primals), tangent


def _half_ratio(a: Any, b: Any) -> tuple[Array, Array]:
    """(b - a) / (b + a) where b / a is between 1/2 and 2, else 0; and whether it is."""
    v = (0.5 * b - 0.5 * a) / (0.5 * b + 0.5 * a)
    near = jnp.abs(v) < 1.0 / 3.0
    return jnp.where(near, v, 0.0), near


def _log_ratio(a: Any, b: Any, log_b: Any) -> Array:
    """log(b / a), of logs where no float holds the quotient."""
    ratio = b / a
    held = (ratio > jnp.finfo(jnp.result_type(ratio)).tiny) & (ratio < jnp.inf)
    return jnp.where(held, jnp.log(jnp.where(held, ratio, 1.0)), log_b - jnp.log(a))


@jax.custom_jvp
def log_poisson_peak(n: Array) -> Array:
    """P(n) = log(n^n e^-n / n!): the log-probability of n under a Poisson of rate n.

    Args:
      n: whole numbers of at least 0 as floats, any shape.

    Returns:
      Nats, the same shape.

    >>> [round(float(log_poisson_peak(jnp.array(n))), 5) for n in (0.0, 1.0, 1e6)]
    [0.0, -1.0, -7.82669]
    """
    few = n < len(_PEAKS)
    z = jnp.where(few, float(len(_PEAKS)), n)
    table = jnp.asarray(_PEAKS, n.dtype)[jnp.where(few, n, 0.0).astype(int)]
    return jnp.where(few, table, -0.5 * jnp.log(2.0 * pi * z) - _stirling(z))


def _log_poisson_peak_slope(tangent: Array, _: Any, n: Array) -> Array:
    return tangent * (jnp.log(jnp.maximum(n, jnp.finfo(n.dtype).tiny)) - digamma(n + 1.0))


log_poisson_peak.defjvps(_log_poisson_peak_slope)


_PEAKS = np.array([0.0, *(n * log(n) - n - lgamma(n + 1.0) for n in range(1, 16))])


def log_gamma_peak(a: Any) -> Array:
    """G(a) = log(a^a e^-a / Gamma(a)): the greatest log-density of log z, z a gamma of shape a.

    Args:
      a: > 0, any shape.

    Returns:
      Nats, the same shape.

    >>> round(float(log_gamma_peak(jnp.array(1.0))), 5)
    -1.0
    """
    large = a >= _LARGE
    z, s = jnp.where(large, a, _LARGE), jnp.where(large, 1.0, a)
    direct = s * (jnp.log(s) - 1.0) - gammaln(s)
    return jnp.where(large, 0.5 * jnp.log(z / (2.0 * pi)) - _stirling(z), direct)


def log_gamma_peak_slope(a: Any) -> Array:
    """G'(a) = log a - psi(a), psi the digamma function, about 1 / 2a.

    >>> round(float(log_gamma_peak_slope(jnp.array(1.0))), 5)  # Euler's constant
    0.57722
    """
    a = jnp.asarray(a)
    return jax.jvp(log_gamma_peak, (a,), (jnp.ones_like(a),))[1]


@jax.custom_jvp
def log_ratio(a: Any, b: Any) -> Array:
    """log(a / b) of any positive a and b, also where no float holds the quotient.

    >>> round(float(log_ratio(1e-30, 1e30)), 4)
    -138.1551
    """
    return _log_ratio(jnp.asarray(b), jnp.asarray(a), jnp.log(a))


log_ratio.defjvps(lambda tangent, _, a, b: tangent / a, lambda tangent, _, a, b: -tangent / b)


# The partition function of the von Mises-Fisher is a modified Bessel function of the order
# v = d/2 - 1. At order v + 32 its uniform expansion (Debye; DLMF 10.41.3) is exact to rounding;
# the recurrence r_v = I_{v+1} / I_v = 1 / (2 (v + 1) / kappa + r_{v+1}) goes down stably.
# Nowhere are two near numbers subtracted: all is scaled by e^-kappa and by the value at kappa = 0.

_STEPS = 32


def _debye_polynomials(num: int) -> list[np.ndarray]:
    """u_1, ..., u_num as coefficients of 1, p, p^2, ...; DLMF 10.41.9:

    u_{k+1} = 1/2 p^2 (1 - p^2) u_k' + 1/8 int_0^p (1 - 5 t^2) u_k(t) dt,   u_0 = 1
    """
    u = [np.polynomial.Polynomial([1.0])]
    p = np.polynomial.Polynomial([0.0, 1.0])
    for _ in range(num):
        integral = ((1.0 - 5.0 * p**2) * u[-1]).integ()
        u.append(0.5 * p**2 * (1.0 - p**2) * u[-1].deriv() + integral / 8.0)
    return [polynomial.coef for polynomial in u[1:]]


_DEBYE = _debye_polynomials(7)


def _debye(m: float, kappa: Array) -> Array:
    """log e^-kappa 0F1(; m + 1; kappa^2 / 4), m large."""
    hypotenuse = jnp.sqrt(m**2 + kappa**2)
    s = hypotenuse / m

    def log_series(p: Any) -> Any:
        """log sum_k u_k(p) / m^k."""
        terms = []
        for k, u in enumerate(_DEBYE, start=1):  # p^k times a polynomial in p^2, by Horner
            value = 0.0
            for c in u[: k - 1 : -2].tolist():
                value = value * p**2 + c
            terms.append((p / m) ** k * value)
        return jnp.log1p(sum(terms))

    exponent = -2.0 * m * kappa / (hypotenuse + m + kappa)  # hypotenuse - m - kappa
    difference = log_series(1.0 / s) - log_series(1.0)
    return exponent - m * jnp.log(0.5 * (1.0 + s)) - 0.5 * jnp.log(s) + difference


def bessel_shortfalls(d: int, kappa: Array) -> Array:
    """1 - I_{v+1}(kappa) / I_v(kappa) for the orders v = d/2 - 1, ..., d/2 - 1 + 32.

    Args:
      d: the dimension, a Python integer.
      kappa: > 0, a scalar.

    Returns:
      Shape [33]; the first is 1 - A_d(kappa), A_d the length of a von Mises-Fisher's mean.

    >>> short = bessel_shortfalls(3, jnp.array(2.0))[0]  # A_3 = coth kappa - 1 / kappa
    >>> bool(jnp.isclose(1.0 - short, 1.0 / jnp.tanh(2.0) - 0.5))
    True
    """
    v = 0.5 * d - 1.0

    def down(short: Array, order: Array) -> tuple[Array, Array]:
        c = 2.0 * (order + 1.0) / kappa
        short = (c - short) / (c + 1.0 - short)
        return short, short

    last = -jax.jvp(lambda k: _debye(v + _STEPS, k), (kappa,), (jnp.ones_like(kappa),))[1]
    orders = v + jnp.arange(_STEPS, dtype=kappa.dtype)
    _, shorts = jax.lax.scan(down, last, orders, reverse=True)
    return jnp.append(shorts, last)


def log_partition(d: int, kappa: Array) -> Array:
    """log E[e^(kappa (x_1 - 1))], x uniform on the sphere in R^d: the cost of normalising.

    = log e^-kappa 0F1(; d/2; kappa^2 / 4), and its derivative is A_d(kappa) - 1.

    Args:
      d: the dimension, a Python integer.
      kappa: > 0, a scalar.

    Returns:
      A scalar.

    >>> value = log_partition(3, jnp.array(2.0))  # log sinh(kappa) / kappa - kappa
    >>> bool(jnp.isclose(value, jnp.log(jnp.sinh(2.0) / 2.0) - 2.0))
    True
    """

    @jax.custom_jvp
    def value(kappa: Array) -> Array:
        orders = 0.5 * d - 1.0 + jnp.arange(1, _STEPS + 1, dtype=kappa.dtype)
        r = 1.0 - bessel_shortfalls(d, kappa)[1:]
        return _debye(0.5 * d - 1.0 + _STEPS, kappa) + jnp.sum(jnp.log1p(0.5 * kappa * r / orders))

    @value.defjvp
    def derivative(primals: Any, tangents: Any) -> tuple[Array, Array]:
        (kappa,), (tangent,) = primals, tangents
        return value(kappa), -bessel_shortfalls(d, kappa)[0] * tangent

    return value(kappa)
