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
names. What comes back then is the frame with the results as columns beside its own, none of which
may have such a name. Where the likelihood is `Masked`, a plain x is read as the pair (x, mask) with
its NaN for gaps.

A conditional model, a function y -> model, is used with `given=`, the y of each row.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxvae.batching import number_of_rows
from jaxvae.checks import Count, Key, Tree, checked, warn
from jaxvae.evaluation.frames import check_new, columns_of, names_of_latents, nats_of
from jaxvae.evaluation.many_rows import each_row, paired_batches, with_ends
from jaxvae.evaluation.one_row import (
    ahead,
    imputed,
    likelihood_draw,
    likelihood_mean,
    new_draw,
    new_mean,
    posterior_draw,
    posterior_mean,
    remembered,
    scored,
)
from jaxvae.evaluation.rows import (
    Rows,
    events,
    first_model,
    latent_like,
    latents,
    warn_of_outside,
)
from jaxvae.model import Model
from jaxvae.pytrees import shown
from jaxvae.training.batches import is_frame

Used = Model | Callable[[Any], Model]
"""A model, or with `given=` a conditional one, y -> model."""


@shown
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

    Of a posterior that is one z for certain, as of a `VQVAE`, they are that z: indices of codes.

    Args:
      given: of a conditional model, a function y -> model, the y of each row.

    >>> import jax.numpy as jnp
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> encode(model, np.ones((1000, 3))).shape
    (1000, 1)
    """
    one = posterior_mean if key is None else posterior_draw
    if is_frame(xs):
        check_new("encode", xs, names_of_latents(latent_like(first_model(model, given))))
    rows = _rows("encode", model, xs, given)
    zs = each_row(one, model, key, rows, batch_size)
    return xs.assign(**columns_of("z", zs, [])) if is_frame(xs) else zs


@checked
def decode(
    model: Used,
    zs: Rows,
    *,
    key: Key | None = None,
    given: Tree | None = None,
    batch_size: Count = 256,
) -> Any:
    """x of every row of latents: the mean of p(x|z) or, with a key, a draw of it.

    For the mean of labels stands the most probable one.

    Args:
      zs: or a frame with the columns that `encode` gives, `z 0`, `z 1` and so on, or no others.
      given: of a conditional model, a function y -> model, the y of each row.

    >>> import jax.numpy as jnp
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> decode(model, np.array([[0.0], [2.0]])).tolist()  # W z
    [[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]
    """
    one = likelihood_mean if key is None else likelihood_draw
    rows = paired_batches("decode", latents("decode", first_model(model, given), zs), given)
    return each_row(one, model, key, rows, batch_size)


@checked
def reconstruct(
    model: Used, key: Key, xs: Rows, *, given: Tree | None = None, batch_size: Count = 256
) -> Any:
    """The mean of p(x'|z), z ~ q(z|x), of every row: what the model remembers of it.

    For the mean of labels stands the most probable one.

    >>> import jax
    >>> from jaxvae import VAE, Normal, StandardNormal
    >>> encode, decode = lambda x: Normal(x, 0.0), lambda z: Normal(2.0 * z, 1.0)
    >>> model = VAE(encode, decode, StandardNormal((2,)))
    >>> reconstruct(model, jax.random.key(0), np.array([[1.0, 3.0], [0.0, 0.5]])).tolist()
    [[2.0, 6.0], [0.0, 1.0]]
    """
    if is_frame(xs):
        check_new("reconstruct", xs, [f"reconstructed {name}" for name in xs.columns])
    rows = _rows("reconstruct", model, xs, given)
    found = each_row(remembered, model, key, rows, batch_size)
    if not is_frame(xs):
        return found
    return xs.assign(**columns_of("reconstructed", found, [*xs.columns]))


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

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> generate(model, jax.random.key(0), 1000).shape
    (1000, 3)
    """
    if given is not None and (rows := number_of_rows(given, "generate", "given")) != n:
        raise ValueError(f"generate: given has {rows} rows, expected {n}, one for each row to draw")
    one = new_mean if mean else new_draw
    rows = paired_batches("generate", [np.zeros(n, np.float32)], given)
    return each_row(one, model, key, rows, batch_size)


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

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> xs = np.array([[0.0, 0.1, 0.2], [0.0, 0.1, 5.0]])
    >>> scores = score(model, jax.random.key(0), xs)
    >>> bool(scores.iwae[0] > scores.iwae[1]), int(np.argmax(scores.entries[1]))
    (True, 2)
    """
    if is_frame(xs):
        check_new("score", xs, [*Scores._fields, *(f"nats {name}" for name in xs.columns)])
    rows = _rows("score", model, xs, given)
    found = each_row(scored, model, key, rows, batch_size, num_samples=num_samples)
    scores = Scores(*found, per_observed=found[0] / np.maximum(found[-1], 1))
    warn_of_outside("score", scores.iwae)
    if len(np.unique(scores.observed)) > 1:
        warn(
            f"score: rows have {scores.observed.min():g} to {scores.observed.max():g} observed "
            "entries, whose log p(x) can't be compared; compare per_observed",
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
    num_draws: Count | None = None,
    given: Tree | None = None,
    batch_size: Count = 256,
) -> Any:
    """Every row with E[x_missing|x_observed] in its gaps, as `evaluation.impute` of one.

    Args:
      xs: pairs (x, mask), or x or a frame with NaN in its gaps.
      num_samples: K of the importance sampling.
      num_draws: in place of the mean so many draws of p(x_missing|x_observed), as
        `evaluation.multiple_imputations`: [n, num_draws, ...], or a list of frames. Their quantiles
        are intervals: np.quantile(draws, (0.05, 0.95), axis=1).
      given: of a conditional model, a function y -> model, the y of each row.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxvae import VAE, Masked, Normal, StandardNormal
    >>> encode = lambda event: Normal(event[0][0], 0.1)  # of (x, mask)
    >>> decode = lambda z: Masked(Normal(jnp.stack([z, 2.0 * z]), 0.1))
    >>> xs = np.array([[1.0, np.nan], [2.0, np.nan]])
    >>> impute(VAE(encode, decode, StandardNormal(())), jax.random.key(0), xs).round(1).tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    rows = _rows("impute", model, xs, given)
    how = {"num_samples": num_samples, "num_draws": num_draws}
    found, log_p = each_row(imputed, model, key, rows, batch_size, **how)
    warn_of_outside("impute", log_p)
    if not is_frame(xs):
        return found
    if num_draws is None:
        return _filled(xs, found)
    return [_filled(xs, jax.tree.map(lambda a, k=k: a[:, k], found)) for k in range(num_draws)]


def _filled(xs: Any, found: Tree) -> Any:
    """The frame with what was found in its gaps."""
    filled = xs.copy()
    for name, values in columns_of("", found, [*xs.columns]).items():
        if name in xs and (gaps := xs[name].isna()).any():
            column = xs[name] if xs[name].dtype.kind == "f" else xs[name].astype(float)
            filled[name] = column.where(~gaps, values)
    return filled


@checked
def forecast(
    model: Used,
    key: Key,
    xs: Rows,
    *,
    steps: Count,
    num_samples: Count = 100,
    quantiles: Sequence[float] | None = None,
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

    >>> import jax
    >>> from jax.tree_util import Partial
    >>> from jaxvae import VAE, Normal
    >>> from jaxvae.models import Markov, emissions
    >>> walk = Markov(Normal(0.0, 1.0), Partial(lambda z: Normal(z, 1.0)), 4)
    >>> see = Partial(lambda x: Normal(x, 0.01))
    >>> model = VAE(see, Partial(emissions, lambda z: Normal(z, 0.1)), walk)
    >>> forecast(model, jax.random.key(0), np.ones((5, 4)), steps=6, quantiles=(0.05, 0.95)).shape
    (5, 2, 6)
    """
    if quantiles is not None:
        if np.ndim(quantiles) != 1 or not all(0 <= q <= 1 for q in quantiles):
            raise ValueError(
                f"forecast: quantiles is {quantiles}, expected numbers in 0..1, as (0.05, 0.95)"
            )
        quantiles = tuple(map(float, quantiles))
    first = first_model(model, given)
    series = with_ends(first, events("forecast", first, xs), steps)
    how = {"steps": steps, "num_samples": num_samples, "quantiles": quantiles}
    return each_row(ahead, model, key, paired_batches("forecast", series, given), batch_size, **how)


def _rows(owner: str, model: Used, xs: Rows, given: Tree | None) -> Iterator[Any]:
    return paired_batches(owner, events(owner, first_model(model, given), xs), given)
