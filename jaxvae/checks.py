"""Kinds of arguments, said once in a function's annotations, and the one-line errors they give.

A kind is a type for the reader and the editor and a check for `checked`, which runs it. Only static
facts (shapes, types) are checked, so every check runs at trace time and costs nothing.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from typing_extensions import TypeAliasType

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)
Check = Callable[[str, str, Any], object]
"""(the function called, the argument's name, its value): raises unless the value is of the kind."""
_CLASSES: dict[Any, Check] = {}
_LISTENING: list[str] | None = None  # to what `within` finds


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which first holds what it is given against the kinds in its annotations.

    A kind is an `Annotated` type with a check, a class marked by `kind`, or `Callable[..., ...]`;
    of `a | None`, None is right too. Defaults are ours and are not looked at. The error names the
    function that the user called: that of a function made by another names its maker. Of a method
    the fields of its object come first, by the kinds in the class, which is then named.

    >>> @checked
    ... def draws(key: Key, *, num_samples: Count) -> Array:
    ...     return jax.random.normal(key, num_samples)
    >>> draws(jax.random.key(0), num_samples=0)
    Traceback (most recent call last):
    ValueError: draws: num_samples is 0, expected an integer of at least 1
    """
    signature = inspect.signature(function)
    parameters = signature.parameters
    kinds = {name: [*checks_of(p.annotation)] for name, p in parameters.items()}
    owner = re.sub(r"\.__(call|init)__$", "", function.__qualname__.split(".<locals>")[0])
    method = "self" in parameters

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if method:
            _CLASSES.get(type(args[0]), check_fields)(type(args[0]).__name__, "self", args[0])
        for name, value in (*zip(parameters, args, strict=False), *kwargs.items()):
            for check in kinds.get(name, ()):
                check(owner, name, value)
        return function(*args, **kwargs)

    vars(call)["__signature__"] = signature.replace(
        parameters=[
            _Parameter(name, p.kind, default=p.default, annotation=p.annotation)
            for name, p in parameters.items()
        ],
        return_annotation=_Spoken(signature.return_annotation),
    )
    return call


class _Parameter(inspect.Parameter):
    """A parameter that `help` shows as it is written, with kinds and functions by their names."""

    def __str__(self) -> str:
        default, annotation = map(_Spoken, (self.default, self.annotation))
        return str(inspect.Parameter(self.name, self.kind, default=default, annotation=annotation))


class _Spoken:
    """A type or a default that is printed as it is written; nothing at all stays itself."""

    def __new__(cls, of: Any) -> Any:
        return of if of is inspect.Parameter.empty else super().__new__(cls)

    def __init__(self, of: Any):
        self.of = of

    def __repr__(self) -> str:
        return spoken(self.of)


def spoken(of: Any) -> str:
    """A type or a function as it is written where it is used, by the name it has in jaxvae.

    >>> spoken(Callable[..., Array] | None), spoken(Key), spoken(checked)
    ('Callable[..., Array] | None', 'Key', 'checked')
    """
    parts = get_args(of)
    for name, module in [*sys.modules.items()] if parts else ():
        names = vars(module).items() if name.split(".")[0] == "jaxvae" else ()
        if alias := next((n for n, value in names if value is of), None):
            return alias
    if isinstance(of, list):
        return f"[{', '.join(map(spoken, of))}]"
    if get_origin(of) is Annotated:
        return spoken(parts[0])
    if get_origin(of) in (Union, UnionType):
        return " | ".join(map(spoken, parts))
    if parts and get_origin(of) is not Literal:
        return f"{spoken(get_origin(of))}[{', '.join(map(spoken, parts))}]"
    if of in (..., type(None)):
        return "..." if of is ... else "None"
    literal = get_origin(of) is Literal
    name = None if literal else getattr(of, "__name__", None)
    return name.rpartition(".")[2] if name else repr(of).removeprefix("typing.")


def check_fields(owner: str, name: str, value: Any) -> None:
    """Raise where a field of an object is not of the kind that its class says, which is named."""
    del owner, name
    for field, checks in _field_kinds(type(value)).items():
        for check in checks:
            check(type(value).__name__, field, getattr(value, field))


@cache
def _field_kinds(cls: type) -> dict[str, list[Check]]:
    return {name: [*checks_of(kind)] for name, kind in inspect.get_annotations(cls).items()}


def checks_of(annotation: Any) -> Iterator[Check]:
    """What `checked` runs for it."""
    while isinstance(annotation, TypeAliasType):
        annotation = annotation.__value__
    of, parts = get_origin(annotation) or annotation, get_args(annotation)
    if type(None) in parts:
        yield from (partial(_unless_none, check) for part in parts for check in checks_of(part))
    elif of is Annotated:
        yield from (check for check in parts[1:] if callable(check))
    elif of is Callable:
        yield check_function
    elif isinstance(of, TypeVar):
        yield from checks_of(of.__bound__)
    elif of in _CLASSES:
        yield _CLASSES[of]


def _unless_none(check: Check, owner: str, name: str, value: object) -> None:
    if value is not None:
        check(owner, name, value)


def kind(check: Check | str) -> Callable[[C], C]:
    """Mark a class as a kind: what is annotated with it is held against `check`.

    Or it is an instance, with fields of their kinds; the text then says what to give.
    """

    def mark(cls: C) -> C:
        of_class = partial(check_instance, of=cls, expected=check)
        _CLASSES[cls] = check if callable(check) else of_class
        return cls

    return mark


def check_instance(owner: str, name: str, value: object, *, of: type, expected: Any) -> None:
    """Raise unless `value` is of a class and its fields are of the kinds that this says."""
    if not isinstance(value, of):
        raise TypeError(f"{owner}: {name} is {a_class_of(value)}, expected {expected}")
    check_fields(owner, name, value)


def a_class_of(value: object) -> str:
    """For a message: an int, a Normal, an MLP."""
    return an("array" if isinstance(value, jax.Array) else type(value).__name__)


def an(name: str) -> str:
    """A name with the article that it is spoken with."""
    # MLP is spelled, em el pee; a uint8 and a Uniform begin as you does
    vowels = "AEFHILMNORSX" if name[:2].isupper() else "aeioAEIO"
    return f"{'an' if name[0] in vowels else 'a'} {name}"


def written(tree: Any, path: tuple[Any, ...]) -> str:
    """A path in a tree as it is written in Python, which `jax.tree_util.keystr` alone doesn't know
    of a `Partial`: `.encode.args[0].weight`.
    """
    text = ""
    for key in path:
        named = key
        if isinstance(key, jax.tree_util.FlattenedIndexKey):  # of a class that names no children
            partial = isinstance(tree, jax.tree_util.Partial)
            named = jax.tree_util.SequenceKey(key.key)
            if partial:
                named = jax.tree_util.GetAttrKey(("args", "keywords")[key.key])
        text += jax.tree_util.keystr((named,))
        tree = _children(tree)[key]
    return text


def _children(tree: Any) -> dict[Any, Any]:
    below = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda part: part is not tree)
    return {path[0]: child for path, child in below}


def check_array(owner: str, name: str, value: Any) -> None:
    """Raise TypeError unless `value` is an array of real numbers, or a number."""
    dtype = getattr(value, "dtype", None)
    if dtype is None and isinstance(value, (bool, int, float)):
        return
    if dtype is None or not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        what = a_class_of(value) if dtype is None else f"an array of {dtype}"
        raise TypeError(f"{owner}: {name} is {what}, expected an array of numbers")
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{owner}: {name} is an array of {dtype}, expected real numbers")
    if not np.dtype(dtype).isnative:
        raise TypeError(f"{owner}: {name} is an array of {dtype}, expected this machine's order")


def check_leaves(owner: str, name: str, tree: Any) -> None:
    """Raise TypeError unless `tree` has leaves and each is an array of real numbers, or a key."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise TypeError(f"{owner}: {name} is {tree!r}, expected an array or a pytree of arrays")
    for path, leaf in leaves:
        if not jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            check_array(owner, name + written(tree, path), leaf)


def check_key(owner: str, name: str, key: Any, axes: int = 0) -> None:
    """Raise TypeError unless `key` is one PRNG key, typed or old, or keys along `axes` axes."""
    dtype, shape = getattr(key, "dtype", None), np.shape(key) if hasattr(key, "dtype") else ()
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    old = dtype == np.uint32 and shape[axes:] in ((2,), (4,))  # threefry's and rbg's words
    if len(shape) != axes + (not typed) or not (typed or old) or 0 in shape:
        what = a_class_of(key) if dtype is None else f"{dtype}{list(shape)}"
        good = "keys, for example jax.random.split(key, 3)" if axes else "key"
        good += "" if axes else ", for example jax.random.key(0)"
        raise TypeError(
            f"{owner}: {name} is {what}, expected PRNG {good}; jax.vmap takes more axes"
        )


def check_function(owner: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"{owner}: {name} is {a_class_of(value)}, expected a function")


def check_scalar(owner: str, name: str, value: Any) -> None:
    """Raise unless `value` is one real number, traced or not."""
    check_shape(owner, name, value, (), "a number; use jax.vmap for many")
    if type(value) is int and not -(2**31) <= value < 2**31:
        raise ValueError(f"{owner}: {name} is {value}, expected a float where it is that large")


def check_positive(owner: str, name: str, value: Any) -> None:
    """Raise unless `value` is one real number above 0, where it is concrete."""
    check_scalar(owner, name, value)
    if not isinstance(value, Tracer) and not np.asarray(value) > 0:
        raise ValueError(f"{owner}: {name} is {value}, expected more than 0")


def check_shape(
    owner: str, name: str, value: Any, shape: tuple[int, ...], expected: str = ""
) -> None:
    """Raise ValueError unless `value` has exactly this shape: no silent broadcast."""
    check_array(owner, name, value)
    if jnp.shape(value) != shape:
        one = f"{shape}; functions here take one example: use jax.vmap for a batch"
        raise ValueError(
            f"{owner}: {name} has shape {jnp.shape(value)}, expected {expected or one}"
        )


def check_scale(owner: str, loc: Any, scale: Any, name: str = "scale") -> None:
    """Raise ValueError unless `scale` is one number or has the shape of `loc`."""
    check_array(owner, "loc", loc)
    check_array(owner, name, scale)
    if jnp.shape(scale) not in ((), jnp.shape(loc)):
        raise ValueError(
            f"{owner}: {name} has shape {jnp.shape(scale)} and loc {jnp.shape(loc)}, expected one "
            f"shape or a scalar {name}"
        )


def logits_shape(owner: str, logits: Any, axes: int = 0) -> tuple[int, ...]:
    """The shape of `logits`; an error unless they are floats with at least that many axes."""
    check_floats(owner, "logits", logits)
    if jnp.ndim(logits) < axes or (axes and not jnp.shape(logits)[-1]):
        raise ValueError(f"{owner}: logits has shape {jnp.shape(logits)}, expected [..., K]")
    return jnp.shape(logits)


def as_integers(owner: str, event: Any, expected: str) -> jax.Array:
    """The event as int32, in which 256 does not overflow; TypeError unless it holds integers."""
    check_integers(owner, "event", event, expected=expected)
    return jnp.asarray(event).astype(jnp.int32)


def check_dtype(owner: str, name: str, value: Any, of: Any, expected: str) -> None:
    """Raise TypeError unless `value` is an array of floats, or of integers."""
    check_array(owner, name, value)
    if not jnp.issubdtype(jnp.result_type(value), of):
        raise TypeError(f"{owner}: {name} has dtype {jnp.result_type(value)}, expected {expected}")


check_floats = partial(check_dtype, of=jnp.floating, expected="floats")
check_integers = partial(check_dtype, of=jnp.integer, expected="integers")


def check_pair(owner: str, name: str, value: object, of: str) -> None:
    """Raise TypeError unless `value` is a tuple, or a list, of two."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        how = "; of NaN in gaps (x, ~jnp.isnan(x))" if of == "(x, mask)" else ""
        raise TypeError(f"{owner}: {name} is {a_class_of(value)}, expected a pair {of}{how}")


class OutsideSupportError(ValueError):
    """An event that a distribution gives no probability: data of another kind than expected."""


def within(owner: str, event: Any, inside: Any, expected: str, name: str = "event") -> jax.Array:
    """Whether the whole event is in the support; ValueError naming the first number that is not.

    Values are looked at where they are concrete. Under `jit` or `vmap` they are not, and a
    log_prob puts -inf where this is False, as the density is 0 there: no loss stays finite. Who
    then asks why makes the call again under `told_outside`.
    """
    tell = partial(_tell, owner, name, expected)
    if not isinstance(inside, Tracer):
        tell(event, inside)
    elif _LISTENING is not None:
        jax.debug.callback(tell, event, inside)
    return jnp.all(inside)


def _tell(owner: str, name: str, expected: str, event: Any, inside: Any) -> None:
    """Of the first number outside: an error, or a line where somebody listens."""
    if np.all(inside):
        return
    index = tuple(map(int, np.argwhere(~np.asarray(inside))[0]))
    value = " ".join(str(np.asarray(event)[index]).split())
    line = f"{owner}: {name} holds {value}{f' at {index}' * bool(index)}, expected {expected}"
    if _LISTENING is None:
        raise OutsideSupportError(line)
    _LISTENING.append(line)


def somebody_listens() -> bool:
    """Whether what is traced now is traced under `told_outside`."""
    return _LISTENING is not None


@contextmanager
def told_outside() -> Iterator[list[str]]:
    """What `within` finds outside a support, traced events included, as lines and not as errors."""
    global _LISTENING
    _LISTENING = lines = []
    try:
        yield lines
        jax.effects_barrier()
    finally:
        _LISTENING = None


def check_log_prob(owner: str, value: Any) -> None:
    """Raise ValueError unless `value`, a log-probability, is a scalar."""
    expected = (
        "a scalar (nats of the whole event); sum over the event: numpyro's d.to_event(), or "
        "jaxvae.distributions.adapt(d)"
    )
    check_shape(owner, "log_prob", value, (), expected)


def check_count(owner: str, name: str, value: object) -> None:
    """Raise ValueError unless `value` is a Python integer of at least one."""
    if isinstance(value, Tracer):
        raise ValueError(
            f"{owner}: {name} is traced, expected a Python integer, as it fixes a shape; bind it, "
            f"functools.partial(..., {name}=3), or name it in static_argnames of jax.jit; over "
            "many values loop in Python, a sweep each"
        )
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{owner}: {name} is {value!r}, expected an integer of at least 1")
    if value >= 2**31:
        raise ValueError(f"{owner}: {name} is {value}, expected less than 2^31")


def check_partition(owner: str, name: str, betas: Any) -> None:
    """Raise ValueError unless `betas` is 0 = beta_0 < ... < beta_J = 1.

    The values are looked at where they are concrete; of traced ones only the shape is known.
    """
    check_array(owner, name, betas)
    expected = "expected a partition 0 = beta_0 < ... < beta_J = 1, e.g. jnp.linspace(0.0, 1.0, 11)"
    if jnp.ndim(betas) != 1 or len(betas) < 2:
        raise ValueError(f"{owner}: {name} has shape {jnp.shape(betas)}, {expected}")
    if not isinstance(betas, Tracer):
        values = np.asarray(betas)
        if values[0] != 0 or values[-1] != 1 or not (np.diff(values) > 0).all():
            raise ValueError(
                f"{owner}: {name} goes from {values[0]:g} to {values[-1]:g}, {expected}"
            )


def check_keys(owner: str, name: str, keys: Any) -> None:
    """Raise TypeError unless `keys` is a row of PRNG keys."""
    check_key(owner, name, keys, axes=1)


Real = Array | np.ndarray | np.floating | np.integer | float
Tree = TypeAliasType("Tree", Annotated[Any, check_leaves])
"""One example, a batch, latents: an array, or a pytree of arrays with a leaf at least."""
Key = TypeAliasType("Key", Annotated[Array, check_key])
"""One PRNG key; `jax.vmap` takes more."""
Keys = TypeAliasType("Keys", Annotated[Array, check_keys])
"""A key a sample, shape [K]."""
Count = TypeAliasType("Count", Annotated[int, check_count])
"""A Python integer of at least one: a number of samples, of steps, of rows."""
Scalar = TypeAliasType("Scalar", Annotated[Array | np.floating | np.integer | float, check_scalar])
"""One real number, traced or not."""
Positive = TypeAliasType(
    "Positive", Annotated[Array | np.floating | np.integer | float, check_positive]
)
"""One real number above 0."""
Nats = TypeAliasType("Nats", Annotated[Array, check_scalar])
"""A scalar array: a log-probability, a bound."""
Numbers = TypeAliasType("Numbers", Annotated[Real, check_array])
"""An array of real numbers, or one number."""
if TYPE_CHECKING:

    class Leaf:
        """A field that is made of a number or an array, and read as an array."""

        def __get__(self, owner: Any, cls: Any = None) -> Array: ...
        def __set__(self, owner: Any, value: Real) -> None: ...

else:
    Leaf = Numbers
Floats = TypeAliasType("Floats", Annotated[Array | np.ndarray, check_floats])
"""An array of floats."""
Integers = TypeAliasType("Integers", Annotated[Array | np.ndarray, check_integers])
"""An array of integers."""
Partition = TypeAliasType("Partition", Annotated[Real, check_partition])
"""Temperatures 0 = beta_0 < ... < beta_J = 1, shape [J + 1]."""
