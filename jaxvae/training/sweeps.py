"""A sweep: one run at every point of a grid of seeds and hyper-parameters, as one program."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from jaxvae.checks import Count, Key, Tree, check_instance, checked
from jaxvae.pytrees import is_key
from jaxvae.training.callbacks import Callback
from jaxvae.training.checkpoints.files import (
    CheckpointError,
    CorruptCheckpointError,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from jaxvae.training.checkpoints.identity import Identity, checksums, computation
from jaxvae.training.devices import AutoMesh
from jaxvae.training.steps import Metrics, Step, TrainState

Grid = Annotated[Mapping[str, Any], partial(check_instance, of=Mapping, expected="name -> values")]


class Sweep(NamedTuple):
    """What a sweep found.

    Args:
      axes: name -> the values swept, in the order of the results' leading axes.
      results: what `run` returned, each leaf stacked to [len(axis 1), len(axis 2), ..., ...].
      at_once: how many points were vmapped together; with 1 they ran one after another.
    """

    axes: dict[str, Array]
    results: Any
    at_once: int


@checked
def sweep(
    run: Callable[..., Any],
    grid: Grid,
    *,
    at_once: Count | None = None,
    mesh: AutoMesh | None = None,
    folder: str | Path | None = None,
    **fixed: Any,
) -> Sweep:
    """Call `run` at every point of a grid: seeds, betas, learning rates, whatever is traced.

    One program is compiled, whatever the size of the grid, and a second sweep of the same `run`
    over as many values compiles nothing (but that `points_at_once` on an accelerator compiles one
    point to learn its memory, each time). Points run in chunks of `at_once`, each chunk vmapped, so
    that memory is that of `at_once` runs and of all results.

    Args:
      run: pure, called with keywords: `run(**point, **fixed) -> pytree of arrays`.
      grid: name -> values, their leading axis swept: keys, numbers or arrays.
      at_once: points to vmap together, on each device; by default `points_at_once` decides.
      mesh: devices that share the points, along its first axis; no point knows of another.
      folder: where every chunk is saved as soon as it is known, so that the same call, made again
        after whatever has ended it, goes on with the next.
      **fixed: arguments that are the same at every point. Data belong here: an array that `run`
        merely closes over is compiled into the program as a constant.

    Raises:
      TypeError: `run` must know a value of the grid while it is compiled, as a number of samples;
        the line names it.
      CheckpointError: the folder can't be written, or holds a sweep of other points, other fixed
        arguments or another `run`; the message names the first difference.

    >>> import optax
    >>> from jaxvae import elbo, init_state, train_epoch, train_step
    >>> from jaxvae.models import ppca
    >>> def run(key, beta, learning_rate, data):
    ...     model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    ...     optimizer = optax.adam(learning_rate)
    ...     epoch = train_epoch(train_step(elbo, optimizer), batch_size=10)
    ...     state, metrics = epoch(init_state(model, optimizer), key, data, beta=beta)
    ...     return metrics["loss"]
    >>> found = sweep(
    ...     run,
    ...     {
    ...         "key": jax.random.split(jax.random.key(0), 4),
    ...         "beta": [0.5, 1.0],
    ...         "learning_rate": [1e-3, 1e-2, 1e-1],
    ...     },
    ...     data=jnp.ones((20, 3)),
    ... )
    >>> list(found.axes), found.results.shape  # the last axis: steps
    (['key', 'beta', 'learning_rate'], (4, 2, 3, 2))
    """
    axes, points = _axes_and_points("sweep", grid)
    for name in axes:
        if name in fixed:
            raise ValueError(f"sweep: {name!r} is in the grid and fixed, expected it in one")
    sizes = tuple(len(values) for values in axes.values())
    devices = 1 if mesh is None else mesh.shape[mesh.axis_names[0]]
    with _names_what_is_static("sweep", run, axes, fixed):
        if at_once is None:
            point = jax.eval_shape(lambda: {name: v[0] for name, v in axes.items()})
            at_once = points_at_once(run, point | fixed, -(-prod(sizes) // devices))
        call = partial(_at_points, run, at_once=at_once, mesh=mesh)
        if folder is None:
            every = call(points, fixed)
        else:
            every = _chunk_by_chunk(run, call, points, fixed, Path(folder), at_once * devices)
    every = jax.tree.map(lambda leaf: leaf.reshape(*sizes, *leaf.shape[1:]), every)
    return Sweep(axes, every, at_once)


def _axis(owner: str, name: str, values: Any) -> Array:
    try:
        return jnp.asarray(values)
    except (TypeError, ValueError):
        raise TypeError(
            f"{owner}: grid[{name!r}] is {values!r}, expected numbers or keys, which the program "
            "is given; over what it is made of, loop in Python, a sweep each"
        ) from None


def _axes_and_points(owner: str, grid: Grid) -> tuple[dict[str, Array], dict[str, Array]]:
    """The values of each axis, and those of all points, in the order of the axes."""
    axes = {name: _axis(owner, name, values) for name, values in grid.items()}
    if not axes:
        raise ValueError(f"{owner}: grid is empty, expected at least one name and its values")
    for name, values in axes.items():
        if not values.ndim or not len(values):
            raise ValueError(
                f"{owner}: grid[{name!r}] has shape {values.shape}, expected a leading axis of "
                "at least one value; pass what is the same at every point as a keyword"
            )
    sizes = tuple(len(values) for values in axes.values())
    index = jnp.unravel_index(jnp.arange(prod(sizes)), sizes)
    return axes, {name: v[i] for (name, v), i in zip(axes.items(), index, strict=True)}


@contextmanager
def _names_what_is_static(
    owner: str, run: Callable[..., Any], axes: dict[str, Array], fixed: dict[str, Any]
) -> Iterator[None]:
    """Where `run` can't be traced, a line with the names of the grid whose values it must know."""
    try:
        yield
    except (TypeError, ValueError, IndexError) as error:
        point = {name: v[0] if is_key(v) or v.ndim > 1 else v[0].item() for name, v in axes.items()}

        def can_trace(*names: str) -> bool:
            known = {name: v for name, v in point.items() if name not in names}
            try:
                jax.eval_shape(partial(run, **known), **{n: axes[n][0] for n in names}, **fixed)
            except Exception:
                return False
            return True

        static = [name for name in axes if not can_trace(name)]
        if not static or not can_trace():
            raise
        raise TypeError(
            f"{owner}: grid has {' and '.join(map(repr, static))}, which run must know while it is "
            "compiled, as a number that fixes a shape, or a choice; expected what it computes "
            "with; loop over it in Python, a sweep each"
        ) from error


