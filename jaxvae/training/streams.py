"""Where the batches of a run come from: arrays, a stream of batches, or a function of a key.

`fit` asks them all by one protocol, `Source`, for what the steps of its next call are given. Arrays
lie on the device as a whole and steps gather rows of them. Of a stream a thread makes the batches
of the next call, which go to the device while those of this one are trained on. A function of a
key is called inside the compiled loop.
"""

import queue
import threading
import warnings
from ast import literal_eval
from collections.abc import Callable, Iterator
from functools import partial
from inspect import isgeneratorfunction
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.tree_util import Partial

from jaxvae.batching import batch_size as size_of
from jaxvae.checks import Key, Tree, check_leaves
from jaxvae.pytrees import paths
from jaxvae.training.checkpoints.files import CheckpointError, describe, first_difference
from jaxvae.training.checkpoints.identity import checksums, computation
from jaxvae.training.devices import check_even, of_every_process, placed, shard_batches
from jaxvae.training.sparse import by_rows, compressed, is_sparse, take
from jaxvae.training.steps import check_batch_size, epoch_order

CALL_BYTES = 2**25  # of a stream's batches, at most so much goes to the device at once
STATES = ("get_state", "set_state"), ("state_dict", "load_state_dict")
END = object()


class Steps(NamedTuple):
    """What the steps of a call are given; `Source.draw(data, key, rows, i)` is the batch of step i.

    Args:
      data: on the device.
      rows: leading axis [size]: rows of the data for arrays, [size, batch size]; else the number of
        each batch, in its epoch or of a function in the run.
      made: how many of `size` are.
    """

    data: Tree
    rows: Array
    made: int


class Source(Protocol):
    """Where batches come from.

    `per_epoch` are its batches an epoch and `num_steps` those of the run, where known; `size` are
    the most in a call, and `end` the last step, as soon as it is known. `draw` is traced.
    """

    @property
    def draw(self) -> Callable[[Tree, Key, Array, Any], Any]: ...
    @property
    def per_epoch(self) -> int | None: ...
    @property
    def num_steps(self) -> int | None: ...
    @property
    def size(self) -> int: ...
    @property
    def end(self) -> int | None: ...

    def identity(self, key: Key) -> tuple[dict[str, Any], Tree]:
        """What it is known by, and a batch, of which the shapes matter."""
        ...

    def past_end(self, step: int, place: str | None) -> int:
        """Whether a checkpoint is of the run's end, 0, of before, -1, or of more epochs, 1."""
        ...

    def resume(self, place: str | None) -> None:
        """Go on from what `place` returned."""
        ...

    def begin(self, mesh: Mesh | None) -> None:
        """Put on the devices what lies there; from now on `steps` is asked."""
        ...

    def steps(self, key: Key, done: int) -> Steps | None:
        """Of the call after `done` steps of the run's; None behind the last."""
        ...

    def fetch(self, done: int) -> None:
        """What the next call of `steps` will return may set out for the device."""
        ...

    def place(self, step: int) -> str | None:
        """Where it stands after so many steps, None where that follows from their number."""
        ...

    def close(self) -> None:
        """No more will be asked."""
        ...


class _Counted:
    """A source of which step t is a function of t, so that nothing need be kept of its place."""

    num_steps: int
    begun: int

    @property
    def end(self) -> int:
        return self.begun + self.num_steps

    def past_end(self, step: int, place: str | None) -> int:
        return int(np.sign(step - self.end))

    def resume(self, place: str | None) -> None:
        pass

    def fetch(self, done: int) -> None:
        pass

    def place(self, step: int) -> str | None:
        return None

    def close(self) -> None:
        pass


