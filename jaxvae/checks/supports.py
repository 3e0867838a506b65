"""Whether an event lies in a distribution's support, and who is told where it does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import (
    Any,
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_LISTENING: list[str] | None = None  # to what `within` finds


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