class Points(NamedTuple):
    """What a sweep under `fit` has in its optimiser's state.

    Args:
      values: name -> the value at each point, [*sizes, ...]; of keys their data.
      opt_state: the optimiser's, leaves [*sizes, ...].
    """

    values: dict[str, Array]
    opt_state: Any


@checked
def sweep_step(
    make: Callable[..., tuple[Step, TrainState]], grid: Grid, *, at_once: Count | None = None
) -> tuple[Step, TrainState[Any]]:
    """A sweep for `fit`: one step of the runs at all points of a grid, and the state they begin in.

    `fit(*sweep_step(make, grid), key, data, ...)` takes all that it takes for one run: callbacks,
    checkpoints, a line of progress, devices. The model's leaves are [len(axis 1), len(axis 2), ...,
    ...], metrics [steps, len(axis 1), ...]. All points see the same batches; point i, in the order
    of the axes, draws from `fold_in(key, i)`, so that no point depends on those behind it.

    Args:
      make: `make(**point) -> (step, state)`, pure: as `train_step` and `init_state` make them, with
        `functools.partial` for hyper-parameters.
      grid: name -> values, their leading axis swept: keys, numbers or arrays.
      at_once: points to vmap together; all by default.

    >>> import optax
    >>> from jaxvae import elbo, fit, init_state, train_step
    >>> from jaxvae.models import ppca
    >>> def make(key, beta, learning_rate):
    ...     weight = jax.random.normal(key, (3, 1))
    ...     model = ppca.as_vae(ppca.PPCA(weight, jnp.zeros(3), jnp.array(0.5)))
    ...     optimizer = optax.adam(learning_rate)
    ...     return partial(train_step(elbo, optimizer), beta=beta), init_state(model, optimizer)
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> step, state = sweep_step(
    ...     make, {"key": keys, "beta": [0.5, 1.0, 4.0], "learning_rate": [1e-3, 1e-2]}
    ... )
    >>> _, history = fit(step, state, jax.random.key(1), jnp.ones((20, 3)), epochs=2, batch_size=10)
    >>> history["loss"].shape  # steps, then the axes
    (4, 2, 3, 2)
    """
    axes, points = _axes_and_points("sweep_step", grid)
    sizes = tuple(len(values) for values in axes.values())
    flat = partial(jax.tree.map, lambda leaf: leaf.reshape(-1, *leaf.shape[len(sizes) :]))
    shaped = partial(jax.tree.map, lambda leaf: leaf.reshape(*sizes, *leaf.shape[1:]))

    def at_each(one: Callable[..., Any], *rows: Any) -> Any:
        def call(row: Any) -> Any:
            return one(*row)

        return (
            jax.vmap(call)(rows) if at_once is None else jax.lax.map(call, rows, batch_size=at_once)
        )

    impls = {name: jax.random.key_impl(v) for name, v in points.items() if is_key(v)}
    points = {n: jax.random.key_data(v) if n in impls else v for n, v in points.items()}

    def with_keys(point: dict[str, Array]) -> dict[str, Array]:
        keys = {n: jax.random.wrap_key_data(point[n], impl=impl) for n, impl in impls.items()}
        return point | keys

    def begin(point: dict[str, Array]) -> tuple[Any, Any]:
        state = make(**with_keys(point))[1]
        return state.model, state.opt_state

    @checked
    def step(state: TrainState, key: Key, xs: Tree, **hyper: Any) -> tuple[TrainState, Metrics]:
        def one(i: Array, point: Any, model: Any, opt_state: Any) -> Any:
            of_point = TrainState(model, opt_state, state.step)
            new, metrics = make(**with_keys(point))[0](
                of_point, jax.random.fold_in(key, i), xs, **hyper
            )
            return new.model, new.opt_state, metrics

        values, opt_states = flat(state.opt_state)
        number = jnp.arange(prod(sizes))
        found = shaped(at_each(one, number, values, flat(state.model), opt_states))
        return TrainState(
            found[0], Points(state.opt_state.values, found[1]), state.step + 1
        ), found[2]

    def at_point(state: TrainState, key: Key, at: tuple[int, ...]) -> tuple[Step, TrainState, Key]:
        """Step, state and key of one point alone."""
        of_point = {name: jnp.asarray(v)[at] for name, v in state.opt_state.values.items()}
        model, opt_state = jax.tree.map(
            lambda leaf: leaf[at], (state.model, state.opt_state.opt_state)
        )
        one = TrainState(model, opt_state, state.step)
        i = int(np.ravel_multi_index(at, sizes))
        return make(**with_keys(of_point))[0], one, jax.random.fold_in(key, i)

    vars(step)["at_point"] = at_point  # for who explains a loss that is not finite
    with _names_what_is_static("sweep_step", lambda **point: make(**point)[1], axes, {}):
        model, opt_state = shaped(jax.jit(partial(at_each, begin))(points))
    return step, TrainState(model, Points(shaped(points), opt_state), jnp.zeros((), jnp.int32))


