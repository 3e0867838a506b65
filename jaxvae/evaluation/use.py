"""A trained model in use: over all rows of an array, a tree of arrays or a data frame.

    encode, decode         x -> z, z -> x
    score                  how likely each row is, and which of its entries make it unlikely
    generate, reconstruct  new rows, and what the model remembers of given ones
    impute                 what stands in the gaps

`from jaxvae import use`, then `use.encode(model, xs)`. Rows go through one compiled program,
`batch_size` at a time, and come back as NumPy arrays; row i draws with `fold_in(key, i)`, whatever
the batch size. Networks are as in use: running statistics, no noise.

A pandas frame is rows by its columns: those of an array in their order, those of a `Product` by its
names. What comes back then is the frame with the results as columns beside its own. Where the
likelihood is `Masked`, a plain x is read as the pair (x, mask) with its NaN for gaps.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxvae.batching import batch_size as number_of_rows
from jaxvae.bounds.importance_weights import log_prior
from jaxvae.bounds.reductions import log_mean_exp
from jaxvae.checks import Count, Key, Tree, check_leaves, checked
from jaxvae.distributions import Masked, Product
from jaxvae.evaluation import imputation
from jaxvae.protocols import (
    MissingMethodError,
    Model,
    event_shape,
    likelihood,
    log_density,
    log_likelihood,
    mean_of,
    posterior,
    prior,
    sample_and_log_prob,
)
from jaxvae.pytrees import arrays, value_of
from jaxvae.pytrees.libraries import functional


def _check_rows(owner: str, name: str, xs: object) -> None:
    if not _is_frame(xs):
        check_leaves(owner, name, xs)
    elif not len(xs):  # pyright: ignore[reportArgumentType]
        raise ValueError(f"{owner}: {name} is a frame without rows, expected at least one")


Rows = Annotated[Any, _check_rows]
"""Rows of data: an array, a pytree of arrays with a common leading axis, or a pandas frame."""


class Scores(NamedTuple):
    """How likely each of n rows is, in nats.

    Args:
      iwae: log 1/K sum_k w_k, a lower bound of log p(x), tighter with more samples; shape [n].
      elbo: the mean of the log w_k: -(rate + the sum of `entries`).
      rate: log q(z|x) - log p(z), the price of the code.
      entries: -log p(x_i|z) of every entry, in the structure of x with the rows in front: the
        largest say what makes a row unlikely. One number for what has no independent entries.
      observed: how many entries of the row are there.
      per_observed: iwae / observed: what rows with different gaps can be compared by.
    """

    iwae: np.ndarray
    elbo: np.ndarray
    rate: np.ndarray
    entries: Any
    observed: np.ndarray
    per_observed: np.ndarray


@checked
def encode(model: Model, xs: Rows, *, key: Key | None = None, batch_size: Count = 256) -> Any:
    """The latents of every row: the mean of q(z|x) or, with a key, a draw of it.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> encode(model, np.ones((1000, 3))).shape
    (1000, 1)
    """
    one = _posterior_mean if key is None else _posterior_draw
    zs = _each(one, model, key, _rows("encode", model, xs), batch_size)
    return _beside(xs, {"z": zs}) if _is_frame(xs) else zs


@checked
def decode(model: Model, zs: Rows, *, key: Key | None = None, batch_size: Count = 256) -> Any:
    """x of every row of latents: the mean of p(x|z) or, with a key, a draw of it."""
    one = _likelihood_mean if key is None else _likelihood_draw
    zs = np.asarray(zs, np.float32) if _is_frame(zs) else zs
    return _each(one, model, key, zs, batch_size)


@checked
def reconstruct(model: Model, key: Key, xs: Rows, *, batch_size: Count = 256) -> Any:
    """The mean of p(x'|z), z ~ q(z|x), of every row: what the model remembers of it."""
    rows = _rows("reconstruct", model, xs)
    found = _each(_remembered, model, key, rows, batch_size)
    return _beside(xs, {"reconstructed": found}) if _is_frame(xs) else found


@checked
def generate(
    model: Model, key: Key, n: Count, *, mean: bool = False, batch_size: Count = 256
) -> Any:
    """n new rows: draws of p(x|z), z ~ p(z), or with `mean` the means of these p(x|z).

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> generate(model, jax.random.key(0), 1000).shape
    (1000, 3)
    """
    one = _new_mean if mean else _new_draw
    return _each(one, model, key, np.zeros(n, np.float32), batch_size)


@checked
def score(
    model: Model, key: Key, xs: Rows, *, num_samples: Count = 100, batch_size: Count = 256
) -> Any:
    """How likely each row is, in nats, and what makes it unlikely: `Scores`, or a frame with them.

    It warns where rows have different gaps: log p of three observed entries is no worse than log p
    of two because it is lower. `per_observed` is there for that.

    Args:
      num_samples: K of the importance-weighted bound.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> xs = np.array([[0.0, 0.1, 0.2], [0.0, 0.1, 5.0]])
    >>> scores = score(model, jax.random.key(0), xs)
    >>> bool(scores.iwae[0] > scores.iwae[1]), int(np.argmax(scores.entries[1]))
    (True, 2)
    """
    rows = _rows("score", model, xs)
    found = _each(scored, model, key, rows, batch_size, num_samples=num_samples)
    scores = Scores(*found, per_observed=found[0] / np.maximum(found[-1], 1))
    if len(np.unique(scores.observed)) > 1:
        warnings.warn(
            f"score: rows have {scores.observed.min():g} to {scores.observed.max():g} observed "
            "entries, whose log p(x) can't be compared; compare per_observed",
            stacklevel=3,
        )
    if not _is_frame(xs):
        return scores
    columns = scores._asdict()
    return _beside(
        xs, {n: columns[n] for n in columns if n != "entries"} | {"nats": scores.entries}
    )


@checked
def impute(
    model: Model, key: Key, xs: Rows, *, num_samples: Count = 100, batch_size: Count = 256
) -> Any:
    """Every row with E[x_missing|x_observed] in its gaps, as `evaluation.impute` of one.

    Args:
      xs: pairs (x, mask), or x or a frame with NaN in its gaps.
    """
    rows = _rows("impute", model, xs)
    found = _each(_imputed, model, key, rows, batch_size, num_samples=num_samples)
    if not _is_frame(xs):
        return found
    values = _columns("", found, [*xs.columns])
    return xs.assign(**{name: values[name] for name in xs.columns if name in values})


# Of one row.


def _posterior_mean(model: Model, key: Key, x: Tree) -> Any:
    del key
    try:
        return mean_of(posterior(model, x))
    except MissingMethodError as error:
        raise MissingMethodError(f"encode: {error}, or give encode a key, to draw") from None


def _posterior_draw(model: Model, key: Key, x: Tree) -> Any:
    return posterior(model, x).sample(key)


def _likelihood_mean(model: Model, key: Key, z: Tree) -> Any:
    del key
    return mean_of(likelihood(model, z))


def _likelihood_draw(model: Model, key: Key, z: Tree) -> Any:
    d = likelihood(model, z)
    return (d.distribution if isinstance(d, Masked) else d).sample(key)


def _remembered(model: Model, key: Key, x: Tree) -> Any:
    return _likelihood_mean(model, key, posterior(model, x).sample(key))


def _new_mean(model: Model, key: Key, x: Tree) -> Any:
    del x
    return _likelihood_mean(model, key, prior(model).sample(key))


def _new_draw(model: Model, key: Key, x: Tree) -> Any:
    del x
    z_key, x_key = jax.random.split(key)
    return _likelihood_draw(model, x_key, prior(model).sample(z_key))


def _imputed(model: Model, key: Key, x: Tree, num_samples: int) -> Any:
    return imputation.impute(model, key, x, num_samples=num_samples)


def scored(model: Model, key: Key, x: Tree, num_samples: int) -> Any:
    """iwae, elbo, rate, entries, observed: a sample after the other, as entries may be pixels."""
    q = posterior(model, x)

    def one(key: Key) -> tuple[Array, Array, Any]:
        z, log_q = sample_and_log_prob(q, key)
        rate = log_q - log_prior(model, z)
        return log_likelihood(model, x, z) - rate, rate, entries_of(likelihood(model, z), x)

    def add(total: Tree, k: Array) -> tuple[Any, tuple[Array, Array]]:
        log_w, rate, entries = one(jax.random.fold_in(key, k))
        return jax.tree.map(jnp.add, total, entries), (log_w, rate)

    shapes = jax.eval_shape(lambda: one(jax.random.key(0)))[2]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, (log_w, rate) = jax.lax.scan(add, zeros, jnp.arange(num_samples))
    entries = jax.tree.map(lambda t: -t / num_samples, total)
    observed = (
        _observed(entries, *x)
        if _is_masked(model)
        else jnp.float32(sum(map(jnp.size, jax.tree.leaves(x))))
    )
    return log_mean_exp(log_w), jnp.mean(log_w), jnp.mean(rate), entries, observed


def entries_of(d: Any, x: Tree, mask: Tree | None = None) -> Any:
    """log p_i(x_i) of every entry of one event, nats: 0 in a gap; they sum to log p(x).

    >>> from jaxvae import Normal
    >>> log_p = entries_of(Normal(jnp.zeros(2), jnp.ones(2)), jnp.array([0.0, 1.0]))
    >>> [round(float(value), 3) for value in log_p]
    [-0.919, -1.419]
    """
    d = value_of(d)
    if isinstance(d, Masked):
        return entries_of(d.distribution, *x)
    if isinstance(d, Product):
        masks = [None for _ in d.split(d.parts)] if mask is None else d.split(mask)
        parts = zip(d.split(d.parts), d.split(x), masks, strict=True)
        return d.join([entries_of(*part) for part in parts])
    if event_shape(d) == () or not hasattr(d, "unstack"):
        return log_density(d, x) if mask is None else log_density(Masked(d), (x, mask))
    if mask is not None and jnp.ndim(mask) == 0:  # of a whole pixel
        mask = jnp.broadcast_to(mask, jnp.shape(x)[:1])
    return jax.vmap(entries_of)(arrays(d.unstack()), x, mask)


def _observed(entries: Tree, x: Tree, mask: Tree) -> Array:
    """How many entries are there; a choice is one, however many axes a mask has."""
    like = entries if jax.tree.structure(entries) == jax.tree.structure(x) else x
    pairs = zip(*map(jax.tree.leaves, (like, mask)), strict=True)
    shares = [jnp.mean(mask, dtype=jnp.float32) * jnp.size(entry) for entry, mask in pairs]
    return jnp.sum(jnp.stack(shares))


# Of many.


def _each(
    one: Callable[..., Any], model: Model, key: Key | None, xs: Tree, size: int, **static: int
) -> Any:
    """one(model, key of the row, row) of every row, in NumPy."""
    n = number_of_rows(xs)
    size = min(size, n)
    leaves, treedef = jax.tree.flatten(functional(model))
    moving = [leaf if _is_array(leaf) else None for leaf in leaves]
    fixed = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    key = jax.random.key(0) if key is None else key
    found: list[Any] = []
    for start in range(0, n, size):
        rows = jax.tree.map(lambda a, at=start: _padded(a[at : at + size], size), xs)
        out = _batch(one, treedef, fixed, tuple(static.items()), moving, key, start, rows)
        if found:
            found[-1] = jax.device_get(found[-1])  # while the device works on the next
        found.append(out)
    whole = jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *map(jax.device_get, found))
    return whole


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _batch(
    one: Any,
    treedef: object,
    fixed: Tree,
    static: Any,
    moving: Tree,
    key: Key,
    start: int,
    rows: Tree,
) -> Any:
    leaves = [a if f is None else f for a, f in zip(moving, fixed, strict=True)]
    model = jax.tree.unflatten(treedef, leaves)
    numbers = start + jnp.arange(number_of_rows(rows))
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
    return jax.vmap(lambda k, x: one(model, k, x, **dict(static)))(keys, rows)


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float))


