"""Dataclasses as pytrees."""

from dataclasses import fields
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

T = TypeVar("T")


def pytree(cls: type[T]) -> type[T]:
    """Register a dataclass as a pytree: fields marked static are structure, the rest children.

    `jax.tree_util.register_dataclass` does the same, but in jax 0.10.2 the structures of any two
    classes with as many fields then compare equal, and nothing but their hashes keeps `jit` from
    taking a Laplace for a Normal. Here they differ by class. Unflattening runs no `__init__`.

    Args:
      cls: a dataclass; `field(metadata={"static": True})` marks what is hashed, not traced.

    Returns:
      The class.

    >>> from dataclasses import dataclass
    >>> @pytree
    ... @dataclass(frozen=True)
    ... class Point:
    ...     x: float
    >>> jax.tree.map(lambda x: 2 * x, Point(3.0))
    Point(x=6.0)
    """
    every = fields(cast(Any, cls))
    static = [f.name for f in every if f.metadata.get("static")]
    data = [f.name for f in every if f.name not in static]
    keys = [jax.tree_util.GetAttrKey(name) for name in data]

    def flatten(d: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(d, n) for n in data), tuple(getattr(d, n) for n in static)

    def flatten_with_keys(d: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children, structure = flatten(d)
        return tuple(zip(keys, children, strict=True)), structure

    def unflatten(structure: Any, children: Any) -> T:
        d = object.__new__(cls)
        vars(d).update(zip([*data, *static], [*children, *structure], strict=True))
        return d

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def stacked(d: T, shape: tuple[int, ...]) -> T:
    """A distribution of independent coordinates with every leaf as large as its event.

    A scalar leaf is broadcast; one with axes beyond the event's, logits of choices say, keeps them.
    `jax.vmap` over it then sees one coordinate, or one row of them, at a time.
    """

    def broadcast(leaf: Any) -> Any:
        return jnp.broadcast_to(leaf, shape + jnp.shape(leaf)[len(shape) :])

    return jax.tree.map(broadcast, d)


def in_a_row(*arrays: Any) -> list[Any]:
    """Each array with its axes made one; a number stays a number.

    For what is elementwise: on CPU, XLA's loops over [28, 28, 1] train the small VAE of the
    benchmarks a fifth slower than those over [784].
    """
    return [jnp.ravel(a) if jnp.ndim(a) else a for a in arrays]