@checked
def each_point(callback: Callback) -> Callback:
    """A callback for `fit` of a `sweep_step`: that of one run, called at every point.

    What it returns by name is stacked to [len(axis 1), len(axis 2), ...]:
    `each_point(validation(...))`. It is a function of its arguments, without `begin` or `end`.
    """

    def call(state: TrainState, metrics: Metrics, epoch: float, key: Array) -> Any:
        sizes = metrics["loss"].shape[1:]
        found = []
        for i, at in enumerate(np.ndindex(*sizes)):
            model, opt_state = jax.tree.map(
                lambda leaf, at=at: leaf[at], (state.model, state.opt_state.opt_state)
            )
            of_point = {
                n: m[:, *at] for n, m in metrics.items() if m.shape[1 : 1 + len(sizes)] == sizes
            }
            one = TrainState(model, opt_state, state.step)
            found.append(callback(one, of_point, epoch, jax.random.fold_in(key, i)))
        if found[0] is None:
            return None
        every = jax.tree.map(lambda *leaves: np.stack(leaves), *map(dict, found))
        return {name: leaf.reshape(*sizes, *leaf.shape[1:]) for name, leaf in every.items()}

    return call


@partial(jax.jit, static_argnames=("run", "at_once", "mesh"))
def _at_points(
    run: Any, points: dict[str, Array], fixed: dict[str, Any], *, at_once: int, mesh: Mesh | None
) -> Any:
    """What `run` returns at each point, leading axis n."""
    one = jax.jit(run)  # whose trace `points_at_once` has made

    def in_turn(points: dict[str, Array], fixed: dict[str, Any]) -> Any:
        batch = at_once if at_once > 1 else None
        return jax.lax.map(lambda point: one(**point, **fixed), points, batch_size=batch)

    if mesh is None:
        return in_turn(points, fixed)
    num_points, axis = len(next(iter(points.values()))), mesh.axis_names[0]
    shared = -(-num_points // mesh.shape[axis]) * mesh.shape[axis]
    points = _rows(points, 0, shared)  # a last one again, so that all devices have as many
    split = PartitionSpec(axis)
    every = jax.shard_map(
        in_turn, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split, check_vma=False
    )(points, fixed)
    return jax.tree.map(lambda leaf: leaf[:num_points], every)


def _rows(points: dict[str, Array], start: int, stop: int) -> dict[str, Array]:
    """Those from `start` on; beyond the last is the last again."""
    return {name: v.at[jnp.arange(start, stop)].get(mode="clip") for name, v in points.items()}


def _chunk_by_chunk(
    run: Callable[..., Any],
    call: Callable[..., Any],
    points: dict[str, Array],
    fixed: Tree,
    folder: Path,
    size: int,
) -> Any:
    """`call(points, fixed)`, every chunk of it read from the folder, or made and saved there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} can't be written: {error.strerror}") from None
    point = jax.eval_shape(lambda: {name: v[0] for name, v in points.items()})
    step = computation(run, **point, **fixed)
    num_points = len(next(iter(points.values())))
    chunks = []
    for start in range(0, num_points, size):
        chunk = _rows(points, start, start + size)
        given = checksums("grid", chunk) | checksums("fixed", fixed)
        identity = Identity(given=given, schedules={}, start={}, step=step)
        path = folder / f"points_{start:06d}.ckpt"
        found = None
        if path.exists():
            try:
                leaves, info = read_checkpoint(path)
                if why := identity.other_call(leaves, info) or identity.other_start(leaves, info):
                    raise CheckpointError(
                        f"{path} is of another sweep: {why}; call with what the sweep was begun "
                        "with, or choose another folder"
                    )
                like = jax.eval_shape(call, chunk, fixed)
                found = restore(path, leaves, like, below="['results']")
            except CorruptCheckpointError as damage:
                warnings.warn(f"{damage}; its points are run again", stacklevel=3)
        if found is None:
            found = call(chunk, fixed)
            save_checkpoint(path, {"results": found, **identity.arrays}, info=identity.info)
        chunks.append(found)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:num_points], *chunks)


@checked
def points_at_once(
    run: Callable[..., Any], arguments: Mapping[str, Any], num_points: Count, *, backend: str = ""
) -> int:
    """How many points of a sweep to vmap together, so that it is fast and fits.

    On a CPU, as measured in docs/performance.md: 4 where `run` is small, below 2e7 floating-point
    operations with every loop's body counted once, so that dispatch weighs more than arithmetic;
    from there on 1, whose working set stays in the caches. Elsewhere all that fit in four fifths of
    the free memory of the first device, or all where it does not tell; not measured.

    Args:
      run: as `sweep` takes it.
      arguments: those of one point; only their shapes matter.
      num_points: of the whole grid.
      backend: "cpu", or another; by default the one in use.

    Returns:
      Between 1 and `num_points`.

    >>> points_at_once(lambda x, y: x + y, {"x": 1.0, "y": 2.0}, 10, backend="cpu")
    4
    """
    one = jax.jit(run).lower(**jax.eval_shape(dict, arguments))
    if (backend or jax.default_backend()) == "cpu":
        cost: Any = one.cost_analysis()
        return min(num_points, 4 if cost is not None and cost.get("flops", 0.0) < 2e7 else 1)
    memory = jax.local_devices()[0].memory_stats()
    if not memory:
        return num_points
    used: Any = one.compile().memory_analysis()
    each = used.temp_size_in_bytes + used.output_size_in_bytes
    free = memory["bytes_limit"] - memory["bytes_in_use"]
    return max(1, min(num_points, int(0.8 * free) // max(each, 1)))
