"""A sweep: one run at every point of a grid of seeds and hyper-parameters, as one program."""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from jaxvae.checks import Count, Location, Tree, checked, warn
from jaxvae.pytrees import shown
from jaxvae.training.checkpoints.durable import make_folder
from jaxvae.training.checkpoints.files import (
    CheckpointError,
    CorruptCheckpointError,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from jaxvae.training.checkpoints.identity import Identity, checksums, computation
from jaxvae.training.devices import AutoMesh
from jaxvae.training.grids import Grid, axes_and_points, names_what_is_static
from jaxvae.training.monitoring import warn_of_collapse, warn_of_nonfinite
from jaxvae.training.preprocessing import bytes_taken, warn_if_dark
from jaxvae.training.showing import Line, line_of, someone_looks


@shown
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
    folder: Location | None = None,
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
    axes, points = axes_and_points("sweep", grid)
    for name in axes:
        if name in fixed:
            raise ValueError(f"sweep: {name!r} is in the grid and fixed, expected it in one")
    sizes = tuple(len(values) for values in axes.values())
    devices = 1 if mesh is None else mesh.shape[mesh.axis_names[0]]
    with names_what_is_static("sweep", run, axes, fixed), bytes_taken() as taken:
        if at_once is None:
            point = jax.eval_shape(lambda: {name: v[0] for name, v in axes.items()})
            at_once = points_at_once(run, point | fixed, -(-prod(sizes) // devices))
        call = partial(_at_points, run, at_once=at_once, mesh=mesh)
        shown = someone_looks() and jax.process_count() == 1
        if folder is None and not shown:
            every = call(points, fixed)
        else:
            where = None if folder is None else Path(folder)
            every = _chunk_by_chunk(run, call, points, fixed, where, at_once * devices, shown)
    every = jax.tree.map(lambda leaf: leaf.reshape(*sizes, *leaf.shape[1:]), every)
    if taken and jax.process_count() == 1:
        warn_if_dark("sweep", fixed)
    warn_of_collapse("sweep", every, sizes)
    warn_of_nonfinite("sweep", every, sizes)
    return Sweep(axes, every, at_once)


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
    folder: Path | None,
    size: int,
    shown: bool,
) -> Any:
    """`call(points, fixed)` in chunks, a line of progress behind each, kept in a folder if any."""
    num_points = len(next(iter(points.values())))
    kept = None if folder is None else _kept(run, call, points, fixed, folder)
    chunks, line = [], Line(num_points)
    for start in range(0, num_points, size):
        chunk = _rows(points, start, start + size)
        chunks.append(call(chunk, fixed) if kept is None else kept(chunk, start))
        if shown:
            done = min(start + size, num_points)
            jax.block_until_ready(chunks)
            line.show(done, partial(line_of, {}, f"point {done}/{num_points}"))
    line.close()
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:num_points], *chunks)


def _kept(
    run: Callable[..., Any],
    call: Callable[..., Any],
    points: dict[str, Array],
    fixed: Tree,
    folder: Path,
) -> Callable[..., Any]:
    """`call(chunk, fixed)` of a chunk and its first point, read from the folder or saved there."""
    try:
        make_folder(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} can't be written: {error.strerror}") from None
    point = jax.eval_shape(lambda: {name: v[0] for name, v in points.items()})
    step = computation(run, **point, **fixed)

    def kept(chunk: dict[str, Array], start: int) -> Any:
        given = checksums("grid", chunk) | checksums("fixed", fixed)
        identity = Identity(given=given, schedules={}, start={}, step=step)
        path = folder / f"points_{start:06d}.ckpt"
        if path.exists():
            try:
                leaves, info = read_checkpoint(path)
                if why := identity.other_call(leaves, info) or identity.other_start(leaves, info):
                    raise CheckpointError(
                        f"{path} is of another sweep: {why}; call with what the sweep was begun "
                        "with, or choose another folder"
                    )
                like = jax.eval_shape(call, chunk, fixed)
                return restore(path, leaves, like, below="['results']")
            except CorruptCheckpointError as damage:
                warn(f"{damage}; its points are run again")
        found = call(chunk, fixed)
        save_checkpoint(path, {"results": found, **identity.arrays}, info=identity.info)
        return found

    return kept


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
        few = cost is not None and cost.get("flops", 0.0) < 2e7
        # calls of oneDNN are not counted, and compute one point after another
        return min(num_points, 4 if few and "jaxvae_convolve" not in one.as_text() else 1)
    memory = jax.local_devices()[0].memory_stats()
    if not memory:
        return num_points
    used: Any = one.compile().memory_analysis()
    each = used.temp_size_in_bytes + used.output_size_in_bytes
    free = memory["bytes_limit"] - memory["bytes_in_use"]
    return max(1, min(num_points, int(0.8 * free) // max(each, 1)))
