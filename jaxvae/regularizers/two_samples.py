"""How far two samples are from each other: statistics of arrays [n, d]."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Numbers, Real, Scalar, check_array, checked
from jaxvae.pytrees import wide

Kernel = Callable[[Array, Array], Array]
"""Two points [d] -> how near they are."""


def _check_points(owner: str, name: str, points: Any) -> None:
    check_array(owner, name, points)
    if jnp.ndim(points) != 2 or jnp.shape(points)[0] < 2 or 0 in jnp.shape(points):
        raise ValueError(
            f"{owner}: {name} has shape {jnp.shape(points)}, expected [n, d] with n >= 2"
        )


Points = Annotated[Real, _check_points]
"""A sample, [n, d] with n >= 2."""


@checked
def rbf(x: Array, y: Array, *, scale: Scalar = 1.0) -> Array:
    """exp(-|x - y|^2 / (2 scale^2)), the Gaussian kernel of two points [d].

    >>> round(float(rbf(jnp.zeros(2), jnp.ones(2))), 4)  # 1 / e
    0.3679
    """
    return jnp.exp(-0.5 * jnp.sum(jnp.square(x - y)) / jnp.square(scale))


@checked
def inverse_multiquadric(x: Array, y: Array, *, scale: Scalar = 1.0) -> Array:
    """C / (C + |x - y|^2), C = 2 d scale^2, whose tails reach outliers: Tolstikhin et al. 2018.

    >>> float(inverse_multiquadric(jnp.zeros(2), jnp.array([2.0, 0.0])))  # 4 / (4 + 4)
    0.5
    """
    c = 2.0 * x.size * jnp.square(scale)
    return c / (c + jnp.sum(jnp.square(x - y)))


@checked
def mmd(x: Points, y: Points, *, kernel: Kernel = inverse_multiquadric) -> Array:
    """The squared maximum mean discrepancy of two samples, unbiased, so at times below 0.

    sum_{i != j} k(x_i, x_j) / n(n-1) + sum_{i != j} k(y_i, y_j) / m(m-1)
        - 2 sum_ij k(x_i, y_j) / nm

    Gretton et al. 2012, equation 3.

    Args:
      kernel: (x_i, y_j) -> scalar: `rbf`, `inverse_multiquadric`, or any positive definite one.

    >>> x = jax.random.normal(jax.random.key(0), (500, 2))
    >>> float(mmd(x[:250], x[250:])) < 0.01 < float(mmd(x[:250], x[250:] + 1.0))
    True
    """
    x, y = _points("mmd", x, y)
    gram = jax.vmap(jax.vmap(kernel, (None, 0)), (0, None))

    def within(x: Array) -> Array:
        def row(same: Array, x_i: Array, neighbour: Array) -> Array:
            # k(x, x) is left out and may have no derivative, so it isn't computed either
            return jax.vmap(kernel, (None, 0))(x_i, jnp.where(same[:, None], neighbour, x))

        same = jnp.eye(len(x), dtype=bool)
        return jnp.mean(jax.vmap(row)(same, x, jnp.roll(x, 1, axis=0)), where=~same)

    return within(x) + within(y) - 2.0 * jnp.mean(gram(x, y))


@checked
def sliced_wasserstein(x: Points, y: Points, directions: Numbers) -> Array:
    """The mean over directions of the squared 2-Wasserstein distance of two projected samples.

    1/L sum_l 1/n sum_i (sort(x theta_l)_i - sort(y theta_l)_i)^2, |theta_l| = 1

    Kolouri et al. 2019, "Sliced Wasserstein auto-encoders", algorithm 1.

    Args:
      y: points [n, d], as many.
      directions: theta [L, d], of any length but 0: they are normalised.

    >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    >>> float(sliced_wasserstein(x, x + 2.0, jnp.eye(2)))
    4.0
    """
    x, y = _points("sliced_wasserstein", x, y)
    if jnp.shape(x) != jnp.shape(y):
        raise ValueError(
            f"sliced_wasserstein: y has shape {jnp.shape(y)}, expected that of x, {jnp.shape(x)}"
        )
    if jnp.ndim(directions) != 2 or jnp.shape(directions)[1] != jnp.shape(x)[1]:
        raise ValueError(
            f"sliced_wasserstein: directions has shape {jnp.shape(directions)}, expected "
            f"[L, {jnp.shape(x)[1]}]"
        )
    theta = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    gaps = jnp.sort(x @ theta.T, axis=0) - jnp.sort(y @ theta.T, axis=0)
    return jnp.mean(jnp.square(gaps))


def _points(owner: str, x: Points, y: Points) -> tuple[Array, Array]:
    """Both as floats, or an error that says what they lack."""
    if jnp.shape(x)[1] != jnp.shape(y)[1]:
        raise ValueError(
            f"{owner}: y has shape {jnp.shape(y)}, expected [m, {jnp.shape(x)[1]}] as x has"
        )
    return _as_floats(x), _as_floats(y)


def _as_floats(points: Numbers) -> Array:
    found = jnp.asarray(wide(points))
    return found if jnp.issubdtype(found.dtype, jnp.floating) else found.astype(float)
