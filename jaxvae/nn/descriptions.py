"""A model as JSON and named arrays, and back in a process that never saw what built it.

A description says of every part its class and its fields, by public names. What is read back is
made of these alone: classes of jaxvae and Flax, and JAX's functions of arrays. No `__init__` runs
but that of a variable, and no other module is imported, unless its package is trusted.
"""

import dataclasses
import enum
import functools
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import FrozenDict

from jaxvae.checks import Tree, a_class_of, written
from jaxvae.nn.activations import Named, by_name
from jaxvae.pytrees import Constant, constant_leaves
from jaxvae.pytrees.libraries import functional
from jaxvae.pytrees.networks import Network

STOCK = ("jaxvae", "flax")
FUNCTIONS = ("jax.nn", "jax.nn.initializers", "jax.numpy", "jax.lax")
# of these packages' functions, those that compute: none of them writes a file
PURE = ("jaxvae.distributions", "jaxvae.bijectors", "jaxvae.models", "jaxvae.nn.heads",
        "jaxvae.evaluation.latent_space", "jaxvae.evaluation.truncation",
        "flax.nnx.nn")  # fmt: skip
FILES = ("save", "savez", "load", "fromfile", "from_dlpack", "fromfunction", "apply_along_axis")
OF_CONSTANT = "constant "  # begins the names of arrays that are no leaves
Trusted = Collection[str]
Description = Any
"""What JSON holds."""


