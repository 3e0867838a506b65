"""What the tests share: one table of tolerances, and the one way a random estimate is judged."""

import copy
import pickle
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

COPIES = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}
# relative and absolute tolerance of a value that is exact but for rounding
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def close(actual, expected, *, dtype=None) -> bool:
    """Equal but for the rounding of `actual`'s dtype."""
    actual = np.asarray(actual)
    if actual.dtype.kind != "f":
        return np.array_equal(actual, np.asarray(expected))
    tolerance = TOLERANCE[str(dtype or actual.dtype)]
    return bool(np.allclose(actual, np.asarray(expected), rtol=tolerance, atol=tolerance))


def standard_errors_off(draws, exact):
    """How many of the estimator's own standard errors its mean (over axis 0) is off `exact`.

    With a fixed seed this is a number, not a chance; 4 is reached by luck once in 16,000.
    """
    draws, exact = np.asarray(draws), np.asarray(exact, float)
    assert exact.shape in ((), draws.shape[1:])
    root, errors = np.sqrt(len(draws)), draws - exact
    spread = np.std(errors, axis=0, ddof=1) / root
    rounding = root * np.finfo(draws.dtype).eps * (1.0 + np.abs(exact))  # of what never varies
    return np.max(np.abs(np.mean(errors, axis=0)) / (spread + rounding))


def draws(function, num, seed=0):
    """`function(key)` for `num` keys, in one compiled call."""
    return jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(seed), num))


def grid(center):
    """Gauss-Legendre nodes and weights over R^n about `center`: [m, *shape of center] and [m].

    A panel ends at the centre, so a kink there (a Laplace's mean) costs nothing, and panels widen
    outwards: about 12 digits for whatever is smooth elsewhere with a spread between 0.2 and 3.
    """
    center = np.asarray(center, np.float64)
    edges = np.array([0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
    x, w = np.polynomial.legendre.leggauss(24)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    x, w = (middle + half * x).ravel(), (half * w).ravel()
    x, w = np.concatenate([-x[::-1], x]), np.concatenate([w[::-1], w])
    axes = np.meshgrid(*[x] * center.size, indexing="ij")
    nodes = center.ravel() + np.stack([axis.ravel() for axis in axes], axis=-1)
    weights = reduce(np.multiply.outer, [w] * center.size).ravel()
    return nodes.reshape(-1, *center.shape), weights


def is_differentiable(function, *args) -> bool:
    """The reverse-mode gradient of `function(*args)`, any tree to any tree, against central
    differences of step 1e-6, in float64; one compilation."""
    flat, unravel = ravel_pytree(args)
    steps = 1e-6 * np.concatenate([np.eye(flat.size), -np.eye(flat.size)])

    def flat_function(flat):
        return ravel_pytree(function(*unravel(flat)))[0]

    @jax.jit
    def both(flat):
        ahead, behind = jnp.split(jax.vmap(flat_function)(flat[None] + steps), 2)
        return jax.jacrev(flat_function)(flat), (ahead - behind).T / 2e-6

    exact, numeric = both(flat)
    return flat.dtype == jnp.float64 and bool(np.allclose(exact, numeric, rtol=1e-6, atol=1e-6))


def same(a, b):
    """Equal in structure and in every leaf; a `functools.partial` is what it holds."""
    if isinstance(a, partial):
        return same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
    a, b = ((jax.tree.structure(v), jax.tree.leaves(v)) for v in (a, b))
    return a[0] == b[0] and all(map(_equal, a[1], b[1]))


def _equal(a, b):
    if isinstance(a, partial):
        return same(a, b)
    if not isinstance(a, (jax.Array, np.ndarray)):
        return type(a) is type(b) and a == b
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return a.dtype == b.dtype and np.array_equal(a, b)


def programs_compiled(function) -> int:
    """How many programs XLA was asked for during `function()`."""
    durations = []
    listener = lambda event, duration_secs, **_: durations.append(event)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        function()
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    return durations.count("/jax/core/compile/backend_compile_duration")
