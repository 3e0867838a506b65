"""Where a stream stands: what says so, and that as a literal of Python, which runs no code."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

STATES = ("get_state", "set_state"), ("state_dict", "load_state_dict")
ARRAY = "an array"


class Place(NamedTuple):
    """Where a stream stands: before a batch of an epoch, `skip` behind where it had a state.

    `passes` are those that were made, whatever an epoch is.
    """

    epoch: int = 0
    batch: int = 0
    state: Any = None
    skip: int = 0
    passes: int = 0


def memory(thing: Any) -> tuple[Callable[[], Any], Callable[[Any], None]] | None:
    """How it tells where it stands, and goes there; None where it can't."""
    for names in STATES:
        if all(hasattr(thing, name) for name in names):
            return getattr(thing, names[0]), getattr(thing, names[1])
    return None


def as_literals(state: Any) -> Any:
    """A state with what it takes to make its arrays and tensors again, in their place."""
    if isinstance(state, dict):
        return {name: as_literals(part) for name, part in state.items()}
    if type(state) in (tuple, list):
        return type(state)(map(as_literals, state))
    library = type(state).__module__.split(".")[0]
    if library in ("numpy", "torch") and hasattr(state, "__array__"):
        array = np.asarray(state)
        if array.dtype.kind in "biuf":
            return {ARRAY: (library, array.dtype.str, array.shape, array.tobytes())}
    return state


def as_it_was(literals: Any) -> Any:
    """The state that `as_literals` was given."""
    if isinstance(literals, dict) and [*literals] == [ARRAY]:
        library, dtype, shape, data = literals[ARRAY]
        array = np.frombuffer(data, dtype).reshape(shape).copy()
        return array if library == "numpy" else import_module(library).from_numpy(array)
    if isinstance(literals, dict):
        return {name: as_it_was(part) for name, part in literals.items()}
    if type(literals) in (tuple, list):
        return type(literals)(map(as_it_was, literals))
    return literals


class Items:
    """The items of a list; an index says where it stands."""

    def __init__(self, items: list[Any]):
        self.items, self.index = items, 0

    def __iter__(self) -> "Items":
        return self

    def __next__(self) -> Any:
        if self.index >= len(self.items):
            raise StopIteration
        self.index += 1
        return self.items[self.index - 1]

    def get_state(self) -> int:
        return self.index

    def set_state(self, index: int) -> None:
        self.index = index
