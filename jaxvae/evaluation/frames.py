"""Rows of a pandas frame as a model takes them, and results as columns beside its own."""

from collections.abc import Iterable
from itertools import pairwise
from math import prod
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from jaxvae.checks import Tree


def of_frame(owner: str, frame: Any, like: Tree) -> Any:
    if isinstance(like, dict):
        if missing := [name for name in like if name not in frame.columns]:
            raise ValueError(f"{owner}: xs has no column {missing[0]!r}, which the model wants")
        return {n: _numbers(owner, frame[[n]], s.dtype).reshape(len(frame), *s.shape)
                for n, s in like.items()}  # fmt: skip
    if getattr(like, "shape", None) != frame.shape[1:]:
        raise ValueError(
            f"{owner}: xs has {frame.shape[1]} columns, expected {getattr(like, 'shape', like)}, "
            "the shape of x; choose them: frame[columns]"
        )
    return _numbers(owner, frame, like.dtype)


def of_latents(owner: str, frame: Any, like: Tree) -> Any:
    """z of the columns that `columns_of` gives them, or of a frame that has no others."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([0, *(prod(leaf.shape) for leaf in leaves)])
    spans = [*zip(leaves, pairwise(ends), strict=True)]
    places = [np.arange(a, b).reshape(1, *leaf.shape) for leaf, (a, b) in spans]
    named = columns_of("z", jax.tree.unflatten(structure, places), [])
    names = [*frame.columns]
    if {*named} <= {*names}:
        names = sorted(named, key=lambda name: named[name])
    if len(names) != ends[-1]:
        raise ValueError(
            f"{owner}: zs has {len(names)} columns, expected {ends[-1]}: {', '.join(named)}"
        )
    z = [
        _numbers(owner, frame[names[a:b]], leaf.dtype).reshape(len(frame), *leaf.shape)
        for leaf, (a, b) in spans
    ]
    return jax.tree.unflatten(structure, z)


def _numbers(owner: str, frame: Any, dtype: DTypeLike) -> np.ndarray:
    """A frame's values, in floats where there are gaps."""
    for name, column in frame.items():
        if column.dtype.kind not in "biuf":
            raise TypeError(
                f"{owner}: column {name!r} holds {column.dtype}, expected numbers; code categories "
                "as integers, as nn.infer_table(frame).coded(frame) does"
            )
    values = frame.to_numpy(np.float64, na_value=np.nan)
    gaps = np.isnan(values)
    if np.issubdtype(dtype, np.integer):
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        wrong = ~gaps & ((values != np.round(values)) | (values < least) | (values > most))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"{owner}: column {frame.columns[column]!r} holds {values[row, column]:g}, "
                f"expected whole numbers of {np.dtype(dtype)}"
            )
    floats = jax.dtypes.canonicalize_dtype(np.float64)
    return values.astype(floats if gaps.any() or np.issubdtype(dtype, np.floating) else dtype)


def check_new(owner: str, frame: Any, names: Iterable[str]) -> None:
    """ValueError where a column of results has the name of one of the frame's own."""
    if taken := [name for name in names if name in frame.columns]:
        raise ValueError(
            f"{owner}: there is a column {taken[0]!r} already, expected none of that name, as a "
            "result takes it; rename it or leave it out"
        )


def nats_of(frame: Any, entries: Tree) -> dict[str, np.ndarray]:
    """What each entry costs as columns in the order of the frame's: NaN in its gaps."""
    if isinstance(entries, dict):
        entries = {name: np.reshape(v, (len(v), -1)).sum(-1) for name, v in entries.items()}
    columns = columns_of("nats", entries, [*frame.columns])
    for name in frame.columns:
        if (title := f"nats {name}") in columns:
            columns[title] = np.where(frame[name].isna(), np.nan, columns[title])
    return columns


def columns_of(title: str, values: Tree, names: list[Any]) -> dict[str, np.ndarray]:
    """Results as columns of a title: of several arrays with their number, as of levels of z.

    >>> [*columns_of("z", (np.zeros((3, 2)), np.zeros(3)), [])]
    ['z 0 0', 'z 0 1', 'z 1']
    """

    def join(name: Any) -> Any:
        return f"{title} {name}" if title else name

    if isinstance(values, dict):  # a tree's leaves are in the order of the alphabet
        parts = {name: _flat(values[name]) for name in (*names, *values) if name in values}
    elif isinstance(values, (tuple, list)):
        parts = dict(enumerate(values))
    elif np.ndim(values) == 1:
        return {title: values}
    else:
        flat = np.reshape(values, (len(values), -1))
        named = names if len(names) == flat.shape[1] else range(flat.shape[1])
        parts = dict(zip(named, flat.T, strict=True))
    of_parts = (columns_of(join(name), part, []) for name, part in parts.items())
    return {name: column for columns in of_parts for name, column in columns.items()}


def names_of_latents(like: Tree) -> list[str]:
    """The columns of z, of the shapes of one z."""
    return [*columns_of("z", jax.tree.map(lambda leaf: np.zeros((1, *leaf.shape)), like), [])]


def _flat(values: np.ndarray) -> np.ndarray:
    """[n] where a row has one entry."""
    return np.ravel(values) if np.size(values) == len(values) else values
