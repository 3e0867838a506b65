"""Counts, gammas and Dirichlets by their deviance, so that no large terms cancel.

A log-probability is that at its peak, P or G, less a deviance D, which is 0 there, where the terms
of the usual formula are as large as n log n (Loader 2000, "Fast and accurate computation of
binomial probabilities"):

    Poisson            log p(n) = P(n) - D(n, r)
    negative binomial  log p(n) = P(n) - D(n, N sigma(l)) + G(r) - D(r, N sigma(-l)) - G(N)
    gamma              log p(z) = G(a) - D(a, b z) - log z
    Dirichlet          log p(z) = sum_i [ G(a_i) - D(a_i, N z_i) - log z_i ] - G(N)

with N = n + r and sum_i a_i.
"""

from math import lgamma, log, pi
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import digamma, gammaln

from jaxvae.checks import Numbers
from jaxvae.distributions.special import LARGE, finite, floating, stirling


def deviance(a: Any, b: Any, log_b: Any = None) -> Array:
    """D(a, b) = a log(a / b) - a + b, which is KL(Poisson(a) || Poisson(b)), in nats; a, b >= 0.

    Exact to rounding: where a and b are near, by the series of log in v = (b - a) / (b + a),

        D = (b - a) v - 2 a v^3 (1/3 + v^2 / 5 + v^4 / 7 + ...)

    D(0, b) = b. The derivatives are log(a / b) and 1 - a / b; at 0, where the first is infinite, it
    is that of the least normal number. `log_b` is for a b that no float holds.

    >>> round(float(deviance(2.0, 3.0)), 5), float(deviance(0.0, 3.0)), float(deviance(1.0, 0.0))
    (0.18907, 3.0, inf)
    """
    a, b = floating(a), floating(b)
    if log_b is None:
        positive = b > 0  # at 0 the derivative of b alone counts
        log_b = jnp.where(positive, jnp.log(jnp.where(positive, b, 1.0)), -jnp.inf)
    return _deviance(a, b, log_b)


@jax.custom_jvp
def _deviance(a: Numbers, b: Numbers, log_b: Numbers) -> Array:
    v, near = _half_ratio(a, b)
    square, series = v * v, 0.0
    for k in reversed(range(16)):
        series = series * square + 1.0 / (2 * k + 3)
    log_ratio = jnp.where((a > 0) & (b < jnp.inf), _log_ratio(a, b, log_b), 0.0)
    return jnp.where(near, (b - a) * v - 2.0 * a * v * square * series, b - a - a * log_ratio)


@_deviance.defjvp
def _deviance_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (a, b, log_b), (da, db, dlog_b) = primals, tangents
    _, near = _half_ratio(a, b)
    u = jnp.where(near, (b - a) / jnp.where(near, a, 1.0), 0.0)
    least = jnp.finfo(jnp.result_type(a)).tiny
    log_b = jnp.where(log_b == -jnp.inf, jnp.log(least), log_b)
    log_ratio = jnp.where(near, jnp.log1p(u), _log_ratio(jnp.maximum(a, least), b, log_b))
    by_b = jnp.where(near, (b - a) / jnp.where(near, b, 1.0), 1.0)
    by_log_b = jnp.where(near, 0.0, -a)
    tangent = by_b * db + by_log_b * dlog_b - finite(log_ratio) * da
    return _deviance(*primals), tangent


def _half_ratio(a: Numbers, b: Numbers) -> tuple[Array, Array]:
    """(b - a) / (b + a) where b / a is between 1/2 and 2, else 0; and whether it is."""
    v = (0.5 * b - 0.5 * a) / (0.5 * b + 0.5 * a)
    near = jnp.abs(v) < 1.0 / 3.0
    return jnp.where(near, v, 0.0), near


def _log_ratio(a: Numbers, b: Numbers, log_b: Numbers) -> Array:
    """log(b / a), of logs where no float holds the quotient."""
    ratio = b / a
    held = (ratio > jnp.finfo(jnp.result_type(ratio)).tiny) & (ratio < jnp.inf)
    return jnp.where(held, jnp.log(jnp.where(held, ratio, 1.0)), log_b - jnp.log(a))


@jax.custom_jvp
def log_poisson_peak(n: Array) -> Array:
    """P(n) = log(n^n e^-n / n!): the log-probability of a whole n under a Poisson of rate n.

    >>> [round(float(log_poisson_peak(jnp.array(n))), 5) for n in (0.0, 1.0, 1e6)]
    [0.0, -1.0, -7.82669]
    """
    few = n < len(_PEAKS)
    z = jnp.where(few, float(len(_PEAKS)), n)
    table = jnp.asarray(_PEAKS, n.dtype)[jnp.where(few, n, 0.0).astype(int)]
    return jnp.where(few, table, -0.5 * jnp.log(2.0 * pi * z) - stirling(z))


def _log_poisson_peak_slope(tangent: Array, _: Any, n: Array) -> Array:
    return tangent * (jnp.log(jnp.maximum(n, jnp.finfo(n.dtype).tiny)) - digamma(n + 1.0))


log_poisson_peak.defjvps(_log_poisson_peak_slope)


_PEAKS = np.array([0.0, *(n * log(n) - n - lgamma(n + 1.0) for n in range(1, 16))])


def log_gamma_peak(a: Numbers) -> Array:
    """G(a) = log(a^a e^-a / Gamma(a)): the greatest log-density of log z, z a gamma of shape a > 0.

    >>> round(float(log_gamma_peak(jnp.array(1.0))), 5)
    -1.0
    """
    large = a >= LARGE
    z, s = jnp.where(large, a, LARGE), jnp.where(large, 1.0, a)
    direct = s * (jnp.log(s) - 1.0) - gammaln(s)
    return jnp.where(large, 0.5 * jnp.log(z / (2.0 * pi)) - stirling(z), direct)


def log_gamma_peak_slope(a: Numbers) -> Array:
    """G'(a) = log a - psi(a), psi the digamma function, about 1 / 2a.

    >>> round(float(log_gamma_peak_slope(jnp.array(1.0))), 5)  # Euler's constant
    0.57722
    """
    a = floating(a)
    return jax.jvp(log_gamma_peak, (a,), (jnp.ones_like(a),))[1]


@jax.custom_jvp
def log_ratio(a: Numbers, b: Numbers) -> Array:
    """log(a / b) of any positive a and b, also where no float holds the quotient.

    >>> round(float(log_ratio(1e-30, 1e30)), 4)
    -138.1551
    """
    return _log_ratio(jnp.asarray(b), jnp.asarray(a), jnp.log(a))


log_ratio.defjvps(  # a and b may be of two precisions
    lambda tangent, y, a, b: (tangent / a).astype(y.dtype),
    lambda tangent, y, a, b: (-tangent / b).astype(y.dtype),
)
