"""What is a stream of batches, and its batches as arrays, each like the first."""

from inspect import isgeneratorfunction, signature
from typing import Any

import jax
import numpy as np

from jaxvae.checks import Tree, check_leaves, is_sparse
from jaxvae.pytrees import paths
from jaxvae.training.checkpoints.files import describe, first_difference


def is_frame(xs: object) -> bool:
    """Whether it is a data frame, as of pandas."""
    return type(xs).__name__ == "DataFrame" and hasattr(xs, "columns")


def is_stream(data: Tree, batch_size: int | None) -> bool:
    """Whether these are batches to be iterated: what is no array and no pytree of them."""
    if isinstance(data, list):  # a pytree, or batches
        return batch_size is None
    arrays = hasattr(data, "dtype") or is_sparse(data) or isinstance(data, (str, bytes))
    if arrays or not jax.tree_util.all_leaves([data]):
        return False
    return gives_iterator(data) or any(hasattr(data, n) for n in ("__iter__", "__getitem__"))


def gives_iterator(data: object) -> bool:
    """Whether it is called for an iterator: a generator function, or one of no arguments."""
    if isgeneratorfunction(data):
        return True
    if not callable(data) or hasattr(data, "__iter__") or hasattr(data, "__getitem__"):
        return False
    try:
        return not signature(data).parameters
    except (TypeError, ValueError):
        return False


def iterated(data: Any) -> Any:
    """What has the batches, of a function that gives it what it returns."""
    return data() if gives_iterator(data) else data


def arrays_of(batch: Tree) -> Any:
    """A batch as a pytree of NumPy arrays: lists of numbers are arrays, other lists tuples."""

    def array(part: Any) -> Any:
        if is_sparse(part):
            return part.toarray()
        if isinstance(part, list) and any(hasattr(x, "__array__") or _is_tree(x) for x in part):
            return tuple(map(arrays_of, part))
        return np.asanyarray(part)  # a masked array stays one, and is refused

    return jax.tree.map(
        array, batch, is_leaf=lambda part: isinstance(part, list) or is_sparse(part)
    )


def _is_tree(value: object) -> bool:
    return isinstance(value, (dict, tuple))


def like_first(owner: str, where: str, batch: Tree, first: dict[str, str]) -> Any:
    """A batch as arrays, and what the rows of the first one are, {} where this is the first.

    Raises:
      TypeError, ValueError: it can't be made arrays, they have not as many rows in each, or other
        rows than the first batch; the line begins with `owner` and `where`.
    """
    try:
        batch = arrays_of(batch)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{owner}: {where} can't be made an array: {error}") from None
    check_leaves(owner, where, batch)
    leaves = paths(batch)
    sizes = {np.shape(leaf)[:1] for leaf in leaves.values()}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        shapes = ", ".join(describe(leaf) + (p and f" at {p}") for p, leaf in leaves.items())
        raise ValueError(
            f"{owner}: {where} has {shapes}, expected arrays of one number of rows, at least 1"
        )
    like = {path: f"rows of {describe(leaf[0])}" for path, leaf in leaves.items()}
    if found := first_difference(first or like, like):
        path, there, here = found
        raise ValueError(
            f"{owner}: {where} has {here}{path and f' at {path}'}, expected {there} as in the "
            "first batch"
        )
    return batch, like
