"""Functions that a network can be copied, pickled and compared with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

from jax import Array

Activation = Callable[[Array], Array]


@dataclass(frozen=True)
class Named:
    """A function of JAX by the name users know it by, equal to every other of that name."""

    module: str
    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, x: Array) -> Array:
        return getattr(import_module(self.module), self.name)(x, **dict(self.options))

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options)
        return f"partial({self.name}{options})" if options else self.name


@dataclass(frozen=True)
class WithOptions:
    """A `functools.partial` that is equal to every other of the same function and options."""

    function: Callable[..., Any]
    options: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Array) -> Any:
        return self.function(*args, **dict(self.options))


def by_name(activation: Activation) -> Activation:
    """The same function, `Named` where it is JAX's own; any other is returned as it is.

    JAX's are objects of its own: pickle looks for them in a private module and does not find them
    there, and a deep copy is another object, so that a copied network would differ in structure.

    >>> import jax
    >>> by_name(jax.nn.relu)
    relu
    """
    if isinstance(activation, partial) and not activation.args:
        function = by_name(activation.func)
        options = tuple(activation.keywords.items())
        return replace(function, options=options) if isinstance(function, Named) else activation
    name = getattr(activation, "__name__", "")
    for module in ("jax.nn", "jax.numpy", "jax.lax"):
        if getattr(import_module(module), name, None) is activation:
            return Named(module, name)
    return activation
