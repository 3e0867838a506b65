"""`fit`: many steps as one program, looked at now and then, saved, stopped and gone on with."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvae.bounds import batch_size as size_of
from jaxvae.checkpoints import paths
from jaxvae.checks import check_key, check_positive
from jaxvae.devices import on_mesh
from jaxvae.nonfinite import NonFinite, all_finite
from jaxvae.resuming import Checkpoints, Keeper
from jaxvae.schedules import warn_if_unfinished
from jaxvae.stop_signals import Received, stop_signals
from jaxvae.training import Metrics, Step, TrainState, check_state, epoch_order

Array = jax.Array


def fit(
    step: Step,
    state: TrainState,
    key: Array,
    data: Any,
    *,
    epochs: int,
    batch_size: int,
    steps_per_call: int | None = None,
    callbacks: Iterable[Callable[[TrainState, Metrics], None]] = (),
    checkpoints: Checkpoints | None = None,
    mesh: Mesh | None = None,
    **hyper: Any,
) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Train for some epochs; the same numbers as scanning `train_epoch`, with a look now and then.

    Each call of the compiled program makes `steps_per_call` steps on the device. After each call
    every callback gets `(state, metrics)`, metrics having one entry a step; to stop early, raise.

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
      epochs: how many passes.
      batch_size: rows a batch, over all devices.
      steps_per_call: steps between looks; a whole epoch by default.
      callbacks: functions of (state, metrics).
      checkpoints: where to save.
      mesh: the devices to share the work, of all processes.
      **hyper: hyper-parameters of the objective: numbers, or schedules of the step count. A
        schedule that the run is too short for is warned of.

    Returns:
      The last state, and the metrics of every step as NumPy arrays.

    Raises:
      TypeError: `state` is no `TrainState`, or `key` no PRNG key.
      ValueError: `epochs` or `batch_size` is out of range, or the batch can't be split evenly.
      NonFinite: a loss or an update was no finite number. It names the step and has the state
        before it, which is saved; `skip_nonfinite` steps over such updates instead, until a whole
        epoch had no other.
      CheckpointError: nothing can be saved, or what the folder holds is of another run.

    >>> from jaxvae import elbo, init_state, ppca, train_step
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
    check_positive("fit", "epochs", epochs)
    check_positive("fit", "batch_size", batch_size)
    if steps_per_call is not None:
        check_positive("fit", "steps_per_call", steps_per_call)
    check_state("fit", state)
    check_key("fit", key)
    num_examples = size_of(data)
    callbacks = tuple(callbacks)
    schedules: dict[str, Any] = {name: h for name, h in hyper.items() if callable(h)}
    numbers = {name: h for name, h in hyper.items() if not callable(h)}
    step = partial(step, **schedules) if schedules else step
    per_epoch = max(num_examples // batch_size, 1)
    begun = int(state.step)
    end = (begun // per_epoch + epochs) * per_epoch
    for name, schedule in schedules.items():
        warn_if_unfinished(name, schedule, begun, end)

    history: list[Metrics] = []
    streak = 0  # of updates that were skipped
    keeper = None
    if checkpoints is not None:
        run = {"batch_size": batch_size, "rows": num_examples, "begun": begun}
        run |= {name: np.asarray(h).tolist() for name, h in numbers.items()}
        run |= {name: [float(h(10**k)) for k in range(7)] for name, h in schedules.items()}
        keeper = Keeper(checkpoints, key, run)
        if (found := keeper.restore(state)) is not None:
            state, so_far = found
            history += [so_far] if so_far else []
    if mesh is None:
        data = jax.device_put(data)
    else:
        state, key, data = on_mesh(mesh, state, key, data, batch_size)
    layout = None if mesh is None else tuple(leaf.sharding for leaf in jax.tree.leaves(state))
    call = partial(_first_steps, step, mesh=mesh, layout=layout)

    def every_step() -> dict[str, np.ndarray]:
        if len(history) > 1:
            history[:] = [{n: np.concatenate([h[n] for h in history]) for n in history[0]}]
        return history[0] if history else {}

    with nullcontext(Received()) if keeper is None else stop_signals() as received:
        for callback in callbacks if history else ():
            callback(state, every_step())
        if keeper is not None:
            # at once, so that a folder or a disk that won't do is known before the work is done
            keeper.look(state, every_step, every_step(), received, last=True)
        while (done := int(state.step)) < end:
            index, inside = divmod(done, per_epoch)
            order = epoch_order(key, index, num_examples, batch_size)
            size = steps_per_call or len(order)
            # beyond the last is the last, never visited
            rows = order.at[jnp.arange(inside, inside + size)].get(mode="clip")
            count = min(size, len(order) - inside)
            arguments = (key, data, rows, numbers)
            new, every, finite = call(state, _known(count, size), *arguments)
            metrics = {name: m[:count] for name, m in jax.device_get(every).items()}
            bad = ~np.isfinite(metrics["loss"]) & ~metrics.get("skipped", np.array(False))
            if bad.any() or not finite:
                first = int(np.argmax(bad)) if bad.any() else count
                error = _what_went_wrong(partial(call, state), first, done, metrics, *arguments)
                if keeper is not None:
                    if good := error.step - done - 1:
                        history.append({name: m[:good] for name, m in metrics.items()})
                    path = keeper.save(error.state, every_step(), np.inf)
                    error.args = (f"{error}; the state before it is in {path}",)
                raise error
            state = new
            history.append(metrics)
            skipped = metrics.get("skipped", np.zeros(count))
            streak = streak + count if skipped.all() else int(np.argmin(skipped[::-1]))
            if streak >= per_epoch:
                raise NonFinite(
                    f"step {int(state.step)}: none of the last {streak} updates was finite",
                    step=int(state.step),
                    state=state,
                    rows=rows[count - 1],
                )
            for callback in callbacks:
                callback(state, metrics)
            if keeper is not None:
                last = int(state.step) >= end
                keeper.look(state, every_step, metrics, received, last=last)
    return state, every_step()


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
    hyper: Metrics,
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
    def one(rows: Array, state: TrainState) -> tuple[TrainState, Metrics]:
        xs = jax.tree.map(lambda leaf: leaf[rows], data)
        if mesh is not None:
            split = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
            xs = jax.lax.with_sharding_constraint(xs, split)
        state, metrics = step(state, key, xs, **hyper)
        if mesh is not None:
            leaves, structure = jax.tree.flatten(state)
            state = structure.unflatten(map(jax.lax.with_sharding_constraint, leaves, layout))
        return state, metrics

    def body(i: Any, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, metrics = one(order[i], carry[0])
        return state, jax.tree.map(lambda every, m: every.at[i].set(m), carry[1], metrics)

    _, shapes = jax.eval_shape(one, order[0], state)
    empty = jax.tree.map(lambda m: jnp.zeros((len(order), *m.shape), m.dtype), shapes)
    bound = len(order) if count is None else count
    state, metrics = jax.lax.fori_loop(0, bound, body, (state, empty))
    return state, metrics, all_finite(state)


def _what_went_wrong(
    replay: Callable[..., Any], first: int, done: int, metrics: Metrics, *arguments: Any
) -> NonFinite:
    """The error for the first step that went wrong, found by making the good ones again.

    Args:
      replay: (how many steps, *arguments) -> (state, metrics, whether the state is finite).
      first: how many steps come before the first loss that is not finite.
      done: how many steps were made before these.
      metrics: of the steps.
      *arguments: key, data, rows and hyper-parameters.
    """

    def run(count: int) -> tuple[TrainState, Metrics, Array]:
        return replay(count, *arguments)

    good, spoiled = (first, first + 1) if run(first)[2] else (0, first)
    while spoiled - good > 1:  # finite after `good` steps, not so after `spoiled`
        middle = (good + spoiled) // 2
        good, spoiled = (middle, spoiled) if run(middle)[2] else (good, middle)
    before = run(good)[0]
    if begins := _not_finite(before):
        culprit = f"the state it begins with, at {begins[0]},"
    elif good == first:
        culprit = " and ".join(n for n, m in metrics.items() if not np.all(np.isfinite(m[good])))
    else:
        culprit = f"the update of {_not_finite(run(spoiled)[0])[0]}"
    numbers = ", ".join(f"{name} {float(np.mean(m[good])):g}" for name, m in metrics.items())
    return NonFinite(
        f"step {done + good + 1}: {culprit} not finite ({numbers})",
        step=done + good + 1,
        state=before,
        rows=arguments[2][good],
    )


def _not_finite(tree: Any) -> list[str]:
    return [path for path, leaf in paths(tree).items() if not all_finite(leaf)]
