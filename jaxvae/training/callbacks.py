"""What looks at a run of `fit`: what a callback is; validation and early stopping.

A callback is a function of `(state, metrics, epoch, key)`, called after every call of the compiled
program: the state, the metrics of the steps since the last look, how many passes over the data were
made (whole ones, of a stream without a length), and a key of its own, which is the same when a
resumed run comes there again. The numbers that it returns by name become metrics. One with a memory
may have two methods more, `begin(run)` before the first step and `end(state)` after the last, which
may return another state for `fit` to return.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxvae.batching import batched, number_of_rows
from jaxvae.checks import Count, Key, check_leaves, checked, warn
from jaxvae.pytrees import on_host
from jaxvae.training.checkpoints.files import CheckpointError, save_checkpoint
from jaxvae.training.checkpoints.resuming import (
    BEST,
    checkpoint_files,
    checkpoint_of,
    load_checkpoint,
    step_of,
)
from jaxvae.training.nonfinite import not_finite_at
from jaxvae.training.objectives import check_hyper, means_of
from jaxvae.training.sparse import by_rows, compressed, part
from jaxvae.training.steps import Metrics, TrainState


def _check_data(owner: str, name: str, xs: object) -> None:
    check_leaves(owner, name, by_rows(xs))


Data = Annotated[Any, _check_data]
"""Rows: an array, a sparse matrix, or a pytree of them."""


class Callback(Protocol):
    """`(state, metrics, epoch, key) -> None`, or named numbers that become metrics."""

    def __call__(
        self, state: TrainState, metrics: Metrics, epoch: float, key: Array, /
    ) -> Mapping[str, Any] | None: ...


class Stop(Exception):
    """Raised by a callback to end a run as its last epoch would: saved, and returned by `fit`.

    >>> import optax
    >>> from jaxvae import fit, init_state, train_step
    >>> optimizer, xs = optax.sgd(0.1), jnp.ones(10)
    >>> step = train_step(lambda model, key, x: (-((x - model) ** 2), None), optimizer)
    >>> def enough(state, metrics, epoch, key):
    ...     if metrics["loss"][-1] < 0.5:
    ...         raise Stop
    >>> state = init_state(jnp.zeros(()), optimizer)
    >>> _, history = fit(
    ...     step, state, jax.random.key(0), xs, epochs=99, batch_size=10, callbacks=[enough]
    ... )
    >>> [round(float(loss), 2) for loss in history["loss"]]
    [1.0, 0.64, 0.41]
    """


class Run(NamedTuple):
    """What a callback with a `begin(run)` is told before the first step.

    Args:
      step: where it begins, or goes on.
      end: the last step; infinity of a stream whose length nobody knows.
      epochs: passes over the data, in all.
      folder: of its checkpoints; None where it keeps none.
    """

    step: int
    end: float
    epochs: float
    folder: Path | None


def is_due(every: int | None, step: int, num_steps: int) -> bool:
    """Whether one of the last `num_steps` steps is a multiple of `every`; None is at every look."""
    return every is None or step // every > (step - num_steps) // every


@checked
def validation(
    objective: Callable[..., tuple[Array, Any]],
    key: Key,
    xs: Data,
    *,
    every: Count | None = None,
    num_samples: Count = 1,
    batch_size: Count = 250,
    name: str = "validation",
) -> Callback:
    """A callback that measures an objective on rows held out, with the same noise at every look.

    It returns `validation_loss`, minus the mean bound in nats, and the means of the bound's terms,
    as `validation_rate`. The model is the one in use: its networks drop nothing out. Once it warns
    of a loss that is not finite, with the row and what is wrong with it.

    Args:
      objective: of one example, `(model, key, x) -> (bound, aux)`; bind hyper-parameters with
        `functools.partial`. One that compares the rows of a batch sees half of `batch_size` or
        more.
      key: of the noise.
      xs: the rows, which may be sparse, as those of `fit`.
      every: at the first look behind each multiple of so many steps; at every look by default.
      num_samples: how often each row is measured, under noise of its own.
      batch_size: rows at once, at most: they are cut into parts of equal size.

    Raises:
      TypeError: the objective needs a hyper-parameter that is not bound.

    >>> import optax
    >>> from jaxvae import elbo, fit, init_state, train_step
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> optimizer, xs = optax.adam(1e-2), jnp.ones((20, 3))
    >>> _, history = fit(
    ...     train_step(elbo, optimizer), init_state(model, optimizer), jax.random.key(0), xs[:12],
    ...     epochs=2, batch_size=4, callbacks=[validation(elbo, jax.random.key(1), xs[12:])],
    ... )
    >>> np.isnan(history["validation_loss"]).tolist()  # three steps an epoch
    [True, True, False, True, True, False]
    """
    check_hyper("validation", objective, ())
    xs = compressed(xs)
    rows = number_of_rows(by_rows(xs), "validation")
    # equal parts, or but one row smaller, so that an objective that compares rows has enough
    cuts = np.linspace(0, rows, -(-rows // batch_size) + 1).astype(int).tolist()
    spans = [*pairwise(cuts)]
    lifted, told = batched(objective), False

    @jax.jit
    def means(model: Any, key: Array, xs: Any) -> tuple[Array, Any]:
        def one(key: Array) -> tuple[Array, Any]:
            bound, aux = lifted(model, key, xs)
            return bound, means_of(aux)

        keys = jax.random.split(key, num_samples)
        return jax.tree.map(jnp.mean, jax.lax.map(one, keys))

    def first_bad_row(model: Any, start: int, xs: Any) -> str:
        for sample in jax.random.split(jax.random.fold_in(key, start), num_samples):
            keys = jax.random.split(sample, number_of_rows(xs))
            found = not_finite_at(lambda key, x: objective(model, key, x)[0], keys, xs)
            if found is not None:
                row, why = found
                return f"; first at row {start + row} of xs{why}"
        return ""

    def validate(state: TrainState, metrics: Metrics, epoch: float, _: Array) -> Metrics | None:
        del epoch
        if not is_due(every, int(state.step), len(metrics["loss"])):
            return None
        nonlocal told
        parts, weights = [], []
        for start, end in spans:
            batch = part(xs, start, end)
            parts.append(means(state.model, jax.random.fold_in(key, start), batch))
            weights.append(number_of_rows(batch) / rows)
        parts = on_host(parts)
        bound, terms = jax.tree.map(lambda *means: np.dot(weights, means), *parts)
        if not (told or np.isfinite(bound)):
            told = True
            start, end = spans[int(np.argmin(np.isfinite([part for part, _ in parts])))]
            batch = part(xs, start, end)
            why = first_bad_row(state.model, start, batch)
            warn(
                f"validation: {name}_loss is {-bound:g} at step {int(state.step)}{why}",
            )
        return {f"{name}_{term}": value for term, value in {**terms, "loss": -bound}.items()}

    return validate


@checked
def early_stopping(metric: str, *, patience: Count) -> Callback:
    """A callback that ends the run where a metric falls no more; `fit` returns the best state.

    That is the state of the lowest value, whether patience or the epochs came to an end. With
    checkpoints it lies in their folder as best.ckpt, so that a run that goes on knows it, and is
    what `best_checkpoint` and `nn.load_model` find.

    Args:
      metric: measured by a callback that stands before this one, as `validation_loss`.
      patience: how many measurements in a row may bring no lower value.

    >>> import optax
    >>> from jaxvae import fit, init_state, train_step
    >>> optimizer, xs = optax.sgd(0.1), jnp.ones(10)
    >>> step = train_step(lambda model, key, x: (-((x - model) ** 2), None), optimizer)
    >>> values = iter([3.0, 1.0, 2.0, 4.0, 0.0])
    >>> measure = lambda state, metrics, epoch, key: {"measured": next(values)}
    >>> state, history = fit(
    ...     step, init_state(jnp.zeros(()), optimizer), jax.random.key(0), xs, epochs=5,
    ...     batch_size=10, callbacks=[measure, early_stopping("measured", patience=2)],
    ... )
    >>> history["measured"].tolist(), int(state.step)  # the state of the second epoch
    ([3.0, 1.0, 2.0, 4.0], 2)
    """
    return _EarlyStopping(metric, patience)


class _EarlyStopping:
    def __init__(self, metric: str, patience: int):
        self.metric, self.patience = metric, patience

    def _forget(self) -> None:
        self.best, self.since, self.state = np.inf, 0, None
        self.measured = self.named = self.told = False

    def begin(self, run: Run) -> None:
        self._forget()
        self.run = run
        self.path = None if run.folder is None else run.folder / BEST
        # what a run of more epochs has saved is this one's too, and stays as it is
        files = [] if run.folder is None else checkpoint_files(run.folder)
        self.keeps = self.path is not None and not any(step_of(f) > run.end for f in files)

    def __call__(self, state: TrainState, metrics: Metrics, epoch: float, key: Array) -> None:
        del key
        self.named |= self.metric in metrics
        if epoch >= 1.0 and not (self.named or self.told):
            self.told = True
            warn(
                f"early_stopping: {self.metric!r} is not measured yet after an epoch, of "
                f"{', '.join(metrics)}; name a metric that a callback before this one returns, "
                "unless that measures less often",
            )
        values = metrics.get(self.metric, np.empty(0))
        if np.ndim(values) > 1:
            raise ValueError(
                f"early_stopping: metric {self.metric!r} has a number at each of "
                f"{np.shape(values)[1:]} points of a sweep, expected one; let each run to its end, "
                "or measure what is to end them all, as their mean, in a callback"
            )
        steps = int(state.step) - len(values) + 1 + np.flatnonzero(np.isfinite(values))
        values = values[np.isfinite(values)]
        if int(state.step) == self.run.step:  # gone on from there: all that was measured before
            return self._recall(state, values, steps)
        if len(values) > 1:
            raise ValueError(
                f"early_stopping: metric {self.metric!r} has a number at every step, expected one "
                "that a callback measures at a look, e.g. 'validation_loss' of validation(...)"
            )
        for value in values:
            self.measured = True
            if self._is_best(value):
                self.state = state
                if self.path is not None and self.keeps:
                    save_checkpoint(self.path, {"state": state})
        self._stop_if_done()

    def _is_best(self, value: float) -> bool:
        self.since = 0 if value < self.best else self.since + 1
        self.best = min(self.best, value)
        return self.since == 0

    def _stop_if_done(self) -> None:
        if self.since >= self.patience:
            raise Stop

    def _recall(self, state: TrainState, values: np.ndarray, steps: np.ndarray) -> None:
        if not len(values):
            return
        self.measured = True
        at = max(s for s, v in zip(steps, values, strict=True) if self._is_best(v))
        self.state = state if at == int(state.step) else self._kept(state, int(at))
        self._stop_if_done()

    def _kept(self, like: TrainState, step: int) -> TrainState | None:
        """The state of that step; None where a later one was better, which is made again."""
        why = "no folder was kept"
        for path in [] if self.path is None else [self.path, checkpoint_of(self.path.parent, step)]:
            try:
                found = load_checkpoint(path, like)
            except CheckpointError as error:
                why = why if path != self.path else str(error)
                continue
            if int(found.step) == step:
                return found
            if self.run.step < int(found.step) <= self.run.end:
                return None
            why = f"{path.name} is of step {int(found.step)}, of a run of another length"
        warn(
            f"early_stopping: the best state so far, of step {step}, is lost ({why}); the best of "
            "the steps to come will be returned",
        )
        self.best, self.since = np.inf, 0
        return None

    def end(self, state: TrainState) -> TrainState | None:
        ended = int(state.step) >= self.run.end
        if ended and not self.measured and not (self.told and not self.named):
            never = (
                "finite, so that the last state is returned"
                if self.named
                else "measured; name a metric that a callback before this one returns"
            )
            warn(f"early_stopping: {self.metric!r} was never {never}")
        return self.state
