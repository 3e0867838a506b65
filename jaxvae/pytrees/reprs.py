"""Short reprs, by one rule: arrays by dtype and shape, one number by its value, all else by parts.

`Normal(loc=float32[28,28], scale=0.5)`. A network, which has too many parts, is how many parameters
it has, and so is what lies so deep that there is no room for it. Alone, a network of the library is
its settings and its layers.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from html import escape
from itertools import islice
from textwrap import indent
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxvae.checks import is_key
from jaxvae.pytrees.libraries import kinds, roles_of
from jaxvae.pytrees.networks import Network

T = TypeVar("T")
WIDTH, LENGTH = 88, 300  # of a line, and of all of them
DEPTHS = 5, 4, 3, 2, 1  # how deep parts of parts are shown: as deep as there is room
ITEMS = 6  # of a list or a dictionary
ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
PARTIALS = (functools.partial, jax.tree_util.Partial)
BRACKETS: dict[type, str] = {dict: "{}", list: "[]", tuple: "()"}


def shown(cls: type[T]) -> type[T]:
    """Give a class, a named tuple or a `pytree`, the short repr, and in notebooks a small table.

    >>> from typing import NamedTuple
    >>> @shown
    ... class Found(NamedTuple):
    ...     value: Any
    ...     rows: Any
    >>> Found(jnp.float32(0.12345), jnp.zeros((2, 3)))
    Found(value=0.1235, rows=float32[2,3])
    """
    of: Any = cls
    of.__repr__ = short
    of._repr_html_ = as_html
    return cls


def short(value: object) -> str:
    """The repr of any value: nothing is computed, and one number at most is read of an array."""
    texts = (_text(value, depth) for depth in DEPTHS)
    return next((text for text in texts if len(text) <= LENGTH), _text(value, 1))


def layered(value: object) -> str:
    """The repr of a network: its settings, and its layers with how many parameters each has."""
    texts = (_layers(value, depth) for depth in DEPTHS)
    return next((text for text in texts if len(text) <= LENGTH), _layers(value, 1))


def _layers(value: object, depth: int) -> str:
    def text(part: Any) -> str:
        if "flax.List" in kinds(part):
            return _collection([*part], text)
        if "flax.Variable" in kinds(part):
            return ", ".join(map(short, jax.tree.leaves(part)))
        is_layered = type(part).__repr__ is layered
        return _layers(part, depth - 1) if is_layered and depth > 1 else _text(part, 0)

    parts = {n: p for n, p in vars(value).items() if n[0] != "_" and not _is_idle(p)}
    settings_first = sorted(parts.items(), key=lambda part: _size(part[1]) > 0)
    return _call(type(value).__name__, [f"{n}={text(part)}" for n, part in settings_first])


def _is_idle(part: Any) -> bool:
    """Whether it is nothing, a network that holds nothing, or a list of such."""
    if "flax.List" in kinds(part):
        return all(map(_is_idle, part))
    return part is None or (type(part).__repr__ is layered and not jax.tree.leaves(part))


def as_html(value: object) -> str:
    """The same as HTML, a row for each part."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">'
        f'<pre style="margin:0">{escape(short(part))}</pre></td></tr>'
        for name, part in _parts(value).items()
    )
    return f"<table><caption>{escape(type(value).__name__)}</caption>{rows}</table>"


def _text(value: Any, depth: int) -> str:
    if isinstance(value, ARRAYS):
        return _array(value)
    if value is None or isinstance(value, (bool, int, float, complex, Network)):
        return repr(value)
    name, text = type(value).__name__, lambda part: _text(part, depth)
    if isinstance(value, PARTIALS):
        named = [f"{n}={text(part)}" for n, part in value.keywords.items()]
        return _call(name, [*map(text, (value.func, *value.args)), *named])
    if type(value) in BRACKETS:
        return _collection(value, text)
    if _is_open(value) and (depth or not _size(value)):
        named = [f"{n}={_text(part, max(depth - 1, 0))}" for n, part in _parts(value).items()]
        return _call(name, named)
    leaves = jax.tree.leaves(value)
    if leaves and leaves[0] is not value:
        return f"{name}({_size(value):,} parameters)"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    written = repr(value)
    return written if len(written) <= WIDTH and "\n" not in written else f"{name}(...)"


def _array(value: Any) -> str:
    if value.ndim == 0 and _is_known(value):
        number = np.asarray(value).item()
        return repr(float(f"{number:.4g}") if isinstance(number, float) else number)
    return f"{value.dtype.name}[{','.join(map(str, value.shape))}]"


def _is_known(value: Any) -> bool:
    """Whether it has a value, here: one that is traced, shared out or given away has none."""
    if isinstance(value, (Tracer, jax.ShapeDtypeStruct)):
        return False
    if not isinstance(value, jax.Array):
        return True
    return not is_key(value) and not value.is_deleted() and value.is_fully_addressable


def _is_open(value: object) -> bool:
    return type(value).__repr__ is short or (isinstance(value, tuple) and hasattr(value, "_fields"))


def _parts(value: Any) -> dict[str, Any]:
    """Name -> part, of a dataclass or a named tuple."""
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value) if f.repr}
    return dict(zip(value._fields, value, strict=True))


def _collection(value: Any, text: Callable[[Any], str]) -> str:
    if isinstance(value, dict):
        parts = [f"{key!r}: {text(part)}" for key, part in islice(value.items(), ITEMS)]
    else:
        parts = [text(part) for part in value[:ITEMS]]
    parts += [f"... {len(value)} in all"] if len(value) > ITEMS else []
    begin, end = BRACKETS[type(value)]
    return _call("", parts, begin, f",{end}" if end == ")" and len(value) == 1 else end)


def _call(name: str, parts: list[str], begin: str = "(", end: str = ")") -> str:
    """On one line, or a line for each part."""
    line = name + begin + ", ".join(parts) + end
    if len(line) <= WIDTH and "\n" not in line:
        return line
    lines = indent("".join(f"{part},\n" for part in parts), "  ")
    return f"{name}{begin}\n{lines}{end.removeprefix(',')}"


def _size(value: Any) -> int:
    """How many numbers train: of a network without its running statistics and noise."""
    found = zip(jax.tree.leaves(value), roles_of(value), strict=True)
    return sum(
        math.prod(leaf.shape)
        for leaf, role in found
        if role not in ("state", "key", "count")
        and isinstance(leaf, ARRAYS)
        and jnp.issubdtype(leaf.dtype, jnp.inexact)
    )
