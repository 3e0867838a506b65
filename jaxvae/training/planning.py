"""Which steps a call of `fit` makes, and what each of them is given, from which source."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxvae.batching import number_of_rows
from jaxvae.checks import Key, Tree, check_leaves
from jaxvae.training.batches import gives_iterator, is_frame, is_stream
from jaxvae.training.checkpoints.identity import Identity, checksums, computation
from jaxvae.training.schedules import at_steps
from jaxvae.training.sources import Draws, Rows, Source, sliced
from jaxvae.training.sparse import by_rows, compressed
from jaxvae.training.steps import Metrics, Step, TrainState
from jaxvae.training.streams import Stream

FORESEEN = 10_000  # steps at which schedules are compared where the number of steps is not known


class Call(NamedTuple):
    """What the steps of one call are given.

    Args:
      key: the run's.
      rows: of the data, [size, batch size]; or the number of each batch, [size].
      numbers: hyper-parameters that stay.
      schedules: those that change, leading axis [size].
    """

    key: Array
    rows: Array
    numbers: dict[str, Any]
    schedules: dict[str, Any]

    def hyper(self, i: Any) -> dict[str, Any]:
        """All hyper-parameters of its step i."""
        return self.numbers | jax.tree.map(lambda values: values[i], self.schedules)


class Plan(NamedTuple):
    """The steps of a run from `begun` on, each given a batch of the source.

    `numbers` are hyper-parameters that stay; `functions` are schedules, and `schedules` their
    values at every step, or at the first `FORESEEN` where nobody knows how many there are.
    """

    source: Source
    begun: int
    numbers: dict[str, Any]
    functions: dict[str, Any]
    schedules: dict[str, Any]

    def at(self, key: Key, done: int) -> tuple[Tree, Call, int] | None:
        """Data and settings of the next call, and how many of its steps are made; or None."""
        if (steps := self.source.steps(key, done)) is None:
            return None
        start, size = done - self.begun, self.source.size
        if self.source.end is not None:
            schedules = {n: sliced(values, start, size) for n, values in self.schedules.items()}
        else:
            schedules = {n: at_steps(h, done, done + size) for n, h in self.functions.items()}
        return steps.data, Call(key, steps.rows, self.numbers, schedules), steps.made

    def identity(self, step: Step, state: TrainState, key: Key) -> Identity:
        """What makes the run this run, apart from `Checkpoints.config`."""
        of_data, batch = self.source.identity(key)
        given = {"first step": self.begun}
        given |= {name: np.asarray(h).tolist() for name, h in self.numbers.items()}
        given |= dict.fromkeys(self.schedules, "a schedule")
        first = jax.tree.map(lambda values: values[0], self.schedules)
        return Identity(
            given=given | of_data,
            schedules=jax.device_get(self.schedules),
            start=checksums("the first state", state),
            step=computation(step, state, key, batch, **self.numbers, **first),
        )


def plan_of(source: Source, begun: int, hyper: Metrics) -> Plan:
    """The plan of a run that begins after so many steps, with these hyper-parameters of `fit`."""
    functions = {name: h for name, h in hyper.items() if callable(h)}
    numbers = {name: h for name, h in hyper.items() if not callable(h)}
    for name, h in hyper.items():
        value = h(jnp.int32(begun)) if callable(h) else h
        if value is None or jax.tree.leaves(value):
            check_leaves("fit", f"{name}({begun})" if callable(h) else name, value)
    end = begun + (source.num_steps or FORESEEN)
    schedules = {name: at_steps(h, begun, end) for name, h in functions.items()}
    return Plan(source, begun, numbers, functions, schedules)


def source_of(
    data: Any,
    begun: int,
    epochs: int,
    batch_size: int | None,
    steps_per_epoch: int | None,
    size: int | None,
) -> Source:
    """What gives the batches of a run that begins at a step; arguments as `fit`'s."""
    batch_size = None if batch_size is None else int(batch_size)  # NumPy's is not JSON
    steps_per_epoch = None if steps_per_epoch is None else int(steps_per_epoch)
    if callable(data) and not gives_iterator(data) and not hasattr(data, "__iter__"):
        if steps_per_epoch is None:
            raise ValueError(
                "fit: data is a function, of a key, and has no end: steps_per_epoch is None, "
                "expected how many of its batches are an epoch"
            )
        batch = jax.eval_shape(data, jax.random.key(0))
        rows = number_of_rows(batch, "fit", "data(key)")
        if batch_size not in (None, rows):
            raise ValueError(
                f"fit: batch_size is {batch_size} and data returned {rows} rows, "
                "expected the same; leave batch_size out"
            )
        return Draws(data, begun, epochs, steps_per_epoch, size)
    if is_frame(data):
        raise TypeError(
            "fit: data is a data frame, expected arrays: nn.infer_table(frame).rows(frame), or "
            "frame.to_numpy(np.float32) of numbers alone"
        )
    if is_stream(data, batch_size):
        return Stream(data, begun, epochs, batch_size, steps_per_epoch, size)
    check_leaves("fit", "data", by_rows(compressed(data)))
    if batch_size is None or steps_per_epoch is not None:
        raise ValueError(
            f"fit: data are arrays, batch_size is {batch_size} and steps_per_epoch "
            f"{steps_per_epoch}, expected batch_size alone: an epoch is a pass over the rows"
        )
    return Rows(data, begun, epochs, batch_size, size)
