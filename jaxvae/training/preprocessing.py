"""From stored bytes to model input, one example at a time, inside the compiled step.

Data stay on the device as they are stored (uint8); a transform is a function `(key, x) -> x` of one
example that `preprocessed` puts in front of an objective.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxvae.batching import lifts
from jaxvae.checks import Key, Numbers, Scalar, Tree, checked, warn, within

_TAKEN: ContextVar[list[Any] | None] = ContextVar("bytes taken for 0 to 255", default=None)
M = TypeVar("M")
R = TypeVar("R")
P = ParamSpec("P")


@checked
def rescale(key: Key | None, x: Numbers, *, max_value: Scalar | None = None) -> Array:
    """x / max_value: stored values to floats in [0, 1]; nothing is drawn.

    Args:
      x: one example, any shape, values in 0..max_value.
      max_value: the largest value stored, 1.0 for binary data or floats in [0, 1]; by default 255
        for uint8 and 1 for bool. Any other dtype doesn't tell, so it must be given. `fit` and
        `sweep` warn of data that are far below that 255.

    Raises:
      ValueError: if a value of x is not in 0..max_value; under `jit` and `vmap` none is looked at.

    >>> rescale(jax.random.key(0), jnp.array([0, 255], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    del key
    y, max_value = stored(x, max_value)
    return y / max_value


def stored(
    x: Numbers, max_value: Scalar | None, owner: str = "preprocessing"
) -> tuple[Array, Scalar]:
    """x as floats and its largest value, if x is in 0..max_value."""
    if max_value is None:
        max_value = _full(owner, jnp.result_type(x))
    y = jnp.asarray(x).astype(float)
    inside = (y >= 0) & (y <= max_value)
    within(owner, x, inside, f"values in 0..{max_value}, or another max_value", "x")
    return y, max_value


def _full(owner: str, dtype: DTypeLike) -> float:
    """What a full pixel is in that dtype; TypeError where it doesn't tell."""
    if dtype not in (jnp.uint8, jnp.bool_):
        raise TypeError(
            f"{owner}: x is an array of {dtype}, expected uint8 (0 to 255) or bool where max_value "
            "is not given; for floats in [0, 1] give max_value=1.0"
        )
    if dtype != jnp.uint8:
        return 1.0
    if (told := _TAKEN.get()) is not None:
        told.append(dtype)
    return 255.0


@contextmanager
def bytes_taken() -> Iterator[list[Any]]:
    """A list that has entries once something was traced that takes bytes for 0 to 255."""
    token = _TAKEN.set(taken := [])
    try:
        yield taken
    finally:
        _TAKEN.reset(token)


def warn_if_dark(owner: str, data: Tree) -> None:
    """Warn of bytes that are taken for 0 to 255 and go to less than half of that."""
    found = [leaf for leaf in jax.tree.leaves(data) if getattr(leaf, "dtype", None) == jnp.uint8]
    if found and (largest := max(int(jnp.max(leaf)) for leaf in found)) < 128:
        warn(
            f"{owner}: the largest value of data is {largest}, which is taken for {largest} of "
            f"255; give max_value={largest}.0 to what scales them, as "
            f"functools.partial(jaxvae.binarize, max_value={largest}.0) or of rescale, threshold, "
            f"dequantize, nn.Rescaled, and levels={largest + 1} to a DiscretizedLogistic",
        )


@checked
def binarize(key: Key, x: Numbers, *, max_value: Scalar | None = None) -> Array:
    """Dynamic binarization: every pixel is 1 with probability x / max_value, afresh at every visit.

    Salakhutdinov & Murray 2008; Burda et al. 2016. x as for `rescale`.

    >>> binarize(jax.random.key(0), jnp.array([0, 255], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    p = rescale(key, x, max_value=max_value)
    return jax.random.bernoulli(key, p).astype(p.dtype)


@checked
def threshold(key: Key | None, x: Numbers, *, max_value: Scalar | None = None) -> Array:
    """Fixed binarization: a pixel is 1 where x / max_value > 1/2; nothing is drawn.

    >>> threshold(jax.random.key(0), jnp.array([100, 200], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    p = rescale(key, x, max_value=max_value)
    return (p > 0.5).astype(p.dtype)


@checked
def dequantize(key: Key, x: Numbers, *, max_value: Scalar | None = None) -> Array:
    """Uniform dequantization: (x + u) / (max_value + 1), u in (0, 1) afresh at every visit.

    What a density p of floats in (0, 1) is worth on the integers stored: P(x) is its integral over
    a cell of volume (max_value + 1)^-D, so that by Jensen's inequality

        log P(x) >= E_u log p((x + u) / (max_value + 1)) - D log(max_value + 1),

    8 bits a coordinate more for bytes. Without u the densities of a few levels have no bound. u is
    one of 2^15, or of as many as the floats can tell apart beside x, never 0 or 1, and x can be
    read off again.
    Uria, Murray & Larochelle 2013; Theis, van den Oord & Bethge 2016.
    x as for `rescale`.

    >>> y = dequantize(jax.random.key(0), jnp.array([0, 7, 255], jnp.uint8))
    >>> jnp.floor(256 * y).tolist(), bool(y[-1] < 1)
    ([0.0, 7.0, 255.0], True)
    """
    y, max_value = stored(x, max_value)
    # u + 1/2 of `levels`, a power of two: exact beside max_value, and in float32 for bytes of 2^15
    _, digits = jnp.frexp(jnp.asarray(max_value, y.dtype))  # max_value < 2^digits
    bits = jnp.clip(jnp.finfo(y.dtype).nmant - digits, 0, 15)
    u = jax.random.bits(key, y.shape, jnp.uint16) >> (16 - bits).astype(jnp.uint16)
    levels = jnp.exp2(bits.astype(y.dtype))
    return (y + (u.astype(y.dtype) + 0.5) / levels) / (max_value + 1)


@checked
def preprocessed(
    objective: Callable[Concatenate[M, Array, Any, P], R], transform: Callable[[Array, Any], Any]
) -> Callable[Concatenate[M, Array, Any, P], R]:
    """The objective of transform(x): the key is split between the transform and the objective.

    Args:
      transform: `(key, x) -> x`, such as `binarize`.

    >>> objective = preprocessed(lambda model, key, x: (jnp.sum(x), None), binarize)
    >>> float(objective(None, jax.random.key(0), jnp.array([255, 255], jnp.uint8))[0])
    2.0
    """

    @lifts(objective)
    def transformed_objective(model: M, key: Key, x: Tree, *args: P.args, **hyper: P.kwargs) -> R:
        transform_key, objective_key = jax.random.split(key)
        return objective(model, objective_key, transform(transform_key, x), *args, **hyper)

    return transformed_objective
