"""A trained model in use: over all rows of an array, a tree of arrays, a stream or a data frame.

    encode, decode         x -> z, z -> x
    score                  how likely each row is, and which of its entries make it unlikely
    generate, reconstruct  new rows, and what the model remembers of given ones
    impute                 what stands in the gaps
    forecast               what comes after the end of each series

`from jaxvae import use`, then `use.encode(model, xs)`. Rows go through one compiled program,
`batch_size` at a time, and come back as NumPy arrays; row i draws with `fold_in(key, i)`, whatever
the batch size. Networks are as in use: running statistics, no noise.

A stream is whatever gives batches of rows when it is iterated, as `fit` takes it: a list of them, a
loader, a generator. What comes back is of all its rows in order, the same as of one array; the rows
themselves are not kept, so that only the results have to fit into memory.

A pandas frame is rows by its columns: those of an array in their order, those of a `Product` by its
names. What comes back then is the frame with the results as columns beside its own. Where the
likelihood is `Masked`, a plain x is read as the pair (x, mask) with its NaN for gaps.

A conditional model, a function y -> model, is used with `given=`, the y of each row.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxvae.batching import batch_size as number_of_rows
from jaxvae.bounds.importance_weights import log_prior
from jaxvae.bounds.reductions import log_mean_exp
from jaxvae.checks import Count, Key, Tree, checked
from jaxvae.distributions import Masked, Product
from jaxvae.evaluation import imputation
from jaxvae.evaluation.chunks import chunked
from jaxvae.evaluation.rows import (
    Rows,
    beside,
    columns_of,
    events,
    first_model,
    is_frame,
    is_masked,
    latents,
    model_at,
    nats_of,
    of_one_length,
    or_else,
    warn_of_outside,
)
from jaxvae.protocols import (
    MissingMethodError,
    Model,
    event_shape,
    likelihood,
    log_density,
    log_likelihood,
    mean_of,
    method_of,
    posterior,
    prior,
    sample_and_log_prob,
)
from jaxvae.pytrees import arrays, value_of
from jaxvae.pytrees.libraries import functional

Used = Model | Callable[[Any], Model]
"""A model, or with `given=` a conditional one, y -> model."""


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
def encode(
    model: Used,
    xs: Rows,
    *,
    key: Key | None = None,
    given: Tree | None = None,
    batch_size: Count = 256,
) -> Any:
    """The latents of every row: the mean of q(z|x) or, with a key, a draw of it.

    Args:
      given: of a conditional model, a function y -> model, the y of each row.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> encode(model, np.ones((1000, 3))).shape
    (1000, 1)
    """
    one = _posterior_mean if key is None else _posterior_draw
    rows = _paired("encode", events("encode", first_model(model, given), xs), given)
    zs = _each(one, model, key, rows, batch_size)
    return beside(xs, {"z": zs}) if is_frame(xs) else zs


@checked
def decode(
    model: Used,
    zs: Rows,
    *,
    key: Key | None = None,
    given: Tree | None = None,
    batch_size: Count = 256,
) -> Any:
    """x of every row of latents: the mean of p(x|z) or, with a key, a draw of it."""
    one = _likelihood_mean if key is None else _likelihood_draw
    rows = _paired("decode", latents("decode", first_model(model, given), zs), given)
    return _each(one, model, key, rows, batch_size)


@checked
def reconstruct(
    model: Used, key: Key, xs: Rows, *, given: Tree | None = None, batch_size: Count = 256
) -> Any:
    """The mean of p(x'|z), z ~ q(z|x), of every row: what the model remembers of it."""
    rows = _paired("reconstruct", events("reconstruct", first_model(model, given), xs), given)
    found = _each(_remembered, model, key, rows, batch_size)
    return beside(xs, {"reconstructed": found}) if is_frame(xs) else found


@checked
def generate(
    model: Used,
    key: Key,
    n: Count,
    *,
    mean: bool = False,
    given: Tree | None = None,
    batch_size: Count = 256,
) -> Any:
    """n new rows: draws of p(x|z), z ~ p(z), or with `mean` the means of these p(x|z).

    The z of a key are the same in both.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> generate(model, jax.random.key(0), 1000).shape
    (1000, 3)
    """
    one = _new_mean if mean else _new_draw
    rows = _paired("generate", [np.zeros(n, np.float32)], given)
    return _each(one, model, key, rows, batch_size)


@checked
def score(
    model: Used,
    key: Key,
    xs: Rows,
    *,
    num_samples: Count = 100,
    given: Tree | None = None,
    batch_size: Count = 256,
) -> Any:
    """How likely each row is, in nats, and what makes it unlikely: `Scores`, or a frame with them.

    It warns where rows have different gaps: log p of three observed entries is no worse than log p
    of two because it is lower. `per_observed` is there for that. It warns too of rows to which the
    likelihood gives no probability, whose log p(x) is -inf.

    Args:
      num_samples: K of the importance-weighted bound.
      given: of a conditional model, a function y -> model, the y of each row.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> xs = np.array([[0.0, 0.1, 0.2], [0.0, 0.1, 5.0]])
    >>> scores = score(model, jax.random.key(0), xs)
    >>> bool(scores.iwae[0] > scores.iwae[1]), int(np.argmax(scores.entries[1]))
    (True, 2)
    """
    rows = _paired("score", events("score", first_model(model, given), xs), given)
    found = _each(scored, model, key, rows, batch_size, num_samples=num_samples)
    scores = Scores(*found, per_observed=found[0] / np.maximum(found[-1], 1))
    warn_of_outside("score", scores.iwae)
    if len(np.unique(scores.observed)) > 1:
        warnings.warn(
            f"score: rows have {scores.observed.min():g} to {scores.observed.max():g} observed "
            "entries, whose log p(x) can't be compared; compare per_observed",
            stacklevel=3,
        )
    if not is_frame(xs):
        return scores
    columns = {name: column for name, column in scores._asdict().items() if name != "entries"}
    return xs.assign(**columns, **nats_of(xs, scores.entries))


@checked
def impute(
    model: Used,
    key: Key,
    xs: Rows,
    *,
    num_samples: Count = 100,
    given: Tree | None = None,
    batch_size: Count = 256,
) -> Any:
    """Every row with E[x_missing|x_observed] in its gaps, as `evaluation.impute` of one.

    Args:
      xs: pairs (x, mask), or x or a frame with NaN in its gaps.
    """
    rows = _paired("impute", events("impute", first_model(model, given), xs), given)
    found = _each(_imputed, model, key, rows, batch_size, num_samples=num_samples)
    if not is_frame(xs):
        return found
    values = columns_of("", found, [*xs.columns])
    there = [name for name in xs.columns if name in values]
    return xs.assign(**{name: xs[name].where(xs[name].notna(), values[name]) for name in there})


@checked
def forecast(
    model: Used,
    key: Key,
    xs: Rows,
    *,
    steps: Count,
    num_samples: Count = 100,
    quantiles: tuple[float, ...] | None = None,
    given: Tree | None = None,
    batch_size: Count = 256,
) -> Any:
    """The next `steps` steps of every series, behind the last one seen of it: draws or quantiles.

    z_{1:t} ~ q(z|x_{1:t}), then z_{t+1:t+steps} ~ p(z|z_t), then x ~ p(x|z): [n, num_samples,
    steps, ...]. Of a chain of latents as `models.Markov`; where the likelihood is `Masked`, t is
    where the row's mask ends, and else the length. It may go beyond the padded length, as a
    decoder like `models.emissions` takes any. The draws have equal weights: q is trusted.

    Args:
      quantiles: of the draws, in their place: (0.05, 0.95) is an interval of 90 %,
        [n, 2, steps, ...].
      given: of a conditional model, a function y -> model, the y of each row.

    Raises:
      ValueError: of a row nothing is seen, or the chain has a context, which does not go so far.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import VAE, Normal
    >>> from jaxvae.models import Markov, emissions
    >>> walk = Markov(Normal(0.0, 1.0), Partial(lambda z: Normal(z, 1.0)), 4)
    >>> see = Partial(lambda x: Normal(x, 0.01))
    >>> model = VAE(see, Partial(emissions, lambda z: Normal(z, 0.1)), walk)
    >>> forecast(model, jax.random.key(0), np.ones((5, 4)), steps=6, quantiles=(0.05, 0.95)).shape
    (5, 2, 6)
    """
    if quantiles is not None and not all(0 <= q <= 1 for q in quantiles):
        raise ValueError(f"forecast: quantiles are {quantiles}, expected numbers in 0..1")
    first = first_model(model, given)
    series = _with_ends(first, events("forecast", first, xs), steps)
    how = {"steps": steps, "num_samples": num_samples, "quantiles": quantiles}
    return _each(_ahead, model, key, _paired("forecast", series, given), batch_size, **how)


# Of one row.


def _posterior_mean(model: Model, key: Key, x: Tree) -> Any:
    del key
    with or_else("encode: give it a key, use.encode(model, xs, key=key), and it draws z"):
        return mean_of(posterior(model, x))


def _posterior_draw(model: Model, key: Key, x: Tree) -> Any:
    return posterior(model, x).sample(key)


def _likelihood_mean(model: Model, key: Key, z: Tree) -> Any:
    del key
    with or_else("decode: give it a key, use.decode(model, zs, key=key), and it draws x"):
        return mean_of(likelihood(model, z))


def _likelihood_draw(model: Model, key: Key, z: Tree) -> Any:
    d = likelihood(model, z)
    return (d.distribution if isinstance(d, Masked) else d).sample(key)


def _remembered(model: Model, key: Key, x: Tree) -> Any:
    z = posterior(model, x).sample(key)
    with or_else("reconstruct: draw, use.decode(model, use.encode(model, xs, key=k), key=l)"):
        return mean_of(likelihood(model, z))


def _new_mean(model: Model, key: Key, x: Tree) -> Any:
    del x
    z_key, _ = jax.random.split(key)  # the z of _new_draw
    z = prior(model).sample(z_key)
    with or_else("generate: leave out mean=True, and it draws x"):
        return mean_of(likelihood(model, z))


def _new_draw(model: Model, key: Key, x: Tree) -> Any:
    del x
    z_key, x_key = jax.random.split(key)
    return _likelihood_draw(model, x_key, prior(model).sample(z_key))


def _imputed(model: Model, key: Key, x: Tree, num_samples: int) -> Any:
    return imputation.impute(model, key, x, num_samples=num_samples)


def _ahead(
    model: Model,
    key: Key,
    series: tuple[Any, Array],
    steps: int,
    num_samples: int,
    quantiles: tuple[float, ...] | None,
) -> Any:
    x, t = series
    q, after = posterior(model, x), method_of(prior(model), "after", "forecast")

    def draw(k: Array) -> Any:
        z_key, ahead_key, x_key = jax.random.split(jax.random.fold_in(key, k), 3)
        z = q.sample(z_key)
        ahead = after(z, t, steps).sample(ahead_key)
        # the whole chain, as a decoder may look back; what is behind t + steps is not looked at
        z = jax.tree.map(
            lambda a, b: jax.lax.dynamic_update_slice_in_dim(jnp.concatenate([a, b]), b, t, 0),
            z,
            ahead,
        )
        x = _likelihood_draw(model, x_key, z)
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, t, steps), x)

    xs = jax.lax.map(draw, jnp.arange(num_samples))
    if quantiles is None:
        return xs
    return jax.tree.map(lambda a: jnp.quantile(a.astype(float), jnp.array(quantiles), axis=0), xs)


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
        if is_masked(model)
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
    parts = None if event_shape(d) == () else _independent(d)
    if parts is None:
        return log_density(d, x) if mask is None else log_density(Masked(d), (x, mask))
    if mask is not None and jnp.ndim(mask) == 0:  # of a whole pixel
        mask = jnp.broadcast_to(mask, jnp.shape(x)[:1])
    return jax.vmap(entries_of)(arrays(parts), x, mask)


