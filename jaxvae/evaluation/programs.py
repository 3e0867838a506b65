"""One compiled program for all models of a structure."""

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxvae.checks import Tree, is_key
from jaxvae.evaluation.chunks import FEWEST, chunked
from jaxvae.pytrees.libraries import functional
from jaxvae.training.trainable import ARRAYS, Outside, outside

MOVING = (jax.Array, np.ndarray, np.generic, float)
SMALL = 64  # numbers; a network has more


def compiled(f: Callable[..., Any], model: Tree, *static: object) -> Callable[..., Any]:
    """g(*args) = f(model, *static, *args), compiled once for all models of a structure.

    What of the model is neither an array nor a float, as a plain function, is part of the program,
    not its argument, and with it what it reads: a global number, an attribute, an array of NumPy.
    With other ones it is another program. What it reads that may be a network's parameters trains
    between two calls of `compiled`, so that each compiles anew.

    >>> from jax import numpy as jnp
    >>> compiled(lambda model, n, x: model(x) * n, jax.tree_util.Partial(jnp.add, 1.0), 2)(3.0)
    Array(8., dtype=float32, weak_type=True)
    """
    model = functional(model)
    leaves, structure = jax.tree.flatten(model)
    moving = [leaf if isinstance(leaf, MOVING) else None for leaf in leaves]
    fixed = tuple(None if isinstance(leaf, MOVING) else leaf for leaf in leaves)
    whole = (f, static, structure, fixed)
    read = [_as_read(part) for tree in (model, static) for part in outside(tree)]
    if None in read or not _is_hashable(whole):
        return partial(jax.jit(partial(_call, *whole)), moving)
    return partial(_run, tuple(read), *whole, moving)


def _as_read(part: Outside) -> object:
    """What tells a number or an array from another; None of what may be parameters."""
    value = part.value
    if isinstance(value, Tracer) or (part.of_module and isinstance(value, ARRAYS)):
        return None
    if isinstance(value, jax.Array) and value.size <= SMALL:
        value = np.asarray(jax.random.key_data(value) if is_key(value) else value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return str(value.dtype), value.shape, blake2b(value.tobytes()).digest()
    if isinstance(value, ARRAYS):
        return None
    return type(value), repr(value)


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _call(
    f: Callable[..., Any],
    static: tuple[object, ...],
    structure: object,
    fixed: tuple[object, ...],
    moving: list[Tree],
    *args: Tree,
) -> Any:
    leaves = [a if b is None else b for a, b in zip(moving, fixed, strict=True)]
    return f(jax.tree.unflatten(structure, leaves), *static, *args)


def of_each(
    one: Callable[..., Any],
    model: Tree,
    rows: Tree,
    batch_size: int | None = None,
    option: object = None,
    fewest: int = FEWEST,
) -> Any:
    """`one(option, model, row)` of every row, one program for all models of a structure."""
    return compiled(_mapped, model, one, option, batch_size, fewest)(rows)


def _mapped(
    model: Tree,
    one: Callable[..., Any],
    option: object,
    batch_size: int | None,
    fewest: int,
    rows: Tree,
) -> Any:
    return chunked(partial(one, option, model), rows, batch_size, fewest)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _run(read: object, *whole_and_args: Any) -> Any:
    del read  # with another one it is another program
    return _call(*whole_and_args)
