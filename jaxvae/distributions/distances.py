"""Distances to many Gaussians at once, whose slopes are matrix products."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from jaxvae.pytrees import wide

# coordinates of a turn: the fastest of 8 to 24 and of all at once, on a CPU, for 20 to 100 of them
TURN = 16


@jax.custom_jvp
def squared_distances(z: Array, loc: Array, scale: Array) -> Array:
    """sum_i ((z_i - mu_ki) / sigma_ki)^2 for each of K diagonal Gaussians, [K].

    Its value is summed term by term, with no array larger than [K]. Its slopes are those of

        sum_i z_i^2 w_ki - 2 z_i (mu_ki w_ki) + mu_ki^2 w_ki,   w = 1 / sigma^2,

    matrix products, one for all z under `vmap`, which lose (spread of mu / sigma)^2 roundings: of
    trained VampPriors, 2e-5 in float32. Where that is above 1e-3, they are taken term by term too,
    at a tenth of the speed.

    Args:
      z: [d].
      loc: mu, [K, d].
      scale: sigma > 0, [K, d].

    >>> squared_distances(jnp.array([1.0, 0.0]), jnp.eye(2), jnp.full((2, 2), 0.5)).tolist()
    [0.0, 8.0]
    """
    k, d = loc.shape
    size = max(min(TURN, d), 1)
    turns = -(-d // size)

    def by_turns(a: Array) -> Array:  # [d, ...], and zeros that add nothing
        padded = jnp.pad(a, ((0, size * turns - d), *[(0, 0)] * (a.ndim - 1)))
        return padded.reshape(turns, size, *a.shape[1:])

    def turn(total: Array, terms: tuple[Array, Array, Array]) -> tuple[Array, None]:
        for z_i, loc_i, per_scale_i in zip(*terms, strict=True):
            total = total + wide(jnp.square((z_i - loc_i) * per_scale_i))
        return total, None

    terms = by_turns(z), by_turns(loc.T), by_turns(1.0 / scale.T)
    start = wide(jnp.zeros(k, loc.dtype))
    return jax.lax.scan(turn, start, terms)[0].astype(loc.dtype)


@partial(squared_distances.defjvp, symbolic_zeros=True)
def _with_slopes(given: tuple[Array, ...], moved: tuple[Any, ...]) -> tuple[Array, Array]:
    z, loc, scale = given
    widest = jnp.max(jnp.square((loc - _centre(loc)) / scale))
    digits_left = everywhere(jnp.finfo(loc.dtype).eps * jax.lax.stop_gradient(widest) < 1e-3)
    moving = {i: by for i, by in enumerate(moved) if not isinstance(by, SymbolicZero)}

    def slope_of(f: Callable[..., Array]) -> Callable[..., Array]:
        def slope(given: tuple[Array, ...], moving: dict[int, Array]) -> Array:
            def of_moving(moving: dict[int, Array]) -> Array:
                return f(*(moving.get(i, a) for i, a in enumerate(given)))

            return jax.jvp(of_moving, ({i: given[i] for i in moving},), (moving,))[1]

        # from its arguments on the way back, or zeros for the branch not taken would be kept
        return jax.checkpoint(slope)

    slope = jax.lax.cond(digits_left, slope_of(_products), slope_of(_terms), given, moving)
    return squared_distances(z, loc, scale), slope


@jax.custom_batching.custom_vmap
def everywhere(flag: Array) -> Array:
    """The flag: under `vmap` one for all, whether all are set, so that a `cond` of it stays one.

    >>> jax.vmap(lambda x: jnp.where(everywhere(x > 0.0), x, 0.0))(jnp.array([1.0, -1.0])).tolist()
    [0.0, 0.0]
    """
    return flag


@everywhere.def_vmap
def _of_all(size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    return everywhere(jnp.all(flag, axis=0)), False


def _centre(loc: Array) -> Array:
    return jax.lax.stop_gradient(jnp.mean(loc, axis=0, keepdims=True))


def _products(z: Array, loc: Array, scale: Array) -> Array:
    z, loc = z - _centre(loc)[0], loc - _centre(loc)
    w = jnp.square(1.0 / scale)
    with jax.default_matmul_precision("highest"):  # accelerators take fewer digits of a product
        return w @ jnp.square(z) - 2.0 * (loc * w) @ z + jnp.sum(jnp.square(loc) * w, axis=1)


def _terms(z: Array, loc: Array, scale: Array) -> Array:
    return jnp.sum(jnp.square((z[None] - loc) / scale), axis=1)
