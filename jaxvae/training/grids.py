"""The grid of a sweep: its axes, its points, and what can't be one of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import check_instance, is_key
from jaxvae.training.objectives import listed, static_names

Grid = Annotated[Mapping[str, Any], partial(check_instance, of=Mapping, expected="name -> values")]


def _axis(owner: str, name: str, values: Any) -> Array:
    try:
        return jnp.asarray(values)
    except (TypeError, ValueError):
        raise TypeError(
            f"{owner}: grid[{name!r}] is {values!r}, expected numbers or keys, which the program "
            "is given; over what it is made of, loop in Python, a sweep each"
        ) from None


def axes_and_points(owner: str, grid: Grid) -> tuple[dict[str, Array], dict[str, Array]]:
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
def names_what_is_static(
    owner: str, run: Callable[..., Any], axes: dict[str, Array], fixed: dict[str, Any]
) -> Iterator[None]:
    """Where `run` can't be traced, a line with the names of the grid whose values it must know."""
    try:
        yield
    except (TypeError, ValueError, IndexError) as error:
        point = {name: v[0] if is_key(v) or v.ndim > 1 else v[0].item() for name, v in axes.items()}

        def trace(*names: str) -> None:
            known = {name: v for name, v in point.items() if name not in names}
            jax.eval_shape(partial(run, **known), **{n: axes[n][0] for n in names}, **fixed)

        if not (static := static_names(axes, trace)):
            raise
        raise TypeError(
            f"{owner}: grid has {listed(map(repr, static))}, which run must know while it is "
            "compiled, as a number that fixes a shape, or a choice; expected what it computes "
            "with; loop over it in Python, a sweep each"
        ) from error
