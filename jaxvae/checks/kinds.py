"""Kinds of arguments, said once in a function's annotations, and the one-line errors they give.

A kind is a type for the reader and the editor and a check for `checked`, which runs it. Only static
facts (shapes, types) are checked, so every check runs at trace time and costs nothing.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache, partial, wraps
from os import PathLike
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ParamSpec,
    TypeVar,
    get_args,
    get_origin,
)

import numpy as np
from jax import Array
from typing_extensions import TypeAliasType

from jaxvae.checks.signatures import Shown, Spoken
from jaxvae.checks.values import (
    a_class_of,
    check_array,
    check_count,
    check_floats,
    check_function,
    check_integers,
    check_key,
    check_keys,
    check_leaves,
    check_location,
    check_partition,
    check_positive,
    check_scalar,
)

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)
Check = Callable[[str, str, Any], object]
"""(the function called, the argument's name, its value): raises unless the value is of the kind."""
_CLASSES: dict[Any, Check] = {}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which first holds what it is given against the kinds in its annotations.

    A kind is an `Annotated` type with a check, a class marked by `kind`, or `Callable[..., ...]`;
    of `a | None`, None is right too. Defaults are ours and are not looked at. The error names the
    function that the user called: that of a function made by another names its maker. Of a method
    the fields of its object come first, by the kinds in the class, which is then named.

    >>> import jax
    >>> from jaxvae.checks import Count, Key
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
            Shown(name, p.kind, default=p.default, annotation=p.annotation)
            for name, p in parameters.items()
        ],
        return_annotation=Spoken(signature.return_annotation),
    )
    return call


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


Real = Array | np.ndarray | np.floating | np.integer | float
Tree = TypeAliasType("Tree", Annotated[Any, check_leaves])
"""One example, a batch, latents: an array, or a pytree of arrays with a leaf at least."""
Key = TypeAliasType("Key", Annotated[Array, check_key])
"""One PRNG key; `jax.vmap` takes more."""
Keys = TypeAliasType("Keys", Annotated[Array, check_keys])
"""A key a sample, shape [K]."""
Count = TypeAliasType("Count", Annotated[int, check_count])
"""A Python integer of at least one: a number of samples, of steps, of rows."""
Location = TypeAliasType("Location", Annotated[str | PathLike[str], check_location])
"""The path of a file or a folder."""
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
