"""Where the batches of a run come from: arrays, or a function of a key; `streams` has the third.

`fit` asks them all by one protocol, `Source`, for what the steps of its next call are given. Arrays
lie on the device as a whole and steps gather rows of them. A function of a key is called inside the
compiled loop.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.tree_util import Partial

from jaxvae.batching import number_of_rows
from jaxvae.checks import Key, Tree
from jaxvae.training.checkpoints.identity import checksums, computation
from jaxvae.training.devices import check_even, placed
from jaxvae.training.sparse import by_rows, compressed, take
from jaxvae.training.steps import check_batch_size, epoch_order


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

    `epochs` are the run's, `per_epoch` its batches an epoch and `num_steps` those of the run, where
    known; `size` are the most in a call, and `end` the last step, as soon as it is known. `draw` is
    traced.
    """

    @property
    def draw(self) -> Callable[[Tree, Key, Array, Any], Any]: ...
    @property
    def epochs(self) -> int: ...
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

    def epoch(self, step: int) -> float:
        """How many it has made up to there; whole ones where nobody knows how long they are."""
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
    per_epoch: int
    begun: int

    @property
    def end(self) -> int:
        return self.begun + self.num_steps

    def epoch(self, step: int) -> float:
        return (step - self.begun) / self.per_epoch

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
        self.num_examples = number_of_rows(by_rows(self.data), "fit", "data")
        check_batch_size("fit", batch_size, self.num_examples)
        self.batch_size, self.begun = batch_size, begun
        self.shuffled = -1, jnp.zeros(0)
        self.epochs, self.per_epoch = epochs, self.num_examples // batch_size
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
            self.shuffled = epoch, _shuffled(key, epoch, self.num_examples, self.batch_size)
        order = self.shuffled[1]
        count = min(self.size, len(order) - inside)
        if inside or self.size != len(order):
            order = sliced(order, inside, self.size)
        return Steps(self.data, order, count)


_shuffled = jax.jit(epoch_order, static_argnums=(2, 3))  # one program in place of ten


@partial(jax.jit, static_argnums=2)
def sliced(values: Array, start: Any, size: int) -> Array:
    """Those of a call that starts there; beyond the last is the last, never visited."""
    return values.at[start + jnp.arange(size)].get(mode="clip")


class Draws(_Counted):
    """A function of a key, called for every step anew: data without end."""

    def __init__(
        self, data: Callable[[Key], Any], begun: int, epochs: int, per_epoch: int, size: int | None
    ):
        self.data = data if isinstance(data, Partial) else Partial(data)
        self.per_epoch, self.num_steps, self.size = per_epoch, epochs * per_epoch, size or per_epoch
        self.begun, self.epochs = begun, epochs

    @staticmethod
    def draw(data: Tree, key: Key, rows: Array, i: Array) -> Any:
        # steps fold in 0, 1, ..., shuffles from 2^31 on, and callbacks 2^32 - 1
        return data(jax.random.fold_in(jax.random.fold_in(key, jnp.uint32(2**32 - 2)), rows[i]))

    def identity(self, key: Key) -> tuple[dict[str, Any], Tree]:
        given = {"steps_per_epoch": self.per_epoch, "data": computation(self.data, key)}
        return given, jax.eval_shape(self.data, key)

    def begin(self, mesh: Mesh | None) -> None:
        batch = jax.eval_shape(self.data, jax.random.key(0))
        check_even(mesh, number_of_rows(batch), "data returned {} rows")
        self.data = placed(mesh, self.data)

    def steps(self, key: Key, done: int) -> Steps | None:
        if done >= self.end:
            return None
        inside = (done - self.begun) % self.per_epoch
        rows = done + jnp.arange(self.size, dtype=jnp.int32)
        return Steps(self.data, rows, min(self.size, self.per_epoch - inside))
