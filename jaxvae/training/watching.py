"""What looks at a run between its calls: callbacks, checkpoints, and who wants it to stop."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jax import Array

from jaxvae.training.checkpoints.identity import Identity
from jaxvae.training.checkpoints.resuming import Checkpoints
from jaxvae.training.checkpoints.store import Store
from jaxvae.training.nonfinite import NonFiniteError
from jaxvae.training.steps import Metrics, TrainState
from jaxvae.training.streams import Source

Callback = Callable[[TrainState, Metrics], Mapping[str, Any] | None]


class Watch:
    """What `fit` shows of a run and keeps of it: callbacks and checkpoints."""

    def __init__(
        self,
        callbacks: Iterable[Callback],
        checkpoints: Checkpoints | None,
        key: Array,
        source: Source,
    ):
        self.callbacks, self.source = tuple(callbacks), source
        self.store = None if checkpoints is None else Store(checkpoints, key, source)
        self.parts: list[Metrics] = []

    def __enter__(self) -> "Watch":
        if self.store is not None:
            self.store.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.source.close()
        if self.store is not None:
            self.store.__exit__(*error)

    @property
    def history(self) -> Metrics:
        """The metrics of every step so far."""
        if len(self.parts) > 1:
            self.parts[:] = [_joined(self.parts)]
        return self.parts[0] if self.parts else {}

    def restore(self, state: TrainState, identity: Callable[[], Identity]) -> TrainState:
        """Where the run goes on: this state, or that of the newest checkpoint."""
        if self.store is not None:
            state, metrics = self.store.restore(state, identity())
            self.parts += [metrics] if metrics else []
        return state

    def begin(self, state: TrainState) -> None:
        """Before the first step: callbacks are shown what was restored."""
        for callback in self.callbacks if self.parts else ():
            callback(state, self.history)
        if self.store is not None:
            self.store.begin(state)

    def look(self, state: TrainState, metrics: Metrics) -> TrainState:
        """After a call: callbacks, then a checkpoint where it is time to, then a stop if wanted."""
        for callback in self.callbacks:
            metrics |= _numbers(callback(state, metrics), metrics)
        self.parts.append(metrics)
        if self.store is not None:
            last = self.source.end is not None and int(state.step) >= self.source.end
            self.store.look(state, lambda: self.history, metrics, last=last)
        return state

    def lost(self, error: NonFiniteError, metrics: Metrics) -> NonFiniteError:
        """The error, which names where the state before it and the metrics up to it were saved."""
        if self.store is not None:
            self.parts += [metrics] if len(metrics["loss"]) else []
            path = self.store.save(error.state, self.history, np.inf)
            error.args = (f"{error}; the state before it is in {path}",)
        return error


def _joined(parts: list[Metrics]) -> Metrics:
    """Metrics of steps one after another, NaN where a number was not measured."""
    return {
        name: np.concatenate([m.get(name, np.full(len(m["loss"]), np.nan)) for m in parts])
        for name in dict.fromkeys(name for m in parts for name in m)
    }


def _numbers(found: Mapping[str, Any] | None, metrics: Metrics) -> Metrics:
    """What a callback returned, as metrics of the last step."""
    for name in found or {}:
        if name in metrics:
            raise ValueError(f"fit: a callback returned {name!r}, expected no name of a metric")
    before = np.full(len(metrics["loss"]) - 1, np.nan)
    return {name: np.append(before, float(value)) for name, value in (found or {}).items()}
