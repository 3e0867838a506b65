"""`fit`: many steps as one program, looked at now and then, saved, stopped and gone on with."""

from collections.abc import Callable, Iterable
from functools import partial
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jaxvae.checks import Count, Key, Tree, a_class_of, checked
from jaxvae.pytrees import on_host
from jaxvae.training.callbacks import Callback
from jaxvae.training.checkpoints.resuming import Checkpoints
from jaxvae.training.devices import AutoMesh, placed
from jaxvae.training.nonfinite import all_finite, diagnose
from jaxvae.training.objectives import check_spelling
from jaxvae.training.planning import Call, plan_of, source_of
from jaxvae.training.preprocessing import bytes_taken, warn_if_dark
from jaxvae.training.replaying import ReplayError, compare
from jaxvae.training.schedules import warn_if_unfinished
from jaxvae.training.sources import Rows
from jaxvae.training.steps import M, Metrics, Step, TrainState
from jaxvae.training.watching import Watch


@checked
def fit(
    step: Step,
    state: TrainState[M],
    key: Key,
    data: Any,
    *,
    epochs: Count,
    batch_size: Count | None = None,
    steps_per_epoch: Count | None = None,
    steps_per_call: Count | None = None,
    callbacks: Iterable[Callback] = (),
    checkpoints: Checkpoints | None = None,
    mesh: AutoMesh | None = None,
    replay: Count | None = None,
    progress: bool | None = None,
    **hyper: Any,
) -> tuple[TrainState[M], dict[str, np.ndarray]]:
    """Train for some epochs; the same numbers as scanning `train_epoch`, with a look now and then.

    Each call of the compiled program makes `steps_per_call` steps on the device. After each call
    every callback gets `(state, metrics, epoch, key)`: metrics with one entry a step, how many
    passes this run has made, and a key of its own, the same in a resumed run. Numbers or arrays
    that it returns by name become metrics of the last of these steps, NaN at the others; one that
    raises `training.Stop` ends the run as its last epoch would.

    With `checkpoints` the run survives: the same call, made again, goes on where the newest whole
    checkpoint stands and ends with the same numbers to the last bit. Callbacks then first see the
    state gone on from, with the metrics of every step so far. SIGINT and SIGTERM let the steps
    under way finish, save, and raise KeyboardInterrupt or SystemExit(143); a second one ends the
    process at once.

    With `mesh` each batch is split over the devices along the mesh's first axis, and the state is
    on every one of them. Noise is drawn for the whole batch, so that numbers agree with one
    device's but for rounding.

    Args:
      step: as `train_step` makes it; not jitted.
      state: where to start. It stays usable.
      key: the run's key.
      data: arrays whose leading axis is the example, uint8 as stored for instance, or sparse
        matrices of SciPy's, which become dense a batch at a time; where processes hold different
        rows, what `shard_rows` makes of them. Or what can be iterated: a list or a loader of
        batches, an iterator, a generator function; each process gives its own part. Or a function
        key -> batch.
      epochs: how many passes over the data, the first begun with this call.
      batch_size: rows a batch, over all devices; a stream and a function make their own.
      steps_per_epoch: batches an epoch of a function, or of a stream, which is then read on and on.
      steps_per_call: steps between looks; a whole epoch by default, or as much of one as has 32 MB
        of a stream's batches.
      callbacks: functions of (state, metrics, epoch, key), which return None or named numbers.
      checkpoints: where to save.
      mesh: the devices to share the work, of all processes.
      replay: of so many calls one is made twice and compared bit for bit, which finds a core that
        computes wrongly: 100 costs one percent.
      progress: whether to show a line; by default where standard error is a terminal, and in a
        notebook.
      **hyper: hyper-parameters of the objective: numbers, or schedules of the step count. A
        schedule that still rises at the end of the run is warned of, but for a single epoch without
        checkpoints, which may be one turn of a loop.

    Returns:
      The last state, or the best under `early_stopping`, and every step's metrics as NumPy arrays.

    Raises:
      TypeError: `state` is no `TrainState`, `key` no PRNG key, or a batch holds no numbers.
      ValueError: `epochs` or `batch_size` is out of range, missing or not what a stream gives, the
        batch can't be split evenly, a batch is not like the first, or a callback returns a number
        under the name of a metric.
      RuntimeError: a stream failed; it names the batch.
      NonFiniteError: a loss or an update was no finite number. It names the step, where it can the
        row of the data and what is wrong with it, and has the state before it, which is saved;
        `skip_nonfinite` steps over such updates instead, until a whole epoch had no other.
      ReplayError: steps made twice came out differently. It has the state before them, which is
        saved.
      CheckpointError: nothing can be saved, or what the folder holds is of another run.

    >>> from jaxvae import elbo, init_state, train_step
    >>> from jaxvae.models import ppca
    >>> import optax
    >>> optimizer = optax.adam(1e-2)
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> state, history = fit(
    ...     train_step(elbo, optimizer), init_state(model, optimizer), jax.random.key(0),
    ...     jnp.ones((20, 3)), epochs=3, batch_size=10,
    ... )
    >>> int(state.step), history["loss"].shape
    (6, (6,))
    """
    check_spelling("fit", step, hyper, signature(fit).parameters)
    begun = int(state.step)
    source = source_of(data, begun, epochs, batch_size, steps_per_epoch, steps_per_call)
    plan = plan_of(source, begun, hyper)
    if begun == 0 and source.num_steps and (epochs > 1 or checkpoints is not None):
        for name, values in plan.schedules.items():  # of a single epoch, a loop may go on
            warn_if_unfinished(name, hyper[name], values)
    watched = Watch(callbacks, checkpoints, key, begun, source, progress)
    with bytes_taken() as taken, watched as watch:
        state = watch.restore(state, partial(plan.identity, step, state, key))
        state, key = placed(mesh, (state, key))
        source.begin(mesh)
        layout = None if mesh is None else tuple(leaf.sharding for leaf in jax.tree.leaves(state))
        watch.begin(state)
        while (found := plan.at(key, done := int(state.step))) is not None:
            data, call, count = found
            given = partial(source.draw, data, key, call.rows)
            run = partial(_first_steps, step, data=data, draw=source.draw, mesh=mesh, layout=layout)
            new, every, finite = run(state, _known(count, source.size), call)
            if taken and jax.process_count() == 1:
                taken.clear()  # once
                warn_if_dark("fit", (data, given(0)))
            source.fetch(done + count)  # on their way while these steps are made
            if replay is not None and done // source.size % replay == 0:
                try:
                    compare(state, (new, every), run(state, _known(count, source.size), call)[:2])
                except ReplayError as error:
                    raise watch.lost(error, {}) from None
            metrics = {name: m[:count] for name, m in on_host(every).items()}
            _check_steps(done, int(new.step), count)
            history, patience = [*watch.parts, metrics], source.per_epoch or source.size
            error = diagnose(step, run, (state, new), given, call, history, finite, patience)
            if error is not None:
                good = error.step - done - 1
                raise watch.lost(error, {name: m[:good] for name, m in metrics.items()})
            state = watch.look(new, metrics)
    return watch.state, watch.history


