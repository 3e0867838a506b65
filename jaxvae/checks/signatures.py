"""Signatures as `help` shows them: kinds and functions by the names that they are written with."""

import inspect
import sys
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
)


class Shown(inspect.Parameter):
    """A parameter that `help` shows as it is written, with kinds and functions by their names."""

    def __str__(self) -> str:
        default, annotation = map(Spoken, (self.default, self.annotation))
        return str(inspect.Parameter(self.name, self.kind, default=default, annotation=annotation))


class Spoken:
    """A type or a default that is printed as it is written; nothing at all stays itself."""

    def __new__(cls, of: Any) -> Any:
        return of if of is inspect.Parameter.empty else super().__new__(cls)

    def __init__(self, of: Any):
        self.of = of

    def __repr__(self) -> str:
        return spoken(self.of)


def spoken(of: Any) -> str:
    """A type or a function as it is written where it is used, by the name it has in jaxvae.

    >>> from collections.abc import Callable
    >>> from jax import Array
    >>> from jaxvae.checks import Key, checked
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
