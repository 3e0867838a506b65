"""Networks of Flax NNX and Equinox as `Network`s; those of Linen are in `jaxvae.nn.linen`.

Neither is imported unless it is used: a network is known by the names of its classes.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxvae.checks import Tree, a_class_of, is_key, written
from jaxvae.pytrees.networks import BATCH, Network, Structure

M = TypeVar("M")


def functional(model: M) -> M:
    """The model with a `Network` for every NNX or Equinox module that holds more than parameters.

    The rest stays as it is. What a network of Equinox keeps in an `eqx.nn.State` is given with it
    by `jaxvae.nn.equinox_network`, and a network of Linen is made by `jaxvae.nn.linen_network`.

    Raises:
      TypeError: the model holds a module of Linen, which has no variables.
    """
    parts = jax.tree.leaves(model, is_leaf=_is_module)
    for part in parts:
        if "flax.ModuleBase" in kinds(part):
            raise TypeError(
                f"model holds {a_class_of(part)} of Linen without its variables, expected "
                "jaxvae.nn.linen_network(module, module.init(key, x))"
            )
    if not any(_is_module(part) and not _is_plain(part) for part in parts):
        return model

    def pure(part: object) -> Any:
        if not _is_module(part) or _is_plain(part) or _wants_state(part):
            return part
        if "flax.Module" in kinds(part):
            return network(_bind_nnx, part, roles_of(part))
        return equinox_network(part)

    return jax.tree.map(pure, model, is_leaf=_is_module)


def equinox_network(module: Any, state: Any = None) -> Network:
    """A network of Equinox, with the state that `eqx.nn.make_with_state` gave.

    Arrays of floats in the module train, and what is no array, an activation for instance, stays.
    In training it is given a `key=` where it takes one; in use `eqx.nn.inference_mode` holds. A
    batch norm's `axis_name` has to be "batch".

    Args:
      module: called as `module(x)`, or with a state as `module(x, state) -> (y, state)`.
      state: what `eqx.nn.make_with_state` returned beside it.

    >>> import equinox as eqx
    >>> norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(2, "batch", mode="ema")
    >>> equinox_network(norm, state)(jnp.array([3.0, 4.0])).shape
    (2,)
    """
    return network(_bind_equinox, (module, state), [*roles_of(module), *roles_of(state, "state")])


def network(bind: Callable[..., Any], tree: Tree, roles: list[str]) -> Network:
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    own = [written(tree, path) for path, _ in flat]
    paths = [own[first] for first in _firsts(tree)]
    found = [*zip(roles, paths, (leaf for _, leaf in flat), strict=True)]
    return Network(
        params={path: leaf for role, path, leaf in found if role == "params"},
        state={path: jnp.asarray(leaf) for role, path, leaf in found if role == "state"},
        structure=Structure(
            bind, treedef, (*paths,), (*roles,), (*(x for role, _, x in found if role == "static"),)
        ),
    )


def roles_of(tree: Tree, of_arrays: str = "") -> list[str]:
    """Of every leaf; a variable of NNX says of what is in it what it is."""

    def role(part: object, leaf: object) -> str:
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            return "static"
        if "flax.RngState" in kinds(part):
            return "key" if is_key(leaf) else "count"
        trains = jnp.issubdtype(leaf.dtype, jnp.inexact)
        trains &= not _is_variable(part) or "flax.Param" in kinds(part)
        return of_arrays or ("params" if trains else "state")

    return jax.tree.leaves(
        jax.tree.map(
            lambda part: jax.tree.map(lambda leaf: role(part, leaf), part),
            tree,
            is_leaf=_is_variable,
        )
    )


def _firsts(tree: Tree) -> list[int]:
    """Of every leaf where it stands first: a variable of NNX may be in a network twice."""
    found: list[int] = []
    firsts: dict[int, int] = {}
    for part in jax.tree.leaves(tree, is_leaf=_is_variable):
        count = len(jax.tree.leaves(part))
        first = firsts.setdefault(id(part), len(found)) if _is_variable(part) else len(found)
        found += range(first, first + count)
    return found


def _is_plain(module: Tree) -> bool:
    """Whether it is parameters alone, each once: then it is left as it is."""
    firsts = _firsts(module)
    return {*roles_of(module)} == {"params"} and firsts == [*range(len(firsts))]


def kinds(value: object) -> frozenset[str]:
    """The names of its classes, as flax.Param."""
    return _kinds(type(value))


@cache
def _kinds(cls: type) -> frozenset[str]:
    return frozenset(f"{c.__module__.split('.')[0]}.{c.__name__}" for c in cls.__mro__)


def _is_variable(part: object) -> bool:
    return "flax.Variable" in kinds(part)


def _is_module(part: object) -> bool:
    of = kinds(part)
    return "equinox.Module" in of or ("flax.Module" in of and "flax.Pytree" in of)


def is_batch_norm(part: object) -> bool:
    return "flax.BatchNorm" in kinds(part)


def _wants_state(part: object) -> bool:
    """Whether it is a module of Equinox that is called with an `eqx.nn.State`."""

    def is_index(part: object) -> bool:
        return "equinox.StateIndex" in kinds(part)

    return any(map(is_index, jax.tree.leaves(part, is_leaf=is_index)))


def _bind_nnx(module: Tree, key: Array | None) -> tuple[Any, Callable[[], Any]]:
    if key is None:
        module.eval()
    else:
        module.train()
        norms = filter(is_batch_norm, jax.tree.leaves(module, is_leaf=is_batch_norm))
        for norm in norms:
            norm.axis_name = BATCH
    return module, lambda: module


def _bind_equinox(tree: Tree, key: Array | None) -> tuple[Any, Callable[[], Any]]:
    import equinox

    module, state = tree
    module = equinox.nn.inference_mode(module, value=key is None)

    def call(f: Callable[..., Any], *args: Any, **given: Any) -> Any:
        nonlocal state
        if key is not None and "key" in inspect.signature(f).parameters:
            given = {"key": key} | given
        if state is None:
            return f(*args, **given)
        y, state = f(*args, state, **given)
        return y

    return Bound(module, call), lambda: (tree[0], state)


@dataclass
class Bound:
    """A module, every call of which goes through `call`."""

    module: Any
    call: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        f = self.module.__call__
        return self.call(f, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        if not callable(value):
            return value
        if "equinox.Module" in kinds(value) and "equinox.BoundMethod" not in kinds(value):
            return Bound(value, self.call)
        return lambda *args, **kwargs: self.call(value, *args, **kwargs)