class NotDescribedError(Exception):
    """A part of a model has no description; the message says which, and why."""


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Stands for the array at a path of the model."""

    path: str


@dataclasses.dataclass(frozen=True)
class _Held:
    """Stands for a `Constant` of a value."""

    value: Any


def describe(model: object) -> tuple[Any, dict[str, Any]]:
    """The description of a model, as JSON holds it, and the arrays that are no leaves of it.

    >>> from jaxvae import StandardNormal
    >>> describe(StandardNormal((2,)))[0]
    {'class': 'jaxvae:StandardNormal', 'fields': {'shape': {'tuple': [2]}}}
    """
    constants = {
        OF_CONSTANT + path: leaf for path, leaf in constant_leaves(model).items() if _is_array(leaf)
    }

    return _described(_marked(model, ""), "model", constants), constants


def _marked(tree: Tree, below: str) -> Any:
    """The tree with a `_Leaf` for every array, and `_Held` for every `Constant`."""

    def mark(path: tuple[Any, ...], part: Any) -> Any:
        at = below + written(tree, path)
        if isinstance(part, Constant):
            inside = OF_CONSTANT + at.removeprefix(OF_CONSTANT) + ".value"
            return _Held(_marked(part._raw, inside))
        return _Leaf(at) if _is_array(part) else part

    return jax.tree_util.tree_map_with_path(mark, tree, is_leaf=lambda p: isinstance(p, Constant))


def rebuild(description: Description, arrays: Mapping[str, Any], trusted: Trusted = ()) -> Any:
    """The model of a description, with its arrays: leaves by their paths, the rest by their names.

    Args:
      description: what `describe` gave.
      arrays: name -> array, both of leaves and of the others.
      trusted: packages whose classes and functions may be used beside the stock ones.
    """
    return _built(description, arrays, (*STOCK, *trusted), tuple(trusted))


def _is_array(value: object) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, np.generic))


def _described(given: object, at: str, constants: dict[str, Any]) -> Any:
    value: Any = given
    whole: Any = given  # which no test below narrows

    def of(part: object, name: object) -> Any:
        return _described(part, f"{at}.{name}", constants)

    def fields(parts: Mapping[str, Any]) -> dict[str, Any]:
        return {"class": name_of(value, at), "fields": {n: of(p, n) for n, p in parts.items()}}

    if isinstance(value, enum.Enum):
        raise NotDescribedError(f"{at} is {value}, which a description can't hold")
    if isinstance(value, float) and not np.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, _Leaf):
        return {"leaf": value.path}
    if _is_array(value):
        constants[f"{OF_CONSTANT}{len(constants)}"] = value
        return {
            "constant": f"{OF_CONSTANT}{len(constants) - 1}",
            "numpy": isinstance(value, (np.ndarray, np.generic)),
        }
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if type(value) in (list, tuple):
        parts = [of(part, i) for i, part in enumerate(whole)]
        return parts if isinstance(value, list) else {"tuple": parts}
    if isinstance(value, FrozenDict):
        return {"FrozenDict": of(dict(value), "items")}
    if type(value) is dict:
        return {"dict": [[of(k, "keys"), of(v, k)] for k, v in value.items()]}
    if isinstance(value, Named):
        options = {n: of(v, n) for n, v in value.options}
        return {"activation": f"{value.module}:{value.name}", "options": options}
    if isinstance(value, (_Held, Constant)):
        return {"held": of(value.value, "value")}
    if isinstance(value, Network):
        return {"network": of(_module_of(value, at), "module")}
    if isinstance(value, (jax.tree_util.Partial, functools.partial)):
        kind = "Partial" if isinstance(value, jax.tree_util.Partial) else "partial"
        given = {n: of(v, n) for n, v in value.keywords.items()}
        args = [of(part, i) for i, part in enumerate(value.args)]
        return {kind: of(value.func, "func"), "args": args, "keywords": given}
    if isinstance(value, nnx.Variable):
        made = type(value)(value.get_value()).get_metadata() if not _noise(value) else {}
        rest = {n: v for n, v in value.get_metadata().items() if n not in made or made[n] != v}
        return {"class": name_of(value, at), "value": of(value.get_value(), "value"),
                "metadata": {n: of(v, n) for n, v in rest.items()}}  # fmt: skip
    if isinstance(value, nnx.List):
        return {"nnx.List": [of(part, i) for i, part in enumerate(value)]}
    if isinstance(value, nnx.Pytree):
        parts = {n: v for n, v in vars(value).items() if not n.startswith("_pytree__")}
        held = {"data": told} if (told := _data_of(value, parts)) else {}
        return fields(parts) | held
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return fields(dict(zip(whole._fields, whole, strict=True)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields({f.name: getattr(value, f.name) for f in dataclasses.fields(value)
                       if hasattr(value, f.name)})  # fmt: skip
    if callable(value) and hasattr(value, "__name__"):
        return {"name": name_of(value, at)}
    raise NotDescribedError(f"{at} is {a_class_of(value)}, which a description can't hold")


def _data_of(module: nnx.Pytree, parts: Mapping[str, Any]) -> list[str]:
    """The attributes that NNX was told are data: None, and containers of arrays."""
    children = jax.tree_util.tree_leaves_with_path(module, is_leaf=lambda part: part is not module)
    names = {jax.tree_util.keystr(path).removeprefix(".") for path, _ in children}
    return sorted(n for n in names if n in parts and not nnx.is_data(parts[n]))


def _noise(variable: nnx.Variable) -> bool:
    return isinstance(variable, nnx.RngState)


def _module_of(network: Network, at: str) -> Any:
    """The module as its library made it, with the parameters and statistics that it has now."""
    bind = network.structure.bind
    if getattr(bind, "__name__", "") != "_bind_nnx":
        raise NotDescribedError(
            f"{at} is a network of Linen or Equinox, which its library alone can build"
        )
    seen = network.structure._replace(bind=lambda tree, key: (tree, lambda: tree))
    return network._replace(structure=seen)._bound()[0]


def name_of(value: object, at: str) -> str:
    """module:name of a class or function, or of the class of an object, as public as can be."""
    named_itself = isinstance(value, type) or (callable(value) and hasattr(value, "__name__"))
    thing: Any = value if named_itself else type(value)
    named = by_name(thing)
    if isinstance(named, Named):
        return f"{named.module}:{named.name}"
    module, name = thing.__module__, getattr(thing, "__qualname__", thing.__name__)
    if "<" in name or module == "__main__":
        where = "the script that was run" if module == "__main__" else "another function"
        raise NotDescribedError(
            f"{at} is {name.split('.')[-1]}, defined in {where}, which a new process doesn't have"
        )
    parts = module.split(".")
    for n in range(1, len(parts) + 1):
        if _at(".".join(parts[:n]), name) is thing:
            return f"{'.'.join(parts[:n])}:{name}"
    raise NotDescribedError(f"{at} is {module}.{name}, which can't be imported by that name")


def _at(module: str, name: str) -> Any:
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def resolve(name: str, allowed: Trusted, trusted: Trusted = (), *, made: bool = False) -> Any:
    """The class or function of a name; NotDescribedError where it may not run.

    Of a class that is `made` no more than its fields are set, so any of a stock package will do.
    """
    module, _, qualified = name.partition(":")
    root = module.split(".")[0]
    if module in FUNCTIONS and qualified.isidentifier() and qualified not in FILES:
        found = _at(module, qualified)
        if callable(found):
            return found
    elif root in allowed:
        try:
            found = _at(module, qualified)
        except ImportError as error:
            raise NotDescribedError(f"it needs {name}, and {error}") from None
        if found is None:
            raise NotDescribedError(f"it needs {name}, which {root} doesn't have here")
        home = getattr(found, "__module__", None) or ""
        may_run = (made and isinstance(found, type)) or home.startswith(PURE) or root in trusted
        if home.split(".")[0] in allowed and callable(found) and may_run:
            return found
    raise NotDescribedError(
        f"it needs {name}, which is not run unasked; if you trust it, load_model(folder, "
        f'trust="{root}")'
    )


def _built(of: Description, arrays: Mapping[str, Any], allowed: Trusted, trusted: Trusted) -> Any:
    def build(part: Description) -> Any:
        return _built(part, arrays, allowed, trusted)

    def each(parts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: build(part) for name, part in parts.items()}

    match of:
        case None | bool() | int() | float() | str():
            return of
        case list():
            return [*map(build, of)]
        case {"float": text}:
            return float(text)
        case {"leaf": name}:
            return arrays[name]
        case {"constant": name, "numpy": numpy}:
            return np.asarray(arrays[name]) if numpy else arrays[name]
        case {"dtype": name}:
            return jnp.dtype(name)
        case {"tuple": parts}:
            return tuple(map(build, parts))
        case {"dict": pairs}:
            return {build(k): build(v) for k, v in pairs}
        case {"FrozenDict": items}:
            return FrozenDict(build(items))
        case {"activation": name, "options": options}:
            if name.split(":")[0] not in FUNCTIONS:
                raise NotDescribedError(f"it needs {name}, which isn't a function of JAX")
            named: Any = by_name(resolve(name, ()))
            return dataclasses.replace(named, options=tuple(each(options).items()))
        case {"held": value}:
            return Constant(build(value))
        case {"network": module}:
            return functional(build(module))
        case {"Partial": f, "args": args, "keywords": given}:
            return jax.tree_util.Partial(build(f), *map(build, args), **each(given))
        case {"partial": f, "args": args, "keywords": given}:
            return functools.partial(build(f), *map(build, args), **each(given))
        case {"nnx.List": parts}:
            return nnx.List([*map(build, parts)])
        case {"name": name}:
            return resolve(name, allowed, trusted)
        case {"class": name, "value": value, "metadata": metadata}:
            variable = resolve(name, allowed, trusted, made=True)
            if not issubclass(variable, nnx.Variable):
                raise NotDescribedError(
                    f"it needs {name} as a variable of NNX, which it isn't here"
                )
            return variable(build(value), **each(metadata))
        case {"class": name, "fields": fields, **rest}:
            cls = resolve(name, allowed, trusted, made=True)
            return _object(cls, each(fields), rest.get("data", ()))
    raise NotDescribedError(f"it holds {str(of)[:60]!r}, which this version can't read")


def _object(cls: type, fields: dict[str, Any], data: Collection[str]) -> Any:
    """An object with these fields, whose `__init__` has not run."""
    if issubclass(cls, nnx.Pytree):
        made = _blank(cls)
        for name, value in fields.items():
            setattr(made, name, nnx.data(value) if name in data else value)
        return made
    named = issubclass(cls, tuple) and hasattr(cls, "_fields")
    if cls is Named or not (named or dataclasses.is_dataclass(cls)):  # of any module's functions
        raise NotDescribedError(f"it needs {cls.__name__}, whose objects have no fields here")
    made: Any = cls
    expected = made._fields if named else [f.name for f in dataclasses.fields(made)]
    if not {*fields} <= {*expected}:
        raise NotDescribedError(
            f"its {cls.__name__} has fields {sorted(fields)}, here they are {sorted(expected)}"
        )
    return made(**fields) if named else _filled(object.__new__(cls), fields)


def _filled(made: object, fields: dict[str, Any]) -> Any:
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def _blank(cls: type) -> Any:
    """A module of NNX without attributes: made by its metaclass, as any other."""
    made = _empty(cls)()
    object.__setattr__(made, "__class__", cls)
    return made


@functools.cache
def _empty(cls: type) -> type:
    return type(cls)(cls.__name__, (cls,), {"__init__": lambda self: None})
