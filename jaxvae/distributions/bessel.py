"""The partition function of the von Mises-Fisher: a modified Bessel function of order v = d/2 - 1.

At order v + 32 its uniform expansion (Debye; DLMF 10.41.3) is exact to rounding; the recurrence
r_v = I_{v+1} / I_v = 1 / (2 (v + 1) / kappa + r_{v+1}) goes down stably. Nowhere are two near
numbers subtracted: all is scaled by e^-kappa and by the value at kappa = 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

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
    """1 - I_{v+1}(kappa) / I_v(kappa) [33], v = d/2 - 1, ..., d/2 - 1 + 32, at a scalar kappa > 0.

    The first is 1 - A_d(kappa), A_d the length of a von Mises-Fisher's mean.

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
    """log E[e^(kappa (x_1 - 1))], x uniform on the sphere in R^d: the normaliser, kappa > 0.

    = log e^-kappa 0F1(; d/2; kappa^2 / 4), and its derivative is A_d(kappa) - 1.

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
    def derivative(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
        (kappa,), (tangent,) = primals, tangents
        return value(kappa), -bessel_shortfalls(d, kappa)[0] * tangent

    return value(kappa)
