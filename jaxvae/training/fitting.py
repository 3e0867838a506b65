"""`fit`: many steps as one program, looked at now and then, saved, stopped and gone on with."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvae.batching import batch_size as size_of
from jaxvae.checks import check_count, check_key
from jaxvae.training.checkpoints.identity import Identity, checksums, computation
from jaxvae.training.checkpoints.resuming import Checkpoints, Keeper
from jaxvae.training.checkpoints.stop_signals import Received, stop_signals
from jaxvae.training.devices import on_mesh
from jaxvae.training.nonfinite import NonFiniteError, all_finite, first_bad_row, what_went_wrong
from jaxvae.training.planning import Plan, plan_of
from jaxvae.training.schedules import warn_if_unfinished
from jaxvae.training.steps import Metrics, Step, TrainState, check_state

Callback = Callable[[TrainState, Metrics], Mapping[str, Any] | None]


def fit(
    step: Step,
    state: TrainState,
    key: Array,
    data: Any,
    *,
    epochs: int,
    batch_size: int,
    steps_per_call: int | None = None,
    callbacks: Iterable[Callback] = (),
    checkpoints: Checkpoints | None = None,
    mesh: Mesh | None = None,
    **hyper: Any,
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Train for some epochs; the same numbers as scanning `train_epoch`, with a look now and then.

    Each call of the compiled program makes `steps_per_call` steps on the device. After each call
    every callback gets `(state, metrics)`, metrics having one entry a step; to stop early, raise.
    Numbers that a callback returns by name, measured on other data for instance, become metrics of
    the last of these steps, NaN at the others.

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
      data: arrays whose leading axis is the example, uint8 as stored for instance. Where processes
        hold different rows, what `shard_rows` makes of them.
      epochs: how many passes over the data, the first begun with this call.
      batch_size: rows a batch, over all devices.
      steps_per_call: steps between looks; a whole epoch by default.
      callbacks: functions of (state, metrics), which return None or named numbers.
      checkpoints: where to save.
      mesh: the devices to share the work, of all processes.
      **hyper: hyper-parameters of the objective: numbers, or schedules of the step count. A
        schedule that still rises at the end of the run is warned of, but for a single epoch without
        checkpoints, which may be one turn of a loop.

    Returns:
      The last state, and the metrics of every step as NumPy arrays.

    Raises:
      TypeError: `state` is no `TrainState`, or `key` no PRNG key.
      ValueError: `epochs` or `batch_size` is out of range, the batch can't be split evenly, or a
        callback returns a number under the name of a metric.
      NonFiniteError: a loss or an update was no finite number. It names the step, where it can the
        row of the data and what is wrong with it, and has the state before it, which is saved;
        `skip_nonfinite` steps over such updates instead, until a whole epoch had no other.
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
    check_count("fit", "epochs", epochs)
    check_count("fit", "batch_size", batch_size)
    if steps_per_call is not None:
        check_count("fit", "steps_per_call", steps_per_call)
    check_state("fit", "state", state)
    check_key("fit", "key", key)
    callbacks = tuple(callbacks)
    plan = plan_of(state, size_of(data), epochs, batch_size, steps_per_call, hyper)
    if plan.begun == 0 and (epochs > 1 or checkpoints is not None):  # else a loop may go on
        for name, values in plan.schedules.items():
            warn_if_unfinished(name, hyper[name], values)
    history: list[Metrics] = []
    streak = 0  # of updates that were skipped

    def every_step() -> dict[str, np.ndarray]:
        if len(history) > 1:
            history[:] = [_joined(history)]
        return history[0] if history else {}

    with ExitStack() as stack:
        keeper, received = None, Received()
        if checkpoints is not None:
            keeper = stack.enter_context(Keeper(checkpoints, key, plan.end))
            identity = _identity(step, state, key, data, plan)
            if (found := keeper.restore(state, identity)) is not None:
                state, so_far = found
                history += [so_far] if so_far else []
            received = stack.enter_context(stop_signals())
        if mesh is None:
            data = jax.device_put(data)
        else:
            state, key, data = on_mesh(mesh, state, key, data, batch_size)
        layout = None if mesh is None else tuple(leaf.sharding for leaf in jax.tree.leaves(state))
        call = partial(_first_steps, step, mesh=mesh, layout=layout)
        for callback in callbacks if history else ():
            callback(state, every_step())
        if keeper is not None:
            keeper.begin(state)
        while (done := int(state.step)) < plan.end:
            rows, schedules, count = plan.at(key, done)
            arguments = (key, data, rows, plan.numbers, schedules)
            new, every, finite = call(state, _known(count, plan.size), *arguments)
            metrics = {name: m[:count] for name, m in jax.device_get(every).items()}
            bad = ~np.isfinite(metrics["loss"]) & ~metrics.get("skipped", np.array(False))
            if bad.any() or not finite:
                first = int(np.argmax(bad)) if bad.any() else count
                error = what_went_wrong(
                    step, partial(call, state), first, done, metrics, *arguments
                )
                if keeper is not None:
                    if good := error.step - done - 1:
                        history.append({name: m[:good] for name, m in metrics.items()})
                    path = keeper.save(error.state, every_step(), np.inf)
                    error.args = (f"{error}; the state before it is in {path}",)
                raise error
            state = new
            skipped = metrics.get("skipped", np.zeros(count))
            streak = streak + count if skipped.all() else int(np.argmin(skipped[::-1]))
            if streak >= plan.per_epoch:
                at = done + count - 1
                hyper = plan.hyper(at)
                why = first_bad_row(
                    step, state._replace(step=at), key, data, rows[count - 1], hyper
                )
                raise NonFiniteError(
                    f"step {at + 1}: none of the last {streak} updates was finite{why}",
                    step=at + 1,
                    state=state,
                    rows=rows[count - 1],
                )
            for callback in callbacks:
                metrics |= _numbers(callback(state, metrics), metrics)
            history.append(metrics)
            if keeper is not None:
                done = int(state.step) >= plan.end
                keeper.look(state, every_step, metrics, received, last=done)
    return state, every_step()


def _identity(step: Step, state: TrainState, key: Array, data: Any, plan: Plan) -> Identity:
    given = {"batch_size": plan.batch_size, "rows": plan.num_examples, "first step": plan.begun}
    given |= {name: np.asarray(h).tolist() for name, h in plan.numbers.items()}
    given |= dict.fromkeys(plan.schedules, "a schedule")
    batch = jax.eval_shape(partial(jax.tree.map, lambda x: x[: plan.batch_size]), data)
    return Identity(
        given=given | checksums("data", data),
        schedules=jax.device_get(plan.schedules),
        start=checksums("the first state", state),
        step=computation(step, state, key, batch, **plan.hyper(plan.begun)),
    )


def _known(count: int, length: int) -> int | None:
    """None, for all of them, where a loop's length should be a constant of its program.

    On a GPU the host asks the device before every turn of a loop whose length it does not know, and
    waits for the answer, so that no step is launched while another runs.
    """
    return None if count == length and jax.default_backend() != "cpu" else count


@partial(jax.jit, static_argnames=("step", "mesh", "layout"))
def _first_steps(
    step: Step,
    state: TrainState,
    count: Any,
    key: Array,
    data: Any,
    order: Array,
    numbers: Metrics,
    schedules: Metrics,
    *,
    mesh: Mesh | None,
    layout: Any,
) -> tuple[TrainState, Metrics, Array]:
    """The first `count` batches of `order`: traced, so that a short last call is the same program.

    All of them where `count` is None, which is another: see `_known`.

    Returns the state, the metrics, and whether that state is finite. The program is kept for as
    long as `step`, by which it is found, so that a second `fit` of it compiles nothing.
    """

    @jax.jit  # to be traced once for the shapes of the metrics and for the loop
    def one(i: Any, state: TrainState) -> tuple[TrainState, Metrics]:
        xs = jax.tree.map(lambda leaf: leaf[order[i]], data)
        if mesh is not None:
            split = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
            xs = jax.lax.with_sharding_constraint(xs, split)
        hyper = numbers | jax.tree.map(lambda values: values[i], schedules)
        state, metrics = jax.jit(step)(state, key, xs, **hyper)
        if mesh is not None:
            leaves, structure = jax.tree.flatten(state)
            state = structure.unflatten(map(jax.lax.with_sharding_constraint, leaves, layout))
        return state, metrics

    def body(i: Any, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, metrics = one(i, carry[0])
        return state, jax.tree.map(lambda every, m: every.at[i].set(m), carry[1], metrics)

    _, shapes = jax.eval_shape(one, jnp.int32(0), state)
    empty = jax.tree.map(lambda m: jnp.zeros((len(order), *m.shape), m.dtype), shapes)
    bound = len(order) if count is None else count
    state, metrics = jax.lax.fori_loop(0, bound, body, (state, empty))
    return state, metrics, all_finite(state)


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
