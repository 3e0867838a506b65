"""Batches of a stream: what can be iterated, where it stands, and its batches on their way.

A thread makes the batches of the next call of `fit`, which go to the device while those of this one
are trained on.
"""

from ast import literal_eval
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxvae.batching import number_of_rows
from jaxvae.checks import Key, Tree, warn
from jaxvae.pytrees import paths
from jaxvae.training.ahead import Ahead
from jaxvae.training.batches import iterated, like_first
from jaxvae.training.checkpoints.files import CheckpointError, describe
from jaxvae.training.devices import of_every_process, shard_batches
from jaxvae.training.places import Items, Place, as_it_was, as_literals, memory
from jaxvae.training.sources import Steps

CALL_BYTES = 2**25  # of a stream's batches, at most so much goes to the device at once
END = object()


class Stream:
    """An iterable of batches: an epoch is a pass, or so many batches of passes one after another.

    Args:
      data: the iterable, an iterator, or a generator function of no argument.
      begun: the step it begins at.
      epochs: of the run.
      batch_size: what the batches must have, or None.
      per_epoch: batches an epoch; a pass where None.
      size: batches a call; None for as many as have `CALL_BYTES`.
    """

    def __init__(
        self,
        data: Tree,
        begun: int,
        epochs: int,
        batch_size: int | None,
        per_epoch: int | None,
        size: int | None,
    ):
        self.data, self.epochs, self.fixed = data, epochs, per_epoch
        self.per_epoch = per_epoch or _length(data)
        self.num_steps = None if self.per_epoch is None else epochs * self.per_epoch
        self.end: int | None = None
        self.mesh: Mesh | None = None
        self.ahead: Ahead | None = None
        self.like: dict[str, str] = {}
        self.peeked: list[Any] = []
        self.fetched: list[Any] = []
        self.shapes: set[int] = set()
        self.told = ""
        self.iterator = self._open()
        self.start = Place(state=self._state())
        self.places = [(begun, [self.start])]  # of the batches of each call
        self.resumable, self.resumed = self.start.state is not None, False
        batch = self._next(self.start)
        if batch is END:
            raise ValueError("fit: data gave no batch, expected at least one")
        rows = number_of_rows(batch)
        if batch_size not in (None, rows):
            raise ValueError(
                f"fit: batch_size is {batch_size} and the first batch of data has {rows} "
                "rows, expected the same; leave batch_size out, as a stream makes its own batches"
            )
        self.peeked = [batch]
        self.batch = jax.eval_shape(partial(jax.tree.map, jnp.asarray), batch)
        limit = max(CALL_BYTES // sum(leaf.nbytes for leaf in jax.tree.leaves(batch)), 1)
        self.size = size or min(limit, self.per_epoch or 1000)

    @staticmethod
    def draw(data: Tree, key: Key, rows: Array, i: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf[i], data)

    def identity(self, key: Key) -> tuple[dict[str, Any], Tree]:
        given = {"batch" + path: describe(leaf) for path, leaf in paths(self.batch).items()}
        return given | {"steps_per_epoch": self.fixed, "data": type(self.data).__name__}, self.batch

    def epoch(self, step: int) -> float:
        at, length = self._at(step), self.per_epoch
        return (at.epoch * length + at.batch) / length if length else float(at.epoch)

    def past_end(self, step: int, place: str | None) -> int:
        stands, end = literal_eval(place or "")[:2], (self.epochs, 0)
        return (stands > end) - (stands < end)

    def resume(self, place: str | None) -> None:
        self.start, self.places = Place(*as_it_was(literal_eval(place or ""))), []
        self.resumed = True
        reads_on = hasattr(self.data, "__next__")  # an iterator goes on from wherever it is
        if self.start.state is None and self.start.batch and not reads_on:
            warn(
                f"data can't be set to where they stood, and go on from the start of epoch "
                f"{self.start.epoch}: its first {self.start.batch} batches are given again, and "
                "the run has so many steps more, in which schedules stay where they end"
            )

    def begin(self, mesh: Mesh | None) -> None:
        self.mesh, self.ahead = mesh, Ahead(self._calls())

    def steps(self, key: Key, done: int) -> Steps | None:
        self.fetch(done)
        fetched, self.fetched = self.fetched, []
        if isinstance(fetched[0], Exception):
            raise fetched[0]
        return fetched[0]

    def fetch(self, done: int) -> None:
        if not self.fetched:
            try:
                self.fetched = [self._fetch(done)]
            except Exception as error:  # raised when the steps before it are seen and saved
                self.fetched, self.end = [error], done

    def _fetch(self, done: int) -> Steps | None:
        assert self.ahead is not None
        found = next(self.ahead, None)
        mine = [0, 0] if found is None else [found[2], jax.tree.leaves(found[1])[0].shape[1]]
        every = of_every_process(mine)
        if (every != every[0]).any():
            raise ValueError(
                f"fit: the processes' next calls have {every[:, 0].tolist()} batches of "
                f"{every[:, 1].tolist()} rows, expected as many in each; cut their parts evenly"
            )
        if found is None:
            self.end = done
            self.places = [*self.places[-2:], (done, [self.last])]
            if self.told:
                warn(self.told)
            return None
        places, batches, count = found
        self._count_shapes(mine[1])
        self.places = [*self.places[-2:], (done, places)]
        numbers = places[0].batch + jnp.arange(self.size, dtype=jnp.int32)
        return Steps(shard_batches(self.mesh, batches), numbers, count)

    def _count_shapes(self, rows: int) -> None:
        self.shapes.add(rows)
        if len(self.shapes) == 5:
            warn(
                f"the batches of data have {sorted(self.shapes)} rows and more, and a program is "
                "compiled for each number; make them alike, padded with rows that are masked",
            )
            self.shapes.add(0)  # once

    def place(self, step: int) -> str | None:
        if not self.resumable:
            warn(
                "data can't say where they stand (neither get_state and set_state nor state_dict "
                "and load_state_dict), so that a run which is ended goes on from the start of its "
                "epoch, and has the steps since then twice",
            )
            self.resumable = True  # once
        place = as_literals(tuple(self._at(step)))
        try:
            kept = literal_eval(repr(place)) == place
        except (ValueError, SyntaxError):
            kept = False
        if not kept:
            raise CheckpointError(
                f"where data stand can't be kept: {str(place[2])[:80]!r}, expected numbers, text, "
                "bytes, arrays, and tuples, lists and dicts of them"
            )
        return repr(place)

    def _at(self, step: int) -> Place:
        """Where it stands after so many steps."""
        if not self.places:  # nothing is read yet since it was resumed
            return self.start
        done, places = next(p for p in reversed(self.places) if p[0] <= step)
        place = places[min(step - done, len(places) - 1)]
        later = max(step - done - len(places) + 1, 0)  # behind the last that was read
        return place._replace(batch=place.batch + later, skip=place.skip + later)

    def close(self) -> None:
        if self.ahead is not None:
            self.ahead.close()

    def _calls(self) -> Iterator[tuple[list[Place], Tree, int]]:
        """Of each call the batches' places, the batches as arrays [size, rows, ...], and how many
        they are: of one epoch and one number of rows."""
        places: list[Place] = []
        batches, rows, count = None, 0, 0
        for place, batch in self._batches():
            if count and (place.epoch, number_of_rows(batch)) != (places[0].epoch, rows):
                yield places, batches, count
                count = 0
            if not count:
                places, rows = [], number_of_rows(batch)
                batches = jax.tree.map(self._empty, batch)
            for every, leaf in zip(jax.tree.leaves(batches), jax.tree.leaves(batch), strict=True):
                every[count] = leaf
            places.append(place)
            count += 1
            if count == self.size:
                yield places, batches, count
                count = 0
        if count:
            yield places, batches, count

    def _empty(self, leaf: np.ndarray) -> np.ndarray:
        return np.zeros((self.size, *leaf.shape), leaf.dtype)

    def _batches(self) -> Iterator[tuple[Place, Tree]]:
        """Every batch from the start on, and its place."""
        start = self._go_to(self.start) if self.resumed else self.start
        epoch, number, state, skip, passes = start
        since, fresh = number - skip, False  # the state is of before batch `since`
        while epoch < self.epochs:
            batch = self._next(Place(epoch, number))
            if batch is not END:
                yield Place(epoch, number, state, number - since, passes), batch
                number, fresh = number + 1, False
                if number == self.fixed:
                    epoch, number = epoch + 1, 0
            elif fresh:
                raise ValueError(f"fit: data gave no batch in epoch {epoch}, expected at least one")
            else:  # of a pass
                if self.fixed is None:
                    epoch, number = epoch + 1, 0
                if epoch < self.epochs:
                    passes += 1
                    self.iterator, before = self._open(passes), self.iterator
                    if self.iterator is before:
                        self.told = (
                            f"data ended before epoch {epoch} of {self.epochs} was done; an "
                            "iterator has one pass: give what can be iterated again, a list, a "
                            "loader or a generator function"
                        )
                        epoch, number = self.epochs, 0
                fresh = True
            if batch is END or number % self.size == 0:
                state, since = self._state(), number
        self.last = Place(epoch, number, state if self.fixed else None, passes=passes)

    def _go_to(self, place: Place) -> Place:
        """Bring the iterator there, or else to the start of the epoch."""
        reads_on = hasattr(self.data, "__next__")  # an iterator is read on from wherever it is
        if place.state is None and self.fixed and place.epoch < self.epochs and not reads_on:
            return self._draw_again(place.epoch * self.fixed)._replace(epoch=place.epoch)
        if place.state is None:
            if place.passes and hasattr(self.data, "set_epoch"):
                self.iterator, self.peeked = self._open(place.passes), []
            return Place(place.epoch, passes=place.passes)
        remembers = memory(self.iterator)
        _, set_state = remembers or memory(self.data) or (None, None)
        if set_state is None:
            raise CheckpointError(
                "data can't be set to where they stood, expected those of the run"
            )
        set_state(place.state)
        if not remembers:  # such data go on from there when they are iterated
            self.iterator = self._open(place.passes)
        self.peeked = []
        first = self._next(place)
        if first is END:  # until a lazy iterator has begun, the state is of the end of a pass
            self.iterator = self._open(place.passes)
        else:
            self.peeked = [first]
        for _ in range(place.skip):
            self._next(place)
        return place

    def _draw_again(self, count: int) -> Place:
        """Drop so many batches of a stream that is read on and on: those of the epochs before."""
        length = _length(self.data)
        passes, rest = divmod(count, length) if length else (0, count)
        if passes:
            self.iterator, self.peeked = self._open(passes), []
        ended = 0  # passes in a row without a batch: an iterator has but one
        while rest and ended < 2:
            if self._next(Place()) is not END:
                rest, ended = rest - 1, 0
            else:
                passes, ended = passes + 1, ended + 1
                self.iterator = self._open(passes)
        return Place(passes=passes)

    def _open(self, passes: int = 0) -> Iterator[Any]:
        """The iterator of a pass, of which data that have `set_epoch` are told the number."""
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(passes)
        if isinstance(self.data, list):
            return Items(self.data)
        return iter(iterated(self.data))

    def _state(self) -> Any:
        get_state, _ = memory(self.iterator) or memory(self.data) or (lambda: None, None)
        return get_state()

    def _next(self, place: Place) -> Any:
        """A batch of NumPy arrays, or `END`."""
        if self.peeked:
            return self.peeked.pop()
        where = f"batch {place.batch} of epoch {place.epoch}"
        try:
            batch = next(self.iterator, END)
        except Exception as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RuntimeError(f"fit: data failed at {where} with {why}") from error
        if batch is not END:
            batch, self.like = like_first("fit", where, batch, self.like)
        return batch


def _length(data: Tree) -> int | None:
    """Batches a pass, where it is known; an error where there is no end."""
    try:
        length = len(data)
    except (TypeError, NotImplementedError):
        return None
    if length >= 2**31:
        raise ValueError(
            "fit: data have no end, expected steps_per_epoch: how many batches are an epoch"
        )
    return length
