"""Work shared by devices, of one process or of many: which array lies where."""

from typing import Annotated, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvae.batching import number_of_rows
from jaxvae.checks import Tree, a_class_of, checked, is_key


def placed(mesh: Mesh | None, tree: Any) -> Any:
    """A tree on every device of the mesh, but for what lies on it in its own way."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and getattr(leaf.sharding, "mesh", None) == mesh:
            return leaf
        if is_key(leaf):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.make_array_from_process_local_data(everywhere, np.asarray(leaf))

    return jax.tree.map(put, tree)


def shard_batches(mesh: Mesh | None, batches: Any) -> Any:
    """Arrays [batches, rows, ...] on the device, or this process's rows over the mesh's first axis.

    The copy has begun when this returns.
    """
    if mesh is None:
        return jax.device_put(batches)
    rows = jax.tree.leaves(batches)[0].shape[1] * jax.process_count()
    check_even(mesh, rows, "a batch of data has {} rows")
    split = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names[0]))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), batches)


def check_even(mesh: Mesh | None, rows: int, what: str = "batch_size is {}") -> None:
    """Raise ValueError where the devices of the mesh's first axis can't have as many rows each."""
    if mesh is not None and rows % mesh.shape[mesh.axis_names[0]]:
        raise ValueError(
            f"fit: {what.format(rows)}, which {mesh.shape[mesh.axis_names[0]]} devices "
            "can't share evenly; expected a multiple of their number"
        )


def of_every_process(values: Any) -> np.ndarray:
    """Integers that each process has as many of, [processes, ...]."""
    if jax.process_count() == 1:
        return np.asarray(values)[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(values)))


def texts_of_every_process(text: str) -> list[str]:
    """The texts of all, in turn."""
    mine = np.frombuffer(text.encode(), np.uint8)
    lengths = of_every_process(len(mine))
    every = of_every_process(np.pad(mine, (0, int(lengths.max()) - len(mine))))
    return [row[:n].tobytes().decode() for row, n in zip(every, lengths, strict=True)]


def check_mesh(owner: str, name: str, mesh: Mesh) -> None:
    """Raise unless it is a mesh whose first axis XLA may propagate."""
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"{owner}: {name} is {a_class_of(mesh)}, expected a mesh of devices; "
            "jax.make_mesh(shape, names)"
        )
    kind = mesh.axis_types[0]
    if kind != jax.sharding.AxisType.Auto:
        raise ValueError(
            f"{owner}: {name}'s axis {mesh.axis_names[0]!r} is {kind.name}, expected Auto: "
            "jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,))"
        )


AutoMesh = Annotated[Mesh, check_mesh]
"""A mesh whose first axis XLA may propagate."""


@checked
def shard_rows(mesh: AutoMesh, rows: Tree) -> Any:
    """The rows that each process holds, as one array of all of them over the mesh's first axis.

    Args:
      mesh: the devices of all processes.
      rows: this process's, a pytree of arrays with as many in every process; devices that hold
        them hold equally many.

    Returns:
      The global arrays, rows of process 0 first.

    Raises:
      TypeError: it is no mesh, or there are no arrays.
      ValueError: the rows can't be split evenly over this process's devices.

    >>> mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> shard_rows(mesh, jax.numpy.zeros((6, 2))).shape
    (6, 2)
    """
    here = len(mesh.local_devices)
    if (number := number_of_rows(rows, "shard_rows", "rows")) % here:
        raise ValueError(
            f"shard_rows: {number} rows on {here} devices of this process, expected a multiple; "
            f"leave out the last {number % here}"
        )
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), rows)
