"""Rows of data as a model takes them: of arrays, of a stream of batches, or of a pandas frame.

A frame is read by its columns. NaN are gaps where the likelihood is `Masked`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxvae.batching import number_of_rows
from jaxvae.checks import Tree, a_class_of, check_leaves, warn
from jaxvae.distributions import Masked
from jaxvae.distributions.masked import check_observed
from jaxvae.evaluation.frames import of_frame, of_latents
from jaxvae.model import Model, likelihood, prior
from jaxvae.protocols import MissingMethodError
from jaxvae.pytrees import value_of
from jaxvae.pytrees.libraries import functional
from jaxvae.training.batches import is_frame, is_stream, iterated, like_first
from jaxvae.training.sparse import by_rows, in_batches

DENSE = 256  # rows of a sparse matrix at a time


def _check_rows(owner: str, name: str, xs: object) -> None:
    if is_frame(xs):
        if not len(xs):  # pyright: ignore[reportArgumentType]
            raise ValueError(f"{owner}: {name} is a frame without rows, expected at least one")
    elif not is_stream(xs, None):
        check_leaves(owner, name, by_rows(xs))


Rows = Annotated[Any, _check_rows]
"""Rows of data: an array, a sparse matrix, a pytree of them with a common leading axis, or a pandas
frame; or an iterable of batches of them."""


def model_at(model: Any, y: Tree | None) -> Any:
    """The model, or of a conditional one, y -> model, that at y: None is an empty tree of rows."""
    if y is not None and not callable(model):
        raise TypeError(
            f"given is for a conditional model, a function y -> model, and model is "
            f"{a_class_of(model)}; leave given out"
        )
    return model if y is None else functional(model)(y)


def first_model(model: Any, given: Tree | None) -> Any:
    """The model, or that of the first y."""
    return model_at(model, jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], given))


def paired(owner: str, model: Any, xs: Tree, given: Tree | None, name: str = "xs") -> Any:
    """Rows (x, y) for `model_at(model, y)`, having looked at what is concrete of them."""
    number_of_rows(xs, owner, name)
    if given is not None:
        number_of_rows((xs, given), owner, f"({name}, given)")
    if name == "xs":
        check_values(owner, name, first_model(model, given), xs)
    return xs, given


@contextmanager
def or_else(what_to_do: str) -> Iterator[None]:
    """A distribution without a mean or the like is an error that begins with what to do."""
    try:
        yield
    except MissingMethodError as error:
        raise MissingMethodError(f"{what_to_do}; {error}") from None


def check_values(owner: str, name: str, model: Model, xs: Tree) -> None:
    """ValueError where concrete x, rows or one, can't be meant.

    It has no mask where the likelihood is `Masked`, NaN in what its mask says was seen, or bytes
    above 1 for a model that draws floats.
    """
    masked = is_masked(model)
    if masked and not (isinstance(xs, tuple) and len(xs) == 2):
        raise ValueError(
            f"{owner}: {name} is {a_class_of(xs)}, expected the pair (x, mask) of a Masked "
            "likelihood; jaxvae.use takes x with NaN in its gaps"
        )
    if masked:
        check_observed(owner, name, *xs)
    if any(map(holds_bytes, jax.tree.leaves(xs))):
        check_bytes(owner, name, xs, event_like(model))


def check_bytes(owner: str, name: str, xs: Tree, like: Tree) -> None:
    if jax.tree.structure(xs) == jax.tree.structure(like):
        for leaf, one in zip(jax.tree.leaves(xs), jax.tree.leaves(like), strict=True):
            if holds_bytes(leaf) and jnp.issubdtype(one.dtype, jnp.floating):
                raise ValueError(
                    f"{owner}: {name} holds bytes up to {np.asarray(leaf).max()}, expected "
                    f"{one.dtype} as the model draws; scale them as in training, e.g. {name} / "
                    f"255, or give {name}.astype(float) where it was trained on 0 to 255"
                )


def holds_bytes(leaf: Tree) -> bool:
    """Of more than zeros and ones."""
    stored = getattr(leaf, "dtype", None) == np.uint8 and not isinstance(leaf, Tracer)
    return stored and bool(np.size(leaf)) and np.asarray(leaf).max() > 1  # under jit, too


UNSCORED: tuple[tuple[str, Callable[[Any], np.ndarray], str], ...] = (
    ("-inf", np.isneginf, "which the likelihood gives no probability, as the scale or dtype of xs "
     "is not that of training, or a value is out of range"),
    ("NaN", np.isnan, "as there is NaN in them, or the model gives NaN"),
)  # fmt: skip


def warn_of_outside(owner: str, log_p: Tree) -> None:
    """Warn of rows whose concrete log p(x) is -inf or NaN."""
    if isinstance(log_p, Tracer):
        return
    log_p = np.atleast_1d(log_p)
    for value, is_it, why in UNSCORED:
        if (rows := np.flatnonzero(is_it(log_p))).size:
            warn(
                f"{owner}: log p(x) is {value} at {len(rows)} of {len(log_p)} rows, first at "
                f"{rows[0]}, {why}; mend these rows or leave them out",
            )


def events(owner: str, model: Model, xs: Rows) -> Iterator[Any]:
    """Batches of x as the model takes them: of gaps pairs (x, mask)."""
    masked, like = is_masked(model), event_like(model)
    like = like[0] if masked else like
    for where, batch in _batches(owner, "xs", xs, like):
        rows = of_frame(owner, batch, like) if is_frame(batch) else batch
        pair = isinstance(rows, tuple) and len(rows) == 2
        x = rows[0] if masked and pair else rows
        _check_shapes(f"{owner}: {where}", x, like)
        check_bytes(owner, where, x, like)
        if masked and pair:
            check_observed(owner, where, *rows)
        yield _with_mask(rows, like) if masked and not pair else jax.tree.map(_as_stored, rows)


def latents(owner: str, model: Model, zs: Rows) -> Iterator[Any]:
    """Batches of z."""
    like = latent_like(model)
    for where, batch in _batches(owner, "zs", zs, like):
        rows = of_latents(owner, batch, like) if is_frame(batch) else batch
        _check_shapes(f"{owner}: {where}", rows, like)
        yield rows


def _batches(owner: str, name: str, xs: Rows, like: Tree) -> Iterator[tuple[str, Any]]:
    """What a batch is called, and itself: arrays, or a frame."""
    a_list = isinstance(xs, list) and jax.tree.structure(xs) == jax.tree.structure(like)
    if is_frame(xs) or a_list or not is_stream(xs, None):
        if is_frame(xs):
            yield name, xs
            return
        number_of_rows(by_rows(xs), owner, name)
        yield from ((name, part) for part in in_batches(xs, DENSE))
        return
    first, where = {}, ""
    for i, batch in enumerate(iterated(xs)):
        where = f"batch {i} of {name}"
        if not is_frame(batch):
            batch, first = like_first(owner, where, batch, first)
        yield where, batch
    if not where:
        raise ValueError(f"{owner}: {name} gave no batch, expected at least one")


def of_one_length(batches: Iterable[Tree], most: int) -> Iterator[tuple[Any, int]]:
    """The same rows in batches of `most`, or of what the first has, and how many count of each.

    The last is filled up, so that all are one program.
    """
    size, left = 0, None
    for batch in batches:
        size = size or min(most, _length(batch))
        left = batch if left is None else jax.tree.map(_joined, left, batch)
        whole = _length(left) // size * size
        for at in range(0, whole, size):
            yield _cut(left, at, at + size), size
        left = _cut(left, whole, None) if whole < _length(left) else None
    if left is not None:
        yield jax.tree.map(lambda a: _padded(a, size), left), _length(left)


def _length(rows: Tree) -> int:
    return len(jax.tree.leaves(rows)[0])


def _cut(rows: Tree, start: int, end: int | None) -> Any:
    return jax.tree.map(lambda a: a[start:end], rows)


def _joined(a: Any, b: Any) -> np.ndarray:
    return np.concatenate([a, b])


def _padded(rows: Tree, size: int) -> Any:
    """The last batch as long as the others, so that all are one program."""
    short = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], short, axis=0)]) if short else rows


def latent_like(model: Model) -> Any:
    """Shapes and dtypes of one z."""
    return jax.eval_shape(lambda: prior(model).sample(jax.random.key(0)))


def event_like(model: Model) -> Any:
    """Shapes and dtypes of one x, a pair (x, mask) where p(x|z) is `Masked`; None if undrawable."""

    def draw() -> Any:
        d = likelihood(model, prior(model).sample(jax.random.key(0)))
        return d.sample(jax.random.key(0)) if hasattr(d, "sample") else None

    return jax.eval_shape(draw)


def _with_mask(xs: Tree, like: Tree) -> Any:
    """The pair (x, mask) of x with NaN in its gaps."""
    mask = jax.tree.map(lambda a: ~np.isnan(np.asarray(a, np.float32)), xs)
    xs = jax.tree.map(lambda a, m: _as_stored(np.where(m, a, 0)), xs, mask)
    if jax.tree.structure(xs) == jax.tree.structure(like):  # floats stood for integers with gaps
        xs = jax.tree.map(_as_integers, xs, like)
    return xs, mask


def _as_integers(a: np.ndarray, like: jax.ShapeDtypeStruct) -> np.ndarray:
    """Whole numbers as integers, where the model wants these."""
    whole = np.issubdtype(like.dtype, np.integer) and (a == np.round(a)).all()
    return a.astype(like.dtype) if whole else a


def _check_shapes(where: str, xs: Tree, like: Tree) -> None:
    """ValueError where a row is no x of the model, before a network sees it."""
    if jax.tree.structure(xs) == jax.tree.structure(like):
        for leaf, one in zip(jax.tree.leaves(xs), jax.tree.leaves(like), strict=True):
            if jnp.shape(leaf)[1:] != one.shape or not jnp.ndim(leaf):
                raise ValueError(
                    f"{where} has rows of shape {jnp.shape(leaf)[1:]}, expected {one.shape}; its "
                    "leading axis is that of the rows"
                )


def is_masked(model: Model) -> bool:
    """Whether its likelihood is `Masked`."""
    return _of_likelihood(lambda d: isinstance(d, Masked), model)


def has_mask(model: Model) -> bool:
    """Whether its events are pairs (x, mask): of `Masked`, or of what says so, as `MaskedBy`."""
    return _of_likelihood(lambda d: isinstance(d, Masked) or hasattr(d, "with_mask"), model)


def _of_likelihood(what: Callable[[Any], bool], model: Model) -> bool:
    seen: list[bool] = []

    def look() -> None:
        seen.append(what(value_of(likelihood(model, prior(model).sample(jax.random.key(0))))))

    jax.eval_shape(look)
    return seen[0]


def _as_stored(a: Tree) -> Any:
    """float64 of NumPy or pandas as the floats that JAX computes in."""
    if isinstance(a, np.ndarray) and a.dtype == np.float64:
        return a.astype(jax.dtypes.canonicalize_dtype(np.float64))
    return a