def _known(count: int, length: int) -> int | None:
    """None, for all of them, where a loop's length should be a constant of its program."""
    # on a GPU the host asks the device before every turn of a loop of unknown length, and waits
    return None if count == length and jax.default_backend() != "cpu" else count


def _check_steps(begun: int, now: int, count: int) -> None:
    """Raise ValueError unless each of `count` calls of the step added one to the state's count."""
    if now != begun + count:
        raise ValueError(
            f"fit: step moved state.step from {begun} to {now} in {count} calls, expected one a "
            "call; let it return state._replace(step=...) with the step it was given plus 1"
        )


def _made(found: Any) -> tuple[TrainState, Metrics]:
    """What a step returned; TypeError where it is not a state and named metrics with a loss."""
    expected = "expected (state, metrics), the metrics a dict with a loss, as train_step's are"
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
        raise TypeError(f"fit: step returned {a_class_of(found)}, {expected}")
    if "loss" not in found[1]:
        raise TypeError(f"fit: step returned metrics without a loss, {expected}")
    return found


@partial(jax.jit, static_argnames=("step", "draw", "mesh", "layout"))
def _first_steps(
    step: Step,
    state: TrainState,
    count: Any,
    call: Call,
    *,
    data: Tree,
    draw: Callable[..., Any] = Rows.draw,
    mesh: Any,
    layout: Any,
) -> tuple[TrainState, Metrics, Array]:
    """State, metrics and whether that is finite, after `count` steps of a call, None for all.

    Traced, so that a short last call is the same program, which is kept for as long as `step`.
    """

    @jax.jit  # to be traced once for the shapes of the metrics and for the loop
    def one(i: Any, state: TrainState) -> tuple[TrainState, Metrics]:
        xs = draw(data, call.key, call.rows, i)
        if mesh is not None:
            split = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
            xs = jax.lax.with_sharding_constraint(xs, split)
        state, metrics = _made(jax.jit(step)(state, call.key, xs, **call.hyper(i)))
        if mesh is not None:
            leaves, structure = jax.tree.flatten(state)
            state = structure.unflatten(map(jax.lax.with_sharding_constraint, leaves, layout))
        return state, metrics

    def body(i: Any, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, metrics = one(i, carry[0])
        return state, jax.tree.map(lambda every, m: every.at[i].set(m), carry[1], metrics)

    size = len(call.rows)
    _, shapes = jax.eval_shape(one, jnp.int32(0), state)
    empty = jax.tree.map(lambda m: jnp.zeros((size, *m.shape), m.dtype), shapes)
    bound = size if count is None else count
    state, metrics = jax.lax.fori_loop(0, bound, body, (state, empty))
    return state, metrics, all_finite(state)