def _independent(d: Any) -> Any:
    """Its independent parts, stacked; None where they aren't, as channels that are coupled."""
    try:
        return method_of(d, "unstack")()
    except MissingMethodError:
        return None


def _observed(entries: Tree, x: Tree, mask: Tree) -> Array:
    """How many entries are there; a choice is one, however many axes a mask has."""
    like = entries if jax.tree.structure(entries) == jax.tree.structure(x) else x
    pairs = zip(*map(jax.tree.leaves, (like, mask)), strict=True)
    shares = [jnp.mean(mask, dtype=jnp.float32) * jnp.size(entry) for entry, mask in pairs]
    return jnp.sum(jnp.stack(shares))


# Of many.


def _with_ends(model: Model, batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """Batches of (x, t), t the last step seen of each row."""
    masked, chain, start = is_masked(model), value_of(prior(model)), 0
    for x in batches:
        ends = _ends(x[1] if masked else jax.tree.map(np.ones_like, x))
        if not ends.all():
            row = start + int(np.argmin(ends))
            raise ValueError(f"forecast: row {row} has no step seen, expected one at least")
        if getattr(chain, "context", None) is not None and (ends + steps > chain.length).any():
            raise ValueError(
                f"forecast: steps is {steps}, expected at most {chain.length - ends.max()} behind "
                f"{ends.max()} steps seen, as the prior's context has {chain.length} steps"
            )
        start += len(ends)
        yield x, ends


def _ends(masks: Tree) -> np.ndarray:
    """How many steps until the last one seen, [n], of masks [n, T, ...]."""
    flat = [np.asarray(m, bool).reshape(*m.shape[:2], -1).any(-1) for m in jax.tree.leaves(masks)]
    seen = np.any(flat, axis=0)
    return np.where(seen, np.arange(1, seen.shape[1] + 1), 0).max(1).astype(np.int32)


def _paired(owner: str, batches: Iterable[Any], given: Tree | None) -> Iterator[Any]:
    """Batches of rows (x, y) for `model_at(model, y)`."""
    if given is None:
        for batch in batches:
            yield batch, None
        return
    rows, start = number_of_rows(given, owner, "given"), 0
    for batch in batches:
        part = slice(start, start + len(jax.tree.leaves(batch)[0]))
        start = part.stop
        if start > rows:
            break
        yield batch, jax.tree.map(lambda leaf, part=part: np.asarray(leaf)[part], given)
    if start != rows:
        raise ValueError(f"{owner}: given has {rows} rows, expected one for each row of the data")


def _each(
    one: Callable[..., Any],
    model: Any,
    key: Key | None,
    batches: Iterable[Any],
    size: int,
    **static: Any,
) -> Any:
    """one(model, key of the row, x) of every row (x, y) of the batches, in NumPy."""
    leaves, treedef = jax.tree.flatten(functional(model))
    moving = [leaf if _is_array(leaf) else None for leaf in leaves]
    fixed = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    key = jax.random.key(0) if key is None else key
    found: list[Any] = []
    done = 0
    for rows, count in of_one_length(batches, size):
        out = _batch(one, treedef, fixed, tuple(static.items()), moving, key, done, rows)
        if found:
            found[-1] = jax.device_get(found[-1])  # while the device works on the next
        found.append(out)
        done += count
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:done], *map(jax.device_get, found))


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

    def of_row(row: tuple[Any, ...]) -> Any:
        key, x, y = row
        return one(model_at(model, y), key, x, **dict(static))

    return chunked(of_row, (keys, *rows))


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float))
