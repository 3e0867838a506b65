"""Which steps a call of `fit` makes, and what each of them is given."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.training.schedules import at_steps
from jaxvae.training.steps import Metrics, TrainState, epoch_order


class Plan(NamedTuple):
    """The steps of a run.

    Args:
      num_examples: rows of data.
      batch_size: rows a batch.
      size: steps a call.
      begun: the first step.
      end: the step after the last.
      numbers: hyper-parameters that stay.
      schedules: those that change: their values at every step, leading axis [end - begun].
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

    def at(self, key: Array, done: int) -> tuple[Array, dict[str, Any], int]:
        """Rows and schedules of the steps of the next call, and how many of them are made."""
        epoch, inside = divmod(done - self.begun, self.per_epoch)
        epoch += -(-self.begun // self.per_epoch)  # a shuffle that no step before has drawn from
        order = epoch_order(key, epoch, self.num_examples, self.batch_size)
        schedules = jax.tree.map(partial(self._from, done - self.begun), self.schedules)
        return self._from(inside, order), schedules, min(self.size, len(order) - inside)

    def _from(self, start: int, values: Any) -> Any:
        """Those of a call that starts there; beyond the last is the last, never visited."""
        return values.at[jnp.arange(start, start + self.size)].get(mode="clip")

    def hyper(self, step: int) -> dict[str, Any]:
        """All hyper-parameters at one step."""
        return self.numbers | jax.tree.map(lambda v: v[step - self.begun], self.schedules)


def plan_of(
    state: TrainState,
    num_examples: int,
    epochs: int,
    batch_size: int,
    steps_per_call: int | None,
    hyper: Metrics,
) -> Plan:
    """The plan of a run of whole passes that begins with this state; arguments as `fit`'s."""
    begun, per_epoch = int(state.step), max(num_examples // batch_size, 1)
    end = begun + epochs * per_epoch
    schedules = {n: at_steps(h, begun, end) for n, h in hyper.items() if callable(h)}
    numbers = {name: h for name, h in hyper.items() if not callable(h)}
    size = steps_per_call or per_epoch
    return Plan(num_examples, batch_size, size, begun, end, numbers, schedules)
