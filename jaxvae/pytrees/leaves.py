"""The arrays at the leaves of a tree, all at once: shapes, precisions and derivatives."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxvae.checks import Tree

T = TypeVar("T")


def stacked(d: T, shape: tuple[int, ...]) -> T:
    """A distribution of independent coordinates with every leaf as large as its event.

    A scalar leaf is broadcast; one with axes beyond the event's, as logits of choices, keeps them.
    `jax.vmap` over it then sees one coordinate, or one row of them, at a time.

    >>> from jaxvae import Normal
    >>> stacked(Normal(jnp.zeros(3), 1.0), (3,)).scale.tolist()
    [1.0, 1.0, 1.0]
    """

    def broadcast(leaf: Any) -> Any:
        return jnp.broadcast_to(leaf, shape + jnp.shape(leaf)[len(shape) :])

    return jax.tree.map(broadcast, arrays(d))


def arrays(tree: T) -> T:
    """The tree with JAX's arrays for leaves: a derivative by hand can't be traced at NumPy's."""
    return jax.tree.map(jnp.asarray, tree)


def wide(a: Any) -> Any:
    """An array whose floats are float32 or better: bfloat16 tells no integers apart above 256.

    >>> wide(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    a = jnp.asarray(a)
    half = jnp.issubdtype(a.dtype, jnp.floating) and jnp.finfo(a.dtype).bits < 32
    return a.astype(jnp.float32) if half else a


def in_a_row(*arrays: Any) -> list[Any]:
    """Each array with its axes made one; a number stays a number.

    For what is elementwise: on CPU, XLA's loops over [28, 28, 1] train the small VAE of the
    benchmarks a fifth slower than those over [784].
    """
    return [jnp.ravel(a) if jnp.ndim(a) else a for a in arrays]


def on_host(tree: T) -> T:
    """`jax.device_get`, but an error where memory ran out: unawaited, that ends the process."""
    return jax.device_get(jax.block_until_ready(tree))


def with_path(value: T, path: Tree) -> T:
    """`value`, with the derivative of `path` in place of its own: sg(value) + path - sg(path)."""
    sg = jax.lax.stop_gradient
    return jax.tree.map(lambda a, b: sg(a) + (b - sg(b)), value, path)
