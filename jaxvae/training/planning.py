"""Which steps a call of `fit` makes, and what each of them is given."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxvae.batching import batch_size as size_of
from jaxvae.checks import Count, Key, Tree
from jaxvae.training.checkpoints.identity import Identity, checksums, computation
from jaxvae.training.schedules import at_steps
from jaxvae.training.steps import Metrics, Step, TrainState, epoch_order


class Call(NamedTuple):
    """What the steps of one call are given.

    Args:
      key: the run's.
      rows: of the data, [size, batch size].
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
    """The steps of a run, from `begun` to `end`, `size` a call.

    `numbers` are hyper-parameters that stay, `schedules` have values at every step, [end - begun].
    """

    num_examples: int
    batch_size: int
    size: int
    begun: int
    end: int
    numbers: dict[str, Any]
    schedules: dict[str, Any]

    @property
    def per_epoch(self) -> int:
        return max(self.num_examples // self.batch_size, 1)

    def at(self, key: Key, done: int) -> tuple[Call, int]:
        """The next call, and how many of its steps are made."""
        epoch, inside = divmod(done - self.begun, self.per_epoch)
        epoch += -(-self.begun // self.per_epoch)  # a shuffle that no step before has drawn from
        order = epoch_order(key, epoch, self.num_examples, self.batch_size)
        schedules = jax.tree.map(partial(self._from, done - self.begun), self.schedules)
        call = Call(key, self._from(inside, order), self.numbers, schedules)
        return call, min(self.size, len(order) - inside)

    def _from(self, start: int, values: Array) -> Any:
        """Those of a call that starts there; beyond the last is the last, never visited."""
        return values.at[jnp.arange(start, start + self.size)].get(mode="clip")

    def identity(self, step: Step, state: TrainState, key: Key, data: Tree) -> Identity:
        """What makes the run this run, apart from `Checkpoints.config`."""
        given = {"batch_size": self.batch_size, "rows": self.num_examples, "first step": self.begun}
        given |= {name: np.asarray(h).tolist() for name, h in self.numbers.items()}
        given |= dict.fromkeys(self.schedules, "a schedule")
        batch = jax.eval_shape(partial(jax.tree.map, lambda x: x[: self.batch_size]), data)
        first = jax.tree.map(lambda values: values[0], self.schedules)
        return Identity(
            given=given | checksums("data", data),
            schedules=jax.device_get(self.schedules),
            start=checksums("the first state", state),
            step=computation(step, state, key, batch, **self.numbers, **first),
        )


def plan_of(
    state: TrainState,
    key: Key,
    data: Tree,
    epochs: int,
    batch_size: Count,
    steps_per_call: int | None,
    hyper: Metrics,
) -> Plan:
    """The plan of a run of whole passes that begins with this state; arguments as `fit`'s."""
    num_examples, begun = size_of(data), int(state.step)
    per_epoch = max(num_examples // batch_size, 1)
    end = begun + epochs * per_epoch
    schedules = {n: at_steps(h, begun, end) for n, h in hyper.items() if callable(h)}
    numbers = {name: h for name, h in hyper.items() if not callable(h)}
    size = steps_per_call or per_epoch
    return Plan(num_examples, batch_size, size, begun, end, numbers, schedules)
