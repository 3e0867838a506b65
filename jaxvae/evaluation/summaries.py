"""All that one wants to know of a trained model, measured at once."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.checks import Count, Key, Tree, a_class_of, checked
from jaxvae.evaluation import use
from jaxvae.evaluation.datasets import evaluate
from jaxvae.evaluation.diagnostics import active_units, rate_per_latent, rate_per_level
from jaxvae.evaluation.rows import model_at
from jaxvae.evaluation.use import Used
from jaxvae.model import posterior, prior
from jaxvae.protocols import MissingMethodError, is_certain
from jaxvae.pytrees import shown, value_of

DRAWS = 10  # of z for each row, for the ELBO


@shown
class Summary(NamedTuple):
    """What a model is worth on a data set: means over rows, in nats.

    Args:
      rows: how many rows the ELBO is a mean over.
      elbo: the bound, -(rate + distortion).
      rate: KL(q(z|x) || p(z)).
      distortion: -log p(x|z).
      spread: the standard deviation of the ELBO over the rows; NaN of one row.
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
      skipped: updates that were not made, as they were not finite, where whoever trained says so.
      certain: whether q(z|x) is one z for certain, as the code of a VQ-VAE: then log p(x) is the
        ELBO, a bound, however many samples there are.
      level_rates: of each level of a hierarchy given the one above, where that has levels.
      no_rates: why there are rates of neither latents nor levels, in a sentence or two.
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
    certain: bool = False
    level_rates: Any = None
    no_rates: str = ""


@checked
def summarize(
    model: Used,
    key: Key,
    xs: Tree,
    *,
    given: Tree | None = None,
    num_samples: Count = 500,
    num_rows: Count = 1000,
) -> Summary:
    """Measure a model on rows that it was not trained on: bounds, their errors, its latents.

    Args:
      xs: the rows, leaves of leading axis n.
      given: of a conditional model, a function y -> model, the y of each row: all is of p(x|y).
      num_samples: importance samples for log p(x) of each row.
      num_rows: rows whose log p(x) is estimated, drawn at random; all where there are fewer.

    Raises:
      ValueError: the ELBO of a row is NaN.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> found = summarize(model, jax.random.key(0), jnp.linspace(-1.0, 1.0, 60).reshape(20, 3))
    >>> found.active, abs(found.gap) < 1e-3  # its posterior is exact
    (1, True)
    """
    elbo_key, rows_key, marginal_key, unit_key, rate_key = jax.random.split(key, 5)
    scores = use.score(model, elbo_key, xs, given=given, num_samples=DRAWS)
    n = len(scores.elbo)
    if (bad := np.isnan(scores.elbo)).any():
        raise ValueError(
            f"summarize: the ELBO is NaN at {bad.sum()} of {n} rows, first at {bad.argmax()}, as "
            "there is NaN in them, or the model gives NaN; leave them out, or mend the model"
        )
    chosen = np.asarray(jax.random.permutation(rows_key, n))[:num_rows]
    some, their_y = jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], (xs, given))
    found = evaluate(model, marginal_key, some, given=their_y, num_samples=num_samples)
    units = jax.tree.leaves(active_units(model, xs, given=given, key=unit_key))
    active = np.concatenate([np.ravel(unit) for unit in units])
    summary = Summary(
        rows=n,
        elbo=float(np.mean(scores.elbo)),
        rate=float(np.mean(scores.rate)),
        distortion=float(-np.mean(scores.elbo + scores.rate)),
        spread=float(np.std(scores.elbo, ddof=1)) if n > 1 else math.nan,
        log_marginal=float(found.value),
        standard_error=float(found.standard_error),
        estimated=len(chosen),
        num_samples=num_samples,
        ess=float(np.median(found.rows.ess)),
        reliable=float(found.reliable),
        gap=float(np.mean(found.rows.value - scores.elbo[chosen])),
        latents=active.size,
        active=int(np.sum(active)) if n > 1 else None,
    )
    return with_rates(summary, model, rate_key, xs, given=given)


def with_rates(
    summary: Summary, model: Used, key: Key, xs: Tree, *, given: Tree | None = None
) -> Summary:
    """The summary with the rate of each latent or level, or why there is none."""
    q, p = _kinds(model, xs, given)
    summary = summary._replace(certain=is_certain(q))
    try:
        return summary._replace(rates=np.asarray(rate_per_latent(model, xs, given=given)))
    except (MissingMethodError, NotImplementedError):
        rates = np.asarray(rate_per_level(model, key, xs, given=given))
    if len(rates) > 1:
        return summary._replace(level_rates=rates)
    return summary._replace(
        no_rates="Each latent has a rate of its own where they are independent numbers under "
        "q(z|x) and p(z), with a KL in closed form. Here q(z|x) is "
        f"{a_class_of(q)} and p(z) {a_class_of(p)}; the rate in the table is of all together."
    )


def _kinds(model: Any, xs: Tree, given: Tree | None) -> tuple[Any, Any]:
    """q(z|x) and p(z) of the first row, traced: what is asked is their classes."""
    seen: list[Any] = []

    def look(x: Tree, y: Tree | None) -> None:
        at = model_at(model, y)
        seen.extend(value_of(d) for d in (posterior(at, x), prior(at)))

    jax.eval_shape(look, *jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], (xs, given)))
    return seen[0], seen[1]
