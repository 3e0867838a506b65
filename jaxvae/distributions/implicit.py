"""Roots and draws known only implicitly, differentiable by the implicit function theorem."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.distributions.triangular import solve_lower


def increasing_root(f: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The z in [low, high] with f(z) = 0, f elementwise and increasing: f(low) <= 0 <= f(high).

    dz/dtheta = -(df/dtheta) / (df/dz) in what f closes over, whatever found the root.

    >>> root = lambda a: increasing_root(lambda z: z**3 - a, jnp.array(0.0), jnp.array(8.0))
    >>> round(float(root(8.0)), 4), round(float(jax.grad(root)(8.0)), 4)  # 1 / (3 z^2)
    (2.0, 0.0833)
    """
    low, high = jax.lax.stop_gradient((low, high))
    halvings = 2 + jnp.finfo(low.dtype).nmant * 3 // 2

    def bisect(f: Callable[[Array], Array], start: Array) -> Array:
        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = 0.5 * (low + high)
            above = f(middle) > 0
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        ends = jax.lax.fori_loop(0, halvings, halve, (start, high))
        return 0.5 * (ends[0] + ends[1])

    def divide(df: Callable[[Array], Array], y: Array) -> Array:
        return y / df(jnp.ones_like(y))

    return jax.lax.custom_root(f, low, bisect, divide)


def implicit(z: Array, transform: Callable[[Array], Array]) -> Array:
    """A draw z with the derivative of a draw at a fixed quantile: implicit reparameterization.

    dz/dtheta = -(dT/dz)^-1 dT/dtheta, T = (F(z_1), F(z_2 | z_1), ...) the distributional transform:
    [...] -> [...], lower triangular, a function that closes over the parameters.
    Figurnov, Mohamed & Mnih 2018.

    >>> quantile_of_exponential = lambda rate: implicit(
    ...     jnp.array([2.0]), lambda z: 1.0 - jnp.exp(-rate * z)
    ... )
    >>> float(jax.jacobian(quantile_of_exponential)(0.5)[0])  # z = -log(1 - u) / rate
    -4.0
    """
    z = jax.lax.stop_gradient(z)
    quantile = jax.lax.stop_gradient(transform(z))

    def solve(linear: Callable[[Array], Array], y: Array) -> Array:
        jacobian = jax.jacobian(linear)(jnp.zeros_like(y)).reshape(y.size, y.size)
        return solve_lower(jacobian, y.reshape(-1)).reshape(y.shape)

    return jax.lax.custom_root(lambda z: transform(z) - quantile, z, lambda _, z: z, solve)
