"""One compiled program for all models of a structure."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxvae.checks import Tree
from jaxvae.evaluation.chunks import FEWEST, chunked
from jaxvae.pytrees.libraries import functional
from jaxvae.training.trainable import outside_leaves

MOVING = (jax.Array, np.ndarray, np.generic, float)


def compiled(f: Callable[..., Any], model: Tree, *static: object) -> Callable[..., Any]:
    """g(*args) = f(model, *static, *args), compiled once for all models of a structure.

    What of the model is neither an array nor a float, as a plain function, is part of the program,
    not its argument. If it holds arrays, as those of a network under a global name, they may train
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
    anew = next(outside_leaves(model), None) is not None or not _is_hashable(whole)
    return partial(jax.jit(partial(_call, *whole)) if anew else partial(_run, *whole), moving)


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


_run = jax.jit(_call, static_argnums=(0, 1, 2, 3))
