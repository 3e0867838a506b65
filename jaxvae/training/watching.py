"""What looks at a run between its calls: callbacks, checkpoints, and who wants it to stop."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array

from jaxvae.checks import a_class_of, check_array, check_function
from jaxvae.training.callbacks import Callback, Run, Stop
from jaxvae.training.checkpoints.identity import Identity
from jaxvae.training.checkpoints.resuming import Checkpoints
from jaxvae.training.checkpoints.store import Store
from jaxvae.training.monitoring import CollapseWarning
from jaxvae.training.nonfinite import NonFiniteError
from jaxvae.training.replaying import ReplayError
from jaxvae.training.showing import Progress, someone_looks
from jaxvae.training.sources import Source
from jaxvae.training.steps import Metrics, TrainState

E = TypeVar("E", NonFiniteError, ReplayError)
LOOKS = np.uint32(2**32 - 1)  # folded into the run's key; steps and shuffles fold in less


class Watch:
    """What `fit` shows of a run and keeps of it: callbacks and checkpoints.

    Args:
      callbacks: of the run.
      checkpoints: where to save.
      key: the run's.
      begun: its first step.
      source: of its batches.
      progress: whether to show a line; None is where someone looks.
    """

    def __init__(
        self,
        callbacks: Iterable[Callback],
        checkpoints: Checkpoints | None,
        key: Array,
        begun: int,
        source: Source,
        progress: bool | None = None,
    ):
        self.callbacks = _functions(callbacks)
        if progress is None:
            shown = any(isinstance(callback, Progress) for callback in self.callbacks)
            progress = jax.process_index() == 0 and someone_looks() and not shown
        self.callbacks += [Progress(), CollapseWarning()] if progress else [CollapseWarning()]
        self.key, self.begun, self.source = key, begun, source
        self.store = None if checkpoints is None else Store(checkpoints, key, source)
        self.folder = None if checkpoints is None else Path(checkpoints.folder)
        self.shown: list[Any] = []  # the callbacks that were begun
        self.parts: list[Metrics] = []
        self.shapes: dict[str, tuple[int, ...]] = {}  # of each metric at a step

    def __enter__(self) -> "Watch":
        if self.store is not None:
            self.store.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        stopped = isinstance(error, Stop)

        def finish(end: Callable[[TrainState], Any]) -> None:
            found = end(self.state)
            if found is not None and (stopped or error is None):
                self.state = found

        with ExitStack() as stack:  # all of it, whatever fails, from the last line up
            if self.store is not None:
                stack.callback(self.store.__exit__, kind, error, trace)
            stack.callback(self.source.close)
            for callback in reversed(self.shown):
                if hasattr(callback, "end"):
                    stack.callback(finish, callback.end)
        return stopped

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
            self.shapes |= {name: np.shape(values)[1:] for name, values in metrics.items()}
        return state

    def begin(self, state: TrainState) -> None:
        """Before the first step: callbacks are shown what was restored."""
        end = np.inf if self.source.num_steps is None else self.begun + self.source.num_steps
        run = Run(int(state.step), end, float(self.source.epochs), self.folder)
        self.state = state
        for callback in self.callbacks:
            if (begin := getattr(callback, "begin", None)) is not None:
                begin(run)
            self.shown.append(callback)
        stop = self._call(state, dict(self.history), keep=False) if self.parts else None
        if self.store is not None:
            self.store.begin(state)
        if stop is not None:
            raise stop

    def look(self, state: TrainState, metrics: Metrics) -> TrainState:
        """After a call: callbacks, then a checkpoint where it is time to, then a stop if wanted."""
        self.state = state
        stop = self._call(state, metrics, keep=True)
        self._check_shapes(metrics)
        self.parts.append(metrics)
        if self.store is not None:
            end = self.source.end
            last = stop is not None or (end is not None and int(state.step) >= end)
            self.store.look(state, lambda: self.history, metrics, last=last)
        if stop is not None:
            raise stop
        return state

    def _check_shapes(self, metrics: Metrics) -> None:
        """ValueError where an array of a callback has another shape than it had before."""
        for name, values in metrics.items():
            now = np.shape(values)[1:]
            if (before := self.shapes.setdefault(name, now)) != now:
                raise ValueError(
                    f"fit: {name!r} of a callback has shape {now} at step {int(self.state.step)}, "
                    f"expected {before}, as it was measured before"
                )

    def _call(self, state: TrainState, metrics: Metrics, *, keep: bool) -> Stop | None:
        """Every callback; what it returns is kept in the metrics, for those behind it too."""
        step = int(state.step)
        epoch = self.source.epoch(step)
        stop = None
        for callback, key in zip(self.callbacks, self._keys(step), strict=False):
            try:
                found = callback(state, metrics, epoch, key)
            except Stop as error:
                stop = error
            else:
                metrics |= _numbers(found, metrics) if keep else {}
        return stop

    def _keys(self, step: int) -> Iterator[Array]:
        """A key for each callback of the look at that step."""
        key = jax.random.fold_in(jax.random.fold_in(self.key, LOOKS), step)
        return (jax.random.fold_in(key, i) for i in count())

    def lost(self, error: E, metrics: Metrics) -> E:
        """The error, which names where the state before it and the metrics up to it were saved."""
        if self.store is not None:
            self.parts += [metrics] if metrics and len(metrics["loss"]) else []
            path = self.store.save(error.state, self.history, np.inf)
            error.args = (f"{error}; the state before it is in {path}",)
        return error


def _functions(callbacks: Iterable[Callback]) -> list[Callback]:
    """The callbacks; TypeError where one can't be called."""
    if not isinstance(callbacks, Iterable):
        raise TypeError(
            f"fit: callbacks is {a_class_of(callbacks)}, expected functions, such as [callback]"
        )
    callbacks = list(callbacks)
    for i, callback in enumerate(callbacks):
        check_function("fit", f"callbacks[{i}]", callback)
    return callbacks


def _joined(parts: list[Metrics]) -> Metrics:
    """Metrics of steps one after another, NaN where a number was not measured."""
    shapes = {name: np.shape(m[name])[1:] for m in parts for name in m}
    return {
        name: np.concatenate(
            [m[name] if name in m else np.full((len(m["loss"]), *shape), np.nan) for m in parts]
        )
        for name, shape in shapes.items()
    }


def _numbers(found: Mapping[str, Any] | None, metrics: Metrics) -> Metrics:
    """What a callback returned, as metrics of the last step."""
    if not isinstance(found, Mapping | None):
        raise TypeError(
            f"fit: a callback returned {a_class_of(found)}, expected None, or numbers by name, "
            "such as {'norm': 1.0}"
        )
    numbers = {}
    for name, value in (found or {}).items():
        check_array("fit", f"{name!r} of a callback", value)
        if name in metrics:
            raise ValueError(f"fit: a callback returned {name!r}, expected no name of a metric")
        value = np.asarray(value, np.float64)[None]
        before = np.full((len(metrics["loss"]) - 1, *value.shape[1:]), np.nan)
        numbers[name] = np.concatenate([before, value])
    return numbers
