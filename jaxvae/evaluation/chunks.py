"""How many draws or rows to compute together: what the caches, or an accelerator's memory, hold."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxvae.batching import number_of_rows
from jaxvae.checks import Tree

FEWEST, MOST = 8, 25_000  # rows; below eight a product reads its weights for little
UNTOLD = 16 << 20  # bytes, of caches that the system does not describe
ROWS = 1009  # a prime, so that arrays of so many rows are known by their size


def chunked(
    one: Callable[[Any], Any], rows: Tree, size: int | None = None, fewest: int = FEWEST
) -> Any:
    """one(row) of every row, stacked: `size` of them at a time, or as many as `at_once` says."""
    size = size or at_once(one, rows, fewest)
    whole = size >= number_of_rows(rows)
    return jax.vmap(one)(rows) if whole else jax.lax.map(one, rows, batch_size=size)


def at_once(one: Callable[[Any], Any], rows: Tree, fewest: int = FEWEST) -> int:
    """How many rows to vmap: the largest array of so many is an eighth of the room there is.

    A layer reads, writes and weighs at once, and caches hold more than one program's arrays. The
    array is found by tracing; nothing is compiled or run. Measured in docs/performance.md.

    >>> from jax import numpy as jnp
    >>> rows = jnp.zeros((100_000, 2))
    >>> at_once(jnp.sum, rows), at_once(lambda row: jnp.sum(jnp.full(10**9, row[0])), rows)
    (25000, 8)
    """
    arrays = _arrays(_program(one, rows))
    largest = max(a.size // ROWS * a.dtype.itemsize for a in arrays if a.size % ROWS == 0)
    fit = room() // (8 * max(largest, 1))
    return min(number_of_rows(rows), max(fewest, min(MOST, fit)))


def _program(one: Callable[[Any], Any], rows: Tree) -> Jaxpr:
    """What `ROWS` rows at once compute; an error tells of the shapes of one row, or of all."""
    many = jax.tree.map(lambda a: jax.ShapeDtypeStruct((ROWS, *a.shape[1:]), a.dtype), rows)
    try:
        return jax.make_jaxpr(jax.vmap(one))(many).jaxpr
    except Exception as error:
        failed = error
    jax.eval_shape(one, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), rows))
    jax.eval_shape(jax.vmap(one), rows)
    raise failed


def _arrays(jaxpr: Jaxpr) -> Iterator[Any]:
    """The shapes of all that a program computes, its loops and calls too."""
    yield from (variable.aval for variable in jaxpr.invars)
    for eqn in jaxpr.eqns:
        yield from (variable.aval for variable in eqn.outvars)
        for inner in jax.tree.leaves(eqn.params):
            if isinstance(inner, (Jaxpr, ClosedJaxpr)):
                yield from _arrays(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def room() -> int:
    """Bytes: of an accelerator its memory; of a CPU its last caches, the part of our cores."""
    if jax.default_backend() == "cpu":
        return caches()
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 8 << 30)


@cache
def caches(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    try:
        last = max(folder.glob("index*"), key=lambda c: int((c / "level").read_text()))
        sharers = int((last / "shared_cpu_map").read_text().replace(",", ""), 16).bit_count()
        size = int((last / "size").read_text().strip().removesuffix("K")) << 10
        return size * len(os.sched_getaffinity(0)) // sharers
    except (OSError, ValueError, ZeroDivisionError):
        return UNTOLD