def _padded(rows: Tree, size: int) -> Any:
    """The last batch as long as the others, so that all are one program."""
    short = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], short, axis=0)]) if short else rows


def _is_frame(xs: object) -> bool:
    return type(xs).__name__ == "DataFrame" and hasattr(xs, "columns")


def event_like(model: Model) -> Any:
    """Shapes and dtypes of one x, a pair (x, mask) where p(x|z) is `Masked`; None if undrawable."""

    def draw() -> Any:
        d = likelihood(model, prior(model).sample(jax.random.key(0)))
        return d.sample(jax.random.key(0)) if hasattr(d, "sample") else None

    return jax.eval_shape(draw)


def _rows(owner: str, model: Model, xs: Rows) -> Any:
    """Rows as the model takes them: of a frame by its columns, of gaps a pair (x, mask)."""
    masked = _is_masked(model)
    if _is_frame(xs):
        like = event_like(model)
        xs = _of_frame(owner, xs, like[0] if masked else like)
    pair = isinstance(xs, tuple) and len(xs) == 2
    _check_shapes(owner, model, xs[0] if masked and pair else xs)
    if not masked or pair:
        return jax.tree.map(_as_stored, xs)
    mask = jax.tree.map(lambda a: ~np.isnan(np.asarray(a, np.float32)), xs)
    xs = jax.tree.map(lambda a, m: _as_stored(np.where(m, a, 0)), xs, mask)
    like = event_like(model)[0]
    if jax.tree.structure(xs) == jax.tree.structure(like):  # floats stood for integers with gaps
        xs = jax.tree.map(_as_integers, xs, like)
    return xs, mask