class Rows(_Counted):
    """Arrays, and sparse rows, shuffled on the device anew for every epoch."""

    def __init__(self, data: Tree, begun: int, epochs: int, batch_size: int, size: int | None):
        self.data = compressed(data)
        self.num_examples = size_of(by_rows(self.data), "fit", "data")
        check_batch_size("fit", batch_size, self.num_examples)
        self.batch_size, self.begun = batch_size, begun
        self.shuffled = -1, jnp.zeros(0)
        self.per_epoch = self.num_examples // batch_size
        self.num_steps, self.size = epochs * self.per_epoch, size or self.per_epoch

    @staticmethod
    def draw(data: Tree, key: Key, rows: Array, i: Array) -> Any:
        return take(data, rows[i])

    def identity(self, key: Key) -> tuple[dict[str, Any], Tree]:
        given = {"batch_size": self.batch_size, "rows": self.num_examples}
        rows = jax.ShapeDtypeStruct((1, self.batch_size), jnp.int32)
        batch = jax.eval_shape(self.draw, self.data, key, rows, 0)
        return given | checksums("data", self.data), batch

    def begin(self, mesh: Mesh | None) -> None:
        check_even(mesh, self.batch_size)
        self.data = jax.device_put(self.data) if mesh is None else placed(mesh, self.data)

    def steps(self, key: Key, done: int) -> Steps | None:
        if done >= self.end:
            return None
        epoch, inside = divmod(done - self.begun, self.per_epoch)
        epoch += -(-self.begun // self.per_epoch)  # a shuffle that no step before has drawn from
        if epoch != self.shuffled[0]:  # once an epoch, whatever the calls
            self.shuffled = epoch, epoch_order(key, epoch, self.num_examples, self.batch_size)
        order = self.shuffled[1]
        count = min(self.size, len(order) - inside)
        return Steps(self.data, sliced(order, inside, self.size), count)


def sliced(values: Array, start: int, size: int) -> Array:
    """Those of a call that starts there; beyond the last is the last, never visited."""
    return values.at[jnp.arange(start, start + size)].get(mode="clip")


class Draws(_Counted):
    """A function of a key, called for every step anew: data without end."""

    def __init__(
        self, data: Callable[[Key], Any], begun: int, epochs: int, per_epoch: int, size: int | None
    ):
        self.data = data if isinstance(data, Partial) else Partial(data)
        self.per_epoch, self.num_steps, self.size = per_epoch, epochs * per_epoch, size or per_epoch
        self.begun = begun

    @staticmethod
    def draw(data: Tree, key: Key, rows: Array, i: Array) -> Any:
        # steps fold in 0, 1, ... and shuffles from 2^31 on
        return data(jax.random.fold_in(jax.random.fold_in(key, jnp.uint32(2**32 - 1)), rows[i]))

    def identity(self, key: Key) -> tuple[dict[str, Any], Tree]:
        given = {"steps_per_epoch": self.per_epoch, "data": computation(self.data, key)}
        return given, jax.eval_shape(self.data, key)

    def begin(self, mesh: Mesh | None) -> None:
        batch = jax.eval_shape(self.data, jax.random.key(0))
        check_even(mesh, size_of(batch), "data returned {} rows")
        self.data = placed(mesh, self.data)

    def steps(self, key: Key, done: int) -> Steps | None:
        if done >= self.end:
            return None
        inside = (done - self.begun) % self.per_epoch
        rows = done + jnp.arange(self.size, dtype=jnp.int32)
        return Steps(self.data, rows, min(self.size, self.per_epoch - inside))


class Place(NamedTuple):
    """Where a stream stands: before a batch of an epoch, `skip` behind where it had a state."""

    epoch: int = 0
    batch: int = 0
    state: Any = None
    skip: int = 0


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
        self.ahead: _Ahead | None = None
        self.like: dict[str, str] = {}
        self.peeked: list[Any] = []
        self.fetched: list[Any] = []
        self.shapes: set[int] = set()
        self.told = ""
        self.iterator = self._open()
        self.start = Place(state=self._state())
        self.places = [(begun, self.start)]
        self.resumable, self.resumed = self.start.state is not None, False
        batch = self._next(self.start)
        if batch is END:
            raise ValueError("fit: data gave no batch, expected at least one")
        if batch_size not in (None, size_of(batch)):
            raise ValueError(
                f"fit: batch_size is {batch_size} and the first batch of data has {size_of(batch)} "
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

    def past_end(self, step: int, place: str | None) -> int:
        stands, end = literal_eval(place or "")[:2], (self.epochs, 0)
        return (stands > end) - (stands < end)

    def resume(self, place: str | None) -> None:
        self.start, self.places = Place(*literal_eval(place or "")), []
        self.resumed = True

    def begin(self, mesh: Mesh | None) -> None:
        self.mesh, self.ahead = mesh, _Ahead(self._calls())

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
            self.places = [*self.places[-2:], (done, self.last)]
            if self.told:
                warnings.warn(self.told, stacklevel=5)
            return None
        place, batches, count = found
        self._count_shapes(mine[1])
        self.places = [*self.places[-2:], (done, place)]
        numbers = place.batch + jnp.arange(self.size, dtype=jnp.int32)
        return Steps(shard_batches(self.mesh, batches), numbers, count)

    def _count_shapes(self, rows: int) -> None:
        self.shapes.add(rows)
        if len(self.shapes) == 5:
            warnings.warn(
                f"the batches of data have {sorted(self.shapes)} rows and more, and a program is "
                "compiled for each number; make them alike, padded with rows that are masked",
                stacklevel=6,
            )
            self.shapes.add(0)  # once

    def place(self, step: int) -> str | None:
        if not self.resumable:
            warnings.warn(
                "data can't say where they stand (neither get_state and set_state nor state_dict "
                "and load_state_dict), so that a run which is ended goes on from the start of its "
                "epoch",
                stacklevel=7,
            )
            self.resumable = True  # once
        done, place = next(p for p in reversed(self.places) if p[0] <= step)
        later = step - done
        place = tuple(place._replace(batch=place.batch + later, skip=place.skip + later))
        try:
            kept = literal_eval(repr(place)) == place
        except (ValueError, SyntaxError):
            kept = False
        if not kept:
            raise CheckpointError(
                f"where data stand can't be kept: {str(place[2])[:80]!r}, expected numbers, text, "
                "bytes, and tuples, lists and dicts of them"
            )
        return repr(place)

    def close(self) -> None:
        if self.ahead is not None:
            self.ahead.close()

    def _calls(self) -> Iterator[tuple[Place, Tree, int]]:
        """Of each call the first batch's place, the batches as arrays [size, rows, ...], and how
        many they are: of one epoch and one number of rows."""
        first, batches, rows, count = self.start, None, 0, 0
        for place, batch in self._batches():
            if count and (place.epoch, size_of(batch)) != (first.epoch, rows):
                yield first, batches, count
                count = 0
            if not count:
                first, rows = place, size_of(batch)
                batches = jax.tree.map(self._empty, batch)
            for every, leaf in zip(jax.tree.leaves(batches), jax.tree.leaves(batch), strict=True):
                every[count] = leaf
            count += 1
            if count == self.size:
                yield first, batches, count
                count = 0
        if count:
            yield first, batches, count

    def _empty(self, leaf: np.ndarray) -> np.ndarray:
        return np.zeros((self.size, *leaf.shape), leaf.dtype)

    def _batches(self) -> Iterator[tuple[Place, Tree]]:
        """Every batch from the start on, and its place."""
        epoch, number, state, skip = self._go_to(self.start) if self.resumed else self.start
        since, fresh = number - skip, False  # the state is of before batch `since`
        while epoch < self.epochs:
            batch = self._next(Place(epoch, number))
            if batch is not END:
                yield Place(epoch, number, state, number - since), batch
                number, fresh = number + 1, False
                if number == self.fixed:
                    epoch, number = epoch + 1, 0
            elif fresh:
                raise ValueError(f"fit: data gave no batch in epoch {epoch}, expected at least one")
            else:  # of a pass
                if self.fixed is None:
                    epoch, number = epoch + 1, 0
                if epoch < self.epochs:
                    self.iterator, before = self._open(), self.iterator
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
        self.last = Place(epoch, number, state if self.fixed else None)

    def _go_to(self, place: Place) -> Place:
        """Bring the iterator there, or else to the start of the epoch."""
        if place.state is None:
            return Place(place.epoch)
        remembers = _memory(self.iterator)
        _, set_state = remembers or _memory(self.data) or (None, None)
        if set_state is None:
            raise CheckpointError(
                "data can't be set to where they stood, expected those of the run"
            )
        set_state(place.state)
        if not remembers:  # such data go on from there when they are iterated
            self.iterator = self._open()
        self.peeked = []
        first = self._next(place)
        if first is END:  # until a lazy iterator has begun, the state is of the end of a pass
            self.iterator = self._open()
        else:
            self.peeked = [first]
        for _ in range(place.skip):
            self._next(place)
        return place

    def _open(self) -> Iterator[Any]:
        if isinstance(self.data, list):
            return _Items(self.data)
        return iter(self.data() if isgeneratorfunction(self.data) else self.data)

    def _state(self) -> Any:
        get_state, _ = _memory(self.iterator) or _memory(self.data) or (lambda: None, None)
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
        return END if batch is END else self._checked(where, batch)

    def _checked(self, where: str, batch: Tree) -> Any:
        """The batch as arrays, if it is like the first."""
        try:
            batch = _arrays(batch)
        except (TypeError, ValueError) as error:
            raise ValueError(f"fit: {where} can't be made an array: {error}") from None
        _check_rows(where, batch)
        like = {path: f"rows of {describe(leaf[0])}" for path, leaf in paths(batch).items()}
        self.like = self.like or like
        _check_alike(where, self.like, like)
        return batch


def _check_rows(where: str, batch: Any) -> None:
    """Raise unless a batch has arrays of numbers, with as many rows in each."""
    check_leaves("fit", where, batch)
    leaves = paths(batch)
    sizes = {np.shape(leaf)[:1] for leaf in leaves.values()}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        shapes = ", ".join(describe(leaf) + (p and f" at {p}") for p, leaf in leaves.items())
        raise ValueError(
            f"fit: {where} has {shapes}, expected arrays of one number of rows, at least 1"
        )


def _check_alike(where: str, first: dict[str, str], this: dict[str, str]) -> None:
    """Raise ValueError where a batch has other rows than the first."""
    if found := first_difference(first, this):
        path, there, here = found
        raise ValueError(
            f"fit: {where} has {here}{path and f' at {path}'}, expected {there} as in the first "
            "batch"
        )


class _Items:
    """The items of a list; an index says where it stands."""

    def __init__(self, items: list[Any]):
        self.items, self.index = items, 0

    def __iter__(self) -> "_Items":
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


class _Ahead:
    """Items that a thread makes, one ahead of who asks; its errors are raised where it is asked."""

    def __init__(self, items: Iterator[Any]):
        self.items, self.closed = items, threading.Event()
        self.made: queue.Queue[Any] = queue.Queue(maxsize=1)
        self.thread = threading.Thread(target=self._make, name="jaxvae data", daemon=True)
        self.thread.start()

    def __iter__(self) -> "_Ahead":
        return self

    def __next__(self) -> Any:
        item, error = self.made.get()
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        self.closed.set()
        self.thread.join(timeout=10)  # of one that waits for its data no more can be asked

    def _make(self) -> None:
        try:
            for item in self.items:
                self._put((item, None))
                if self.closed.is_set():
                    return
            self._put((None, StopIteration()))
        except Exception as error:
            self._put((None, error))

    def _put(self, made: Tree) -> None:
        while not self.closed.is_set():
            try:
                return self.made.put(made, timeout=0.1)
            except queue.Full:
                continue


def source_of(
    data: Any,
    begun: int,
    epochs: int,
    batch_size: int | None,
    steps_per_epoch: int | None,
    size: int | None,
) -> Source:
    """What gives the batches of a run that begins at a step; arguments as `fit`'s."""
    if callable(data) and not isgeneratorfunction(data) and not hasattr(data, "__iter__"):
        if steps_per_epoch is None:
            raise ValueError(
                "fit: data is a function, of a key, and has no end: steps_per_epoch is None, "
                "expected how many of its batches are an epoch"
            )
        batch = jax.eval_shape(data, jax.random.key(0))
        rows = size_of(batch, "fit", "data(key)")
        if batch_size not in (None, rows):
            raise ValueError(
                f"fit: batch_size is {batch_size} and data returned {rows} rows, "
                "expected the same; leave batch_size out"
            )
        return Draws(data, begun, epochs, steps_per_epoch, size)
    if _is_stream(data, batch_size):
        return Stream(data, begun, epochs, batch_size, steps_per_epoch, size)
    check_leaves("fit", "data", by_rows(compressed(data)))
    if batch_size is None or steps_per_epoch is not None:
        raise ValueError(
            f"fit: data are arrays, batch_size is {batch_size} and steps_per_epoch "
            f"{steps_per_epoch}, expected batch_size alone: an epoch is a pass over the rows"
        )
    return Rows(data, begun, epochs, batch_size, size)


def _is_stream(data: Tree, batch_size: int | None) -> bool:
    """Whether these are batches to be iterated: what is no array and no pytree of them."""
    if isinstance(data, list):  # a pytree, or batches
        return batch_size is None
    arrays = hasattr(data, "dtype") or is_sparse(data) or isinstance(data, (str, bytes))
    if arrays or not jax.tree_util.all_leaves([data]):
        return False
    return isgeneratorfunction(data) or any(hasattr(data, n) for n in ("__iter__", "__getitem__"))


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


def _memory(thing: Any) -> tuple[Callable[[], Any], Callable[[Any], None]] | None:
    """How it tells where it stands, and goes there; None where it can't."""
    for names in STATES:
        if all(hasattr(thing, name) for name in names):
            return getattr(thing, names[0]), getattr(thing, names[1])
    return None


def _arrays(batch: Tree) -> Any:
    """A batch as a pytree of NumPy arrays: lists of numbers are arrays, other lists tuples."""

    def array(part: Any) -> Any:
        if is_sparse(part):
            return part.toarray()
        if isinstance(part, list) and any(hasattr(x, "__array__") or _is_tree(x) for x in part):
            return tuple(map(_arrays, part))
        return np.asarray(part)

    return jax.tree.map(
        array, batch, is_leaf=lambda part: isinstance(part, list) or is_sparse(part)
    )


def _is_tree(value: object) -> bool:
    return isinstance(value, (dict, tuple))
