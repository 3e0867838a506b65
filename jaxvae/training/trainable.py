"""What of a model trains: its leaves, all of them, and nothing that it holds elsewhere."""

import dis
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.checks import Tree, a_class_of, an, is_key, written
from jaxvae.pytrees.libraries import kinds
from jaxvae.pytrees.networks import without_state

ARRAYS = (jax.Array, np.ndarray)
NUMBERS = (np.generic, bool, int, float, complex, str)


def check_trainable(owner: str, model: object) -> None:
    """Raise TypeError unless every leaf of `model` is an array of floats that an optimiser may move
    and every array of floats that it holds is a leaf, or part of a `Constant`."""
    trained = without_state(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained, is_leaf=_is_state):
        where = f"{owner}: model{written(trained, path)}"
        if _is_state(leaf) or any(getattr(key, "key", None) == "batch_stats" for key in path):
            raise TypeError(
                f"{where} is state that a network keeps ({type(leaf).__name__}), expected "
                "parameters; give an NNX module as it is, what eqx.nn.make_with_state returned to "
                "jaxvae.nn.equinox_network, and a Linen module with its variables to "
                "jaxvae.nn.linen_network"
            )
        if is_key(leaf):
            raise TypeError(
                f"{where} is a PRNG key, expected parameters; a network that draws noise is an NNX "
                "module with Rngs, or takes a key= in Equinox"
            )
        if isinstance(leaf, ARRAYS) and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"{where} is an array of {leaf.dtype}, expected floats, as every leaf trains; "
                "wrap it in jaxvae.Constant"
            )
        check_trains(where, leaf)
    for holder, name, array in outside_leaves(model):
        raise TypeError(
            f"{owner}: model holds {name} ({array.dtype}{list(array.shape)}) in {holder}, not as a "
            "leaf, so it would never train; make it an argument, "
            "jax.tree_util.Partial(function, argument), or a jaxvae.Constant if it is to stay"
        )


def check_trains(where: str, leaf: object) -> None:
    """Raise TypeError, which begins with where it is, unless it is an array or a float."""
    if isinstance(leaf, (*ARRAYS, np.floating, float)):
        return
    if hasattr(leaf, "log_prob"):
        raise TypeError(
            f"{where} is {a_class_of(leaf)}, whose parameters no optimiser sees, expected a "
            "pytree; decorate its dataclass with @jaxvae.pytree, or make it a NamedTuple"
        )
    raise TypeError(
        f"{where} is {a_class_of(leaf)}, expected an array; wrap a function in "
        "jax.tree_util.Partial, what must not train in jaxvae.Constant"
    )


def _is_state(value: Any) -> bool:
    """Whether it is what a network of NNX or Equinox changes when it is called."""
    of = kinds(value)
    return "equinox.StateIndex" in of or ("flax.Variable" in of and "flax.Param" not in of)


class Outside(NamedTuple):
    """What a tree holds, but not as a leaf.

    Args:
      holder: what holds it.
      name: which it has there.
      value: an array, or a number or text.
      of_module: whether it is a parameter of a network.
      fixed: whether it is a NumPy array under a global name, a constant as modules have them.
    """

    holder: str
    name: str
    value: Any
    of_module: bool
    fixed: bool


def outside_leaves(tree: Tree) -> Iterator[tuple[str, str, Any]]:
    """Every array of floats, numbers aside but for a module's, that `tree` holds but not as a leaf.

    NumPy arrays under a global name aside, which are constants.

    Returns:
      What holds it, the name it has there, and the array.
    """
    for holder, name, value, of_module, fixed in outside(tree):
        floats = isinstance(value, ARRAYS) and jnp.issubdtype(value.dtype, jnp.inexact)
        if floats and (value.ndim or of_module) and not fixed:
            yield holder, name, value


def outside(tree: Tree) -> Iterator[Outside]:
    """Every array and number that `tree` holds but not as a leaf.

    It is looked for in leaves that are no arrays and in the structure: in functions, bare or of
    `jax.tree_util.Partial`, in static fields and in what these hold in turn: closures, default
    arguments, arguments of a `functools.partial`, attributes of an object and global names. A
    `Constant` has neither leaves nor structure of its own.
    """
    seen = {}  # kept alive, so that no other value gets its id

    def held(value: Any, holder: str, name: str, fixed: bool = False) -> Iterator[Outside]:
        if id(value) in seen or isinstance(value, (ModuleType, type)):
            return
        seen[id(value)] = value
        # flattening sorts the keys of a dict, and these may be of any kind
        leaves, structure = jax.tree.flatten([*value.values()] if type(value) is dict else value)
        of_module = not {"flax.Module", "flax.Param", "equinox.Module"}.isdisjoint(kinds(value))
        for leaf in leaves:
            if isinstance(leaf, (*ARRAYS, *NUMBERS)):
                yield Outside(holder, name, leaf, of_module, fixed)
            else:
                for part, inside, is_global in _parts(leaf):
                    where = (_described(leaf), part) if part else (holder, name)
                    yield from held(inside, *where, is_global and isinstance(inside, np.ndarray))
        yield from static(structure)

    def static(structure: Any) -> Iterator[Outside]:
        if (node := structure.node_data()) is not None:
            yield from held(node[1], f"the structure of {an(node[0].__name__)}", "an array")
            for child in structure.children():
                yield from static(child)

    leaves, structure = jax.tree.flatten(tree)
    inner = [leaf for leaf in leaves if not isinstance(leaf, (*ARRAYS, *NUMBERS))]
    yield from held(inner, "the model", "")
    yield from static(structure)


def _parts(value: Any) -> Iterator[tuple[str, Any, bool]]:
    """What a function is made of: the name where it has one, and whether that is a global name."""
    if isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        for name, cell in cells:
            with suppress(ValueError):  # not assigned yet
                yield name, cell.cell_contents, False
        yield "a default argument", (value.__defaults__, value.__kwdefaults__), False
        ours = (value.__module__ or "").split(".")[0] == "jaxvae"  # whose global names don't change
        for name in () if ours else _names(value.__code__, "LOAD_GLOBAL"):
            found = value.__globals__.get(name)
            if getattr(found, "__globals__", value.__globals__) is value.__globals__:
                yield name, found, True
    elif isinstance(value, MethodType):
        yield "", value.__func__, False
        if not jax.tree_util.all_leaves([value.__self__]):
            yield "its object", value.__self__, False
        elif isinstance(value.__func__, FunctionType):
            mine = getattr(value.__self__, "__dict__", {})
            names = _names(value.__func__.__code__, "LOAD_ATTR", "LOAD_METHOD")
            yield from ((name, mine[name], False) for name in names if name in mine)
    elif isinstance(value, partial):
        yield "", value.func, False
        yield "an argument", (value.args, value.keywords), False
    elif hasattr(value, "__wrapped__"):
        yield "", value.__wrapped__, False
    elif callable(value) and isinstance(value.__call__, MethodType):
        yield "", value.__call__, False


def _names(code: CodeType, *instructions: str) -> set[str]:
    """The names that these instructions of a function load, those of functions within included."""
    within = [c for c in code.co_consts if isinstance(c, CodeType)]
    here = {str(i.argval) for i in dis.get_instructions(code) if i.opname in instructions}
    return here.union(*(_names(c, *instructions) for c in within))


def _described(function: Callable[..., Any]) -> str:
    """By its name and the place it was written at."""
    code = getattr(function, "__code__", None)
    name = getattr(function, "__name__", type(function).__name__)
    place = f" (line {code.co_firstlineno} of {Path(code.co_filename).name})" if code else ""
    return f"the function {name}{place}"