def _as_integers(a: np.ndarray, like: jax.ShapeDtypeStruct) -> np.ndarray:
    """Whole numbers as integers, where the model wants these."""
    whole = np.issubdtype(like.dtype, np.integer) and (a == np.round(a)).all()
    return a.astype(like.dtype) if whole else a


def _check_shapes(owner: str, model: Model, xs: Tree) -> None:
    """ValueError where a row is no x of the model, before a network sees it."""
    like = event_like(model)
    like = like[0] if _is_masked(model) else like
    if jax.tree.structure(xs) == jax.tree.structure(like):
        for leaf, one in zip(jax.tree.leaves(xs), jax.tree.leaves(like), strict=True):
            if jnp.shape(leaf)[1:] != one.shape or not jnp.ndim(leaf):
                raise ValueError(
                    f"{owner}: xs has rows of shape {jnp.shape(leaf)[1:]}, expected {one.shape}; "
                    "its leading axis is that of the rows"
                )


def _is_masked(model: Model) -> bool:
    seen: list[bool] = []

    def look() -> None:
        d = value_of(likelihood(model, prior(model).sample(jax.random.key(0))))
        seen.append(isinstance(d, Masked))

    jax.eval_shape(look)
    return seen[0]


def _as_stored(a: Tree) -> Any:
    """float64 of NumPy or pandas as the floats that JAX computes in."""
    if isinstance(a, np.ndarray) and a.dtype == np.float64:
        return a.astype(jax.dtypes.canonicalize_dtype(np.float64))
    return a


