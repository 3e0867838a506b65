"""L^-1 b without LAPACK on a CPU, where batches of it can stop a program for good."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from jaxvae.distributions.special import float_type


def solve_lower(lower: Array, b: Array) -> Array:
    """y of L y = b, [d] or [d, k], of L [d, d], above whose diagonal nothing is read.

    On a CPU it is substitution, a row after the other. LAPACK's solves of a batch wait for threads
    of the pool that they themselves run in: as many at once as there are cores, in a long program,
    and none ever ends (jax 0.10.2).

    >>> solve_lower(jnp.array([[2.0, 0.0], [1.0, 4.0]]), jnp.array([2.0, 9.0])).tolist()
    [1.0, 2.0]
    """
    dtype = float_type(lower, b)
    lower, b = jnp.tril(lower).astype(dtype), jnp.asarray(b).astype(dtype)
    return jax.lax.custom_linear_solve(
        lambda y: lower @ y,
        b,
        lambda _, b: _solve(lower, b),
        lambda _, b: _solve(lower.T[::-1, ::-1], b[::-1])[::-1],  # L' upside down is lower, too
    )


def _solve(lower: Array, b: Array) -> Array:
    on_others = partial(solve_triangular, lower=True)
    return jax.lax.platform_dependent(lower, b, cpu=_substitute, default=on_others)


def _substitute(lower: Array, b: Array) -> Array:
    def row(i: Array, y: Array) -> Array:
        return y.at[i].set((b[i] - lower[i] @ y) / lower[i, i])

    return jax.lax.fori_loop(0, len(b), row, jnp.zeros_like(b)) if len(b) else b
