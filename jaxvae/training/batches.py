"""What is a stream of batches, and its batches as arrays, each like the first."""

from inspect import isgeneratorfunction
from typing import Any

import jax
import numpy as np

from jaxvae.checks import Tree, check_leaves
from jaxvae.pytrees import paths
from jaxvae.training.checkpoints.files import describe, first_difference
from jaxvae.training.sparse import is_sparse


def is_stream(data: Tree, batch_size: int | None) -> bool:
    """Whether these are batches to be iterated: what is no array and no pytree of them."""
    if isinstance(data, list):  # a pytree, or batches
        return batch_size is None
    arrays = hasattr(data, "dtype") or is_sparse(data) or isinstance(data, (str, bytes))
    if arrays or not jax.tree_util.all_leaves([data]):
        return False
    return isgeneratorfunction(data) or any(hasattr(data, n) for n in ("__iter__", "__getitem__"))


def arrays_of(batch: Tree) -> Any:
    """A batch as a pytree of NumPy arrays: lists of numbers are arrays, other lists tuples."""

    def array(part: Any) -> Any:
        if is_sparse(part):
            return part.toarray()
        if isinstance(part, list) and any(hasattr(x, "__array__") or _is_tree(x) for x in part):
            return tuple(map(arrays_of, part))
        return np.asarray(part)

    return jax.tree.map(
        array, batch, is_leaf=lambda part: isinstance(part, list) or is_sparse(part)
    )


def _is_tree(value: object) -> bool:
    return isinstance(value, (dict, tuple))


def check_rows(where: str, batch: Any) -> None:
    """Raise unless a batch has arrays of numbers, with as many rows in each."""
    check_leaves("fit", where, batch)
    leaves = paths(batch)
    sizes = {np.shape(leaf)[:1] for leaf in leaves.values()}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        shapes = ", ".join(describe(leaf) + (p and f" at {p}") for p, leaf in leaves.items())
        raise ValueError(
            f"fit: {where} has {shapes}, expected arrays of one number of rows, at least 1"
        )


def check_alike(where: str, first: dict[str, str], this: dict[str, str]) -> None:
    """Raise ValueError where a batch has other rows than the first."""
    if found := first_difference(first, this):
        path, there, here = found
        raise ValueError(
            f"fit: {where} has {here}{path and f' at {path}'}, expected {there} as in the first "
            "batch"
        )