def _of_frame(owner: str, frame: Any, like: Tree) -> Any:
    if isinstance(like, dict):
        if missing := [name for name in like if name not in frame.columns]:
            raise ValueError(f"{owner}: xs has no column {missing[0]!r}, which the model wants")
        return {n: _numbers(owner, frame[[n]], s.dtype).reshape(len(frame), *s.shape)
                for n, s in like.items()}  # fmt: skip
    values = _numbers(owner, frame, np.float32)
    if getattr(like, "shape", None) != values.shape[1:]:
        raise ValueError(
            f"{owner}: xs has {values.shape[1]} columns, expected {getattr(like, 'shape', like)}, "
            "the shape of x; choose them: frame[columns]"
        )
    return values


def _numbers(owner: str, frame: Any, dtype: DTypeLike) -> np.ndarray:
    """A frame's values, in floats where there are gaps."""
    for name, column in frame.items():
        if column.dtype.kind not in "biuf":
            raise TypeError(
                f"{owner}: column {name!r} holds {column.dtype}, expected numbers; code categories "
                "as integers"
            )
    values = frame.to_numpy(np.float64, na_value=np.nan)
    return values.astype(np.float32 if np.isnan(values).any() else dtype)


def _beside(frame: Any, results: dict[str, Any]) -> Any:
    """The frame with results as columns: one of [n], else a column an entry."""
    names = [*frame.columns]
    columns: dict[str, Any] = {}
    for title, values in results.items():
        columns |= _columns(title, values, names)
    return frame.assign(**columns)


def _columns(title: str, values: Tree, names: list[Any]) -> dict[str, np.ndarray]:
    join: Callable[[object], str] = lambda name: f"{title} {name}" if title else str(name)  # noqa: E731
    if isinstance(values, dict):
        return {join(n): np.reshape(v, (len(v), -1)).sum(-1) for n, v in values.items()}
    if np.ndim(values) == 1:
        return {title: values}
    values = np.reshape(values, (len(values), -1))
    named = names if len(names) == values.shape[1] and title != "z" else range(values.shape[1])
    return {join(name): column for name, column in zip(named, values.T, strict=True)}
