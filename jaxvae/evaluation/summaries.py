"""All that one wants to know of a trained model, measured at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.checks import Count, Key, Tree, checked
from jaxvae.evaluation import use
from jaxvae.evaluation.datasets import evaluate
from jaxvae.evaluation.diagnostics import active_units, rate_per_latent
from jaxvae.protocols import MissingMethodError, Model
from jaxvae.pytrees import shown

DRAWS = 10  # of z for each row, for the ELBO


@shown
class Summary(NamedTuple):
    """What a model is worth on a data set: means over rows, in nats.

    Args:
      rows: how many rows the ELBO is a mean over.
      elbo: the bound, -(rate + distortion).
      rate: KL(q(z|x) || p(z)).
      distortion: -log p(x|z).
      spread: the standard deviation of the ELBO over the rows.
      log_marginal: log p(x) by importance sampling, of `estimated` rows drawn at random.
      standard_error: of that, for the noise of importance sampling.
      estimated: how many rows it is of.
      num_samples: importance samples for each.
      ess: the median of their effective number.
      reliable: the share of those rows whose estimate can be trusted, by k-hat.
      gap: log p(x) - ELBO on the same rows: KL(q(z|x) || p(z|x)), what the posterior loses.
      latents: how many numbers z is.
      active: how many of them the model uses, as `active_units`; None if one row can't say.
      rates: of each latent, as `rate_per_latent`; None where that has no closed form.
      skipped: updates that were not made, as they were not finite.
    """

    rows: int
    elbo: float
    rate: float
    distortion: float
    spread: float
    log_marginal: float
    standard_error: float
    estimated: int
    num_samples: int
    ess: float
    reliable: float
    gap: float
    latents: int
    active: int | None
    rates: Any = None
    skipped: int = 0


@checked
def summarize(
    model: Model, key: Key, xs: Tree, *, num_samples: Count = 500, num_rows: Count = 1000
) -> Summary:
    """Measure a model on rows that it was not trained on: bounds, their errors, its latents.

    Args:
      xs: the rows, leaves of leading axis n.
      num_samples: importance samples for log p(x) of each row.
      num_rows: rows whose log p(x) is estimated, drawn at random; all where there are fewer.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> found = summarize(model, jax.random.key(0), jnp.linspace(-1.0, 1.0, 60).reshape(20, 3))
    >>> found.active, abs(found.gap) < 1e-3  # its posterior is exact
    (1, True)
    """
    elbo_key, rows_key, marginal_key, unit_key = jax.random.split(key, 4)
    scores = use.score(model, elbo_key, xs, num_samples=DRAWS)
    n = len(scores.elbo)
    chosen = np.asarray(jax.random.permutation(rows_key, n))[:num_rows]
    some = jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], xs)
    found = evaluate(model, marginal_key, some, num_samples=num_samples)
    units = jax.tree.leaves(active_units(model, xs, key=unit_key))
    active = np.concatenate([np.ravel(unit) for unit in units])
    return Summary(
        rows=n,
        elbo=float(np.mean(scores.elbo)),
        rate=float(np.mean(scores.rate)),
        distortion=float(-np.mean(scores.elbo + scores.rate)),
        spread=float(np.std(scores.elbo)),
        log_marginal=float(found.value),
        standard_error=float(found.standard_error),
        estimated=len(chosen),
        num_samples=num_samples,
        ess=float(np.median(found.rows.ess)),
        reliable=float(found.reliable),
        gap=float(np.mean(found.rows.value - scores.elbo[chosen])),
        latents=active.size,
        active=int(np.sum(active)) if n > 1 else None,
        rates=rates_of(model, xs),
    )


def rates_of(model: Model, xs: Tree) -> np.ndarray | None:
    """The rate of each latent, of a model that has them one by one and in closed form."""
    try:
        return np.asarray(jax.jit(rate_per_latent)(model, xs))
    except (MissingMethodError, NotImplementedError):
        return None
