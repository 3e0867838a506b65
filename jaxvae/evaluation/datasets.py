"""A trained model over a data set: log p(x) with its error, latents, reconstructions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxvae.checks import Count, Key, Tree, checked, warn
from jaxvae.evaluation.marginal import LogMarginal, log_marginal
from jaxvae.evaluation.programs import of_each
from jaxvae.evaluation.rows import model_at, or_else, paired, warn_of_outside
from jaxvae.model import Model, likelihood, posterior
from jaxvae.protocols import mean_of
from jaxvae.pytrees import shown, wide
from jaxvae.training.monitoring import NEGLIGIBLE


@shown
class Evaluation(NamedTuple):
    """Log p(x) over a data set, in nats.

    Args:
      value: the mean over the rows.
      standard_error: of that mean, for the noise of importance sampling: of the same rows, drawn
        for again. How it varies with the rows is `jnp.std(rows.value) / sqrt(n)`.
      reliable: the share of rows whose estimate can be trusted, by k-hat.
      rate: the mean of KL(q(z|x) || p(z)); 0 is a posterior that has collapsed to the prior.
      rows: of each row, leaves [n].
    """

    value: Array
    standard_error: Array
    reliable: Array
    rate: Array
    rows: LogMarginal


@checked
def evaluate(
    model: Model | Callable[[Any], Model],
    key: Key,
    xs: Tree,
    *,
    num_samples: Count,
    given: Tree | None = None,
    batch_size: Count | None = None,
) -> Evaluation:
    """Mean log p(x) of a data set by importance sampling, its error, and how far to trust it.

    It warns where every posterior is the prior, which makes the estimate exact and the latents
    idle, and of rows to which the likelihood gives no probability. Compiled once for a model's
    structure and shapes; under `jax.jit` nothing is warned of.

    Args:
      num_samples: draws for each row, as `log_marginal` takes them.
      given: of a conditional model, a function y -> model, the y of each row: log p(x|y).
      batch_size: rows at a time; by default as many as fit into the caches, or on an accelerator
        into its memory. No number depends on it.

    >>> from jaxvae.models import ppca
    >>> linear = ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5))
    >>> found = evaluate(ppca.as_vae(linear), jax.random.key(0), jnp.ones((5, 3)), num_samples=50)
    >>> exact = ppca.log_marginal(linear, jnp.ones(3))
    >>> bool(jnp.isclose(found.value, exact, atol=1e-4)), found.rows.value.shape
    (True, (5,))
    """
    rows = paired("evaluate", model, xs, given)
    keys = jax.random.split(key, len(jax.tree.leaves(xs)[0]))
    rows = of_each(_log_marginal, model, (keys, rows), batch_size, num_samples, fewest=1)
    found = Evaluation(
        value=jnp.mean(wide(rows.value)),
        standard_error=jnp.sqrt(jnp.sum(jnp.square(rows.standard_error))) / len(keys),
        reliable=jnp.mean(rows.reliable),
        rate=jnp.mean(wide(rows.rate)),
        rows=rows,
    )
    warn_of_outside("evaluate", rows.value)
    if not isinstance(found.rate, Tracer) and np.mean(np.abs(rows.rate)) < NEGLIGIBLE:
        warn(
            f"evaluate: the rate is {abs(float(found.rate)):.2f} nats: every posterior is the "
            "prior, so that the model does without its latents; train it again with beta warmed up "
            "from 0, beta=optax.linear_schedule(0.0, 1.0, steps)",
        )
    return found


@checked
def encode_all(
    model: Model | Callable[[Any], Model],
    xs: Tree,
    *,
    of: Callable[[Any], Any] = mean_of,
    given: Tree | None = None,
    batch_size: Count | None = None,
) -> Any:
    """Of every q(z|x) its mean, stacked: the latents of a data set, [n, ...].

    Args:
      of: q(z|x) -> what is wanted of it, arrays; `lambda q: q` is the distributions, stacked.
      given: of a conditional model, a function y -> model, the y of each row.
      batch_size: rows at a time; by default as many as fit into the caches.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> encode_all(model, jnp.ones((5, 3))).shape
    (5, 1)
    """
    rows = paired("encode_all", model, xs, given)
    with or_else("encode_all: use.encode(model, xs, key=key) draws z"):
        return of_each(_encoded, model, rows, batch_size, of)


@checked
def decode_all(
    model: Model | Callable[[Any], Model],
    zs: Tree,
    *,
    of: Callable[[Any], Any] = mean_of,
    given: Tree | None = None,
    batch_size: Count | None = None,
) -> Any:
    """Of every p(x|z) its mean, stacked: what the latents zs are of, [n, ...].

    `decode_all(model, encode_all(model, xs))` are reconstructions. Arguments as `encode_all`'s.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> decode_all(model, jnp.array([[0.0], [2.0]])).tolist()  # W z
    [[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]
    """
    rows = paired("decode_all", model, zs, given, "zs")
    with or_else("decode_all: use.decode(model, zs, key=key) draws x"):
        return of_each(_decoded, model, rows, batch_size, of)


def _log_marginal(num_samples: int, model: Any, row: tuple[Array, Any]) -> LogMarginal:
    key, (x, y) = row
    return log_marginal(model_at(model, y), key, x, num_samples=num_samples)


def _encoded(of: Callable[[Any], Any], model: Any, row: tuple[Any, Any]) -> Any:
    x, y = row
    return of(posterior(model_at(model, y), x))


def _decoded(of: Callable[[Any], Any], model: Any, row: tuple[Any, Any]) -> Any:
    z, y = row
    return of(likelihood(model_at(model, y), z))
