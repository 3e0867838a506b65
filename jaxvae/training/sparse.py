"""Rows of a sparse matrix, kept compressed on the device and made dense a batch at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxvae.batching import number_of_rows
from jaxvae.checks import Integers, Tree, a_class_of, checked, is_sparse
from jaxvae.pytrees import pytree


@pytree
@dataclass(frozen=True)
class SparseRows:
    """What `sparse_rows` makes of a matrix; a pytree whose rows `fit` draws like those of an array.

    Args:
      values: of the entries, row after row, [entries].
      columns: where each stands in its row, [entries].
      starts: the first entry of each row, and behind the last one their number, [rows + 1].
      width: columns.
      most: entries in the fullest row.
    """

    values: Any
    columns: Any
    starts: Any
    width: int = field(metadata={"static": True})
    most: int = field(metadata={"static": True})

    def __len__(self) -> int:
        return len(self.starts) - 1

    @checked
    def dense(self, rows: Integers) -> Array:
        """These rows, [len(rows), width]."""
        if jnp.ndim(rows) != 1:
            raise ValueError(f"SparseRows: rows has shape {jnp.shape(rows)}, expected [n]")
        values, columns, starts = map(jnp.asarray, (self.values, self.columns, self.starts))
        rows = jnp.asarray(rows).astype(starts.dtype)  # in which rows + 1 is a number
        rows = jnp.where(rows < 0, rows + len(self), rows)  # -1 is the last
        first, last = starts[rows, None], starts[rows + 1, None]
        entry = first + jnp.arange(self.most, dtype=first.dtype)[None]
        columns = jnp.where(entry < last, columns[entry], self.width)  # one too far: dropped
        empty = jnp.zeros((len(rows), self.width), values.dtype)
        every = jnp.arange(len(rows))[:, None]
        return empty.at[every, columns].set(values[entry], mode="drop")


def sparse_rows(matrix: Any) -> SparseRows:
    """A sparse matrix of SciPy's as data for `fit`, alone or in a pytree beside other arrays.

    `fit` does so by itself with the sparse matrices that it is given.

    Args:
      matrix: [rows, columns], in any format of `scipy.sparse`.

    Raises:
      TypeError: `matrix` is not one of these.
      ValueError: it is no matrix, or holds 2^31 entries or more.

    >>> import scipy.sparse
    >>> rows = sparse_rows(scipy.sparse.csr_array(np.eye(3)))
    >>> len(rows), rows.dense(jnp.array([2, 0])).tolist()
    (3, [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    """
    if not is_sparse(matrix):
        raise TypeError(
            f"sparse_rows: matrix is {a_class_of(matrix)}, expected one of scipy.sparse"
        )
    if matrix.ndim != 2 or matrix.nnz >= 2**31:
        raise ValueError(
            f"sparse_rows: matrix has shape {matrix.shape} and {matrix.nnz} entries, expected "
            "[rows, columns] and fewer than 2^31; give fit parts of it, as a stream"
        )
    rows = matrix.tocsr()
    if not rows.has_canonical_format:  # entries that stand twice are summed
        rows = rows.copy()
        rows.sum_duplicates()
    values, columns = (rows.data, rows.indices) if rows.nnz else np.zeros((2, 1), rows.dtype)
    return SparseRows(
        values=values,
        columns=columns.astype(np.int32, copy=False),
        starts=rows.indptr.astype(np.int32, copy=False),
        width=rows.shape[1],
        most=max(int(np.diff(rows.indptr).max(initial=0)), 1),
    )


def compressed(data: Tree) -> Any:
    """Data with `SparseRows` for each sparse matrix."""
    return jax.tree.map(lambda x: sparse_rows(x) if is_sparse(x) else x, data, is_leaf=is_sparse)


def take(data: Tree, rows: Array) -> Any:
    """These rows of every array, made dense where they are sparse."""
    return jax.tree.map(
        lambda x: x.dense(rows) if isinstance(x, SparseRows) else x[rows], data, is_leaf=_compressed
    )


def in_batches(data: Tree, most: int) -> Iterator[Any]:
    """Data as it is, or if it has sparse matrices, batches of so many rows, made dense."""
    data = compressed(data)
    if not any(map(_compressed, jax.tree.leaves(data, is_leaf=_compressed))):
        yield data
        return
    rows = number_of_rows(by_rows(data))
    for start in range(0, rows, most):
        yield part(data, start, min(start + most, rows))


def part(data: Tree, start: int, end: int) -> Any:
    """These rows, one after the other, made dense where they are sparse."""
    return jax.tree.map(
        lambda x: x.dense(jnp.arange(start, end)) if _compressed(x) else x[start:end],
        data,
        is_leaf=_compressed,
    )


def by_rows(data: Tree) -> Any:
    """Data with an array of as many rows for each sparse matrix, compressed or not."""

    def rows(x: Any) -> Any:
        return np.empty(x.shape[:1]) if is_sparse(x) else x.starts[1:] if _compressed(x) else x

    return jax.tree.map(rows, data, is_leaf=lambda x: is_sparse(x) or _compressed(x))


def _compressed(value: Any) -> bool:
    return isinstance(value, SparseRows)
