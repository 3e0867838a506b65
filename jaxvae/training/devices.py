"""Work shared by devices, of one process or of many: which array lies where."""

from typing import Annotated, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvae.batching import batch_size as size_of
from jaxvae.checks import Tree
from jaxvae.pytrees import is_key


def shard_rows(mesh: Mesh, rows: Any) -> Any:
    """The rows that each process holds, as one array of all of them over the mesh's first axis.

    Args:
      mesh: the devices of all processes.
      rows: this process's, a pytree of arrays with as many in every process; devices that hold
        them hold equally many.

    Returns:
      The global arrays, rows of process 0 first.

    Raises:
      ValueError: the rows can't be split evenly over this process's devices.

    >>> mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> shard_rows(mesh, jax.numpy.zeros((6, 2))).shape
    (6, 2)
    """
    here = len(mesh.local_devices)
    if size_of(rows) % here:
        raise ValueError(
            f"shard_rows: {size_of(rows)} rows on {here} devices of this process, expected a "
            f"multiple; leave out the last {size_of(rows) % here}"
        )
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), rows)


def placed(mesh: Mesh | None, state: Tree, key: jax.Array, data: Tree, batch_size: int) -> Any:
    """State, key and data on every device of the mesh, but for what lies on it in its own way.

    Without a mesh the data go to the one device, and the rest stays where it is.
    """
    if mesh is None:
        return state, key, jax.device_put(data)
    if batch_size % mesh.shape[mesh.axis_names[0]]:
        raise ValueError(
            f"fit: batch_size is {batch_size}, which {mesh.shape[mesh.axis_names[0]]} devices "
            "can't share evenly; expected a multiple of their number"
        )
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and getattr(leaf.sharding, "mesh", None) == mesh:
            return leaf
        if is_key(leaf):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.make_array_from_process_local_data(everywhere, np.asarray(leaf))

    return jax.tree.map(put, (state, key, data))


def check_mesh(owner: str, name: str, mesh: Mesh) -> None:
    """Raise ValueError where the first axis of the mesh is none that XLA may propagate."""
    kind = mesh.axis_types[0]
    if kind != jax.sharding.AxisType.Auto:
        raise ValueError(
            f"{owner}: {name}'s axis {mesh.axis_names[0]!r} is {kind.name}, expected Auto: "
            "jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,))"
        )


AutoMesh = Annotated[Mesh, check_mesh]
"""A mesh whose first axis XLA may propagate."""
