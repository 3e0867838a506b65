"""Classes as pytrees: dataclasses by their fields, and models by the parts they are made of."""

from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar, cast

import jax

from jaxvae.pytrees.reprs import shown

T = TypeVar("T")


def pytree(cls: type[T]) -> type[T]:
    """Register a dataclass as a pytree: fields marked static are structure, the rest children.

    `jax.tree_util.register_dataclass` does the same, but in jax 0.10.2 the structures of any two
    classes with as many fields then compare equal, and nothing but their hashes keeps `jit` from
    taking a Laplace for a Normal. Here they differ by class. Unflattening runs no `__init__`. The
    repr that the dataclass made, which prints whole arrays, becomes the short one of `shown`.

    Args:
      cls: a dataclass; `field(metadata={"static": True})` marks what is hashed, not traced.

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
    made = hasattr(cls.__repr__, "__wrapped__")  # by `dataclass`: one that a class wrote stays
    return shown(cls) if made else cls


def swappable(cls: type[T]) -> type[T]:
    """A model, a named tuple, whose `_replace` says of what it can't replace which parts there are.

    >>> from typing import NamedTuple
    >>> @swappable
    ... class Vamp(NamedTuple):
    ...     pseudo_inputs: Any
    ...     prior = property(lambda self: self.pseudo_inputs)
    >>> Vamp(1.0)._replace(prior=2.0)
    Traceback (most recent call last):
    ValueError: Vamp: prior is made of its parts, expected one of these to replace: pseudo_inputs
    """
    of: Any = cls
    replace = of._replace

    @wraps(replace)
    def replaced(self: Any, **parts: Any) -> Any:
        for name in parts:
            if name not in of._fields:
                made = "is made of its parts" if hasattr(of, name) else "is no part of it"
                raise ValueError(
                    f"{of.__name__}: {name} {made}, expected one of these to replace: "
                    f"{', '.join(of._fields)}"
                )
        return replace(self, **parts)

    of._replace = replaced
    return cls
