"""Step 2. p(x) = E_{p(z)}[p(x|z)]: right in the limit by drawing from the prior, never near.

    prior sampling         p(x) ~ 1/N sum_i p(x|z_i),                    z_i ~ p(z)
    importance sampling    p(x) ~ 1/N sum_i p(x|z_i) p(z_i) / q(z_i),    z_i ~ q(z)

The Gaussian densities in there are

    N(x; mu, sigma^2 I) = (2 pi sigma^2)^(-d/2) exp(-|x - mu|^2 / (2 sigma^2))

    log N(x; mu, sigma^2 I) = -d/2 log(2 pi sigma^2) - |x - mu|^2 / (2 sigma^2)

with the exponent d/2 and both minus signs. In probabilistic PCA p(x) is known, which gives the line
to reach.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.plotting import BLACK, BLUE, RED, figure, styled
from experiments.story.common import Array, Digits, Step, with_posterior
from jaxvae import MultivariateNormal, log_marginal
from jaxvae.evaluation import prior_sampling
from jaxvae.models import ppca

WIDER = 1.5  # the importance sampler's standard deviations, in those of the posterior


def step(digits: Digits, key: Array, *, fast: bool = False) -> Step:
    with jax.enable_x64(True):
        return exact_step(digits, key, fast=fast)


def exact_step(digits: Digits, key: Array, *, fast: bool) -> Step:
    sizes = (1, 100, 1_000) if fast else (1, 10, 100, 1_000, 10_000, 100_000)
    seeds = jax.random.split(jax.random.fold_in(key, 0), 3 if fast else 20)
    xs = jnp.asarray(digits.all)
    x = xs[0]

    linear = ppca.maximum_likelihood(xs, 8)
    model: Any = ppca.as_vae(linear)
    exact = ppca.log_marginal(linear, x)  # log N(x; mu, W W' + s2 I)

    # the same estimate from the prior, from a wider q, and from the exact posterior
    wide = with_posterior(model, wider(ppca.posterior(linear, x)))
    prior_runs = over_sizes(prior_sampling, model, seeds, x, sizes)
    wide_runs = over_sizes(log_marginal, wide, seeds, x, sizes)
    one = log_marginal(model, jax.random.fold_in(key, 1), x, num_samples=1)

    # how short both fall against the number of latents, at one N, averaged over digits
    latents = (4,) if fast else (2, 4, 8, 16, 32)
    rows = xs[: 4 if fast else 32]
    row_keys = jax.random.split(jax.random.fold_in(key, 2), len(rows))
    shortfall = [shortfall_at(xs, k, row_keys, rows, sizes[-2]) for k in latents]

    numbers = {
        "log_p_exact": float(exact),
        "sizes": list(sizes),
        "log_p_prior_median": np.median(prior_runs.value, axis=1).tolist(),
        "log_p_prior_lowest": np.min(prior_runs.value, axis=1).tolist(),
        "log_p_prior_highest": np.max(prior_runs.value, axis=1).tolist(),
        "ess_prior_median": np.median(prior_runs.ess, axis=1).tolist(),
        "log_p_wide_median": np.median(wide_runs.value, axis=1).tolist(),
        "ess_wide_median": np.median(wide_runs.ess, axis=1).tolist(),
        "log_p_posterior_one_draw": float(one.value),
        "latents": list(latents),
        "shortfall_size": sizes[-2],
        "shortfall_prior": [prior for prior, _ in shortfall],
        "shortfall_wide": [wide for _, wide in shortfall],
    }
    return Step(numbers, draw(numbers, prior_runs, wide_runs))


def wider(q: MultivariateNormal) -> MultivariateNormal:
    return MultivariateNormal(q.loc, WIDER * q.scale_tril)


def over_sizes(estimate: Any, model: Any, seeds: Array, x: Array, sizes: Any) -> Any:
    """The estimate for every N (rows) and seed (columns)."""

    def run(key: Array) -> Any:
        return [estimate(model, key, x, num_samples=size) for size in sizes]

    return jax.tree.map(lambda *rows: np.stack(rows), *jax.jit(jax.vmap(run))(seeds))


def shortfall_at(
    xs: Array, num_latents: int, keys: Array, rows: Array, num_samples: int
) -> tuple[float, float]:
    """log p(x) less its estimate from the prior, and from a wider posterior; mean over the rows."""
    linear = ppca.maximum_likelihood(xs, num_latents)

    def missing(key: Array, x: Array) -> tuple[Array, Array]:
        model = with_posterior(ppca.as_vae(linear), wider(ppca.posterior(linear, x)))
        exact = ppca.log_marginal(linear, x)
        prior_key, wide_key = jax.random.split(key)
        from_prior = prior_sampling(model, prior_key, x, num_samples=num_samples)
        from_wide = log_marginal(model, wide_key, x, num_samples=num_samples)
        return exact - from_prior.value, exact - from_wide.value

    from_prior, from_wide = jax.jit(jax.vmap(missing))(keys, rows)
    return float(from_prior.mean()), float(from_wide.mean())


@styled
def draw(numbers: dict[str, Any], prior_runs: Any, wide_runs: Any) -> Any:
    sizes = numbers["sizes"]
    picture = figure(7.6, 5.4)
    axes = picture.subplot_mosaic([["value", "value"], ["ess", "latents"]])
    names = {
        "from the prior": (prior_runs, RED, "o-"),
        "from a wider posterior": (wide_runs, BLUE, "s--"),
    }

    ax = axes["value"]
    for name, (runs, colour, line) in names.items():
        ax.plot(sizes, np.median(runs.value, axis=1), line, color=colour, label=name)
        lowest, highest = runs.value.min(axis=1), runs.value.max(axis=1)
        ax.fill_between(sizes, lowest, highest, color=colour, alpha=0.18, lw=0)
    ax.axhline(numbers["log_p_exact"], color=BLACK, lw=1.2, label="exact log p(x)")
    middle = len(sizes) // 2
    short, short_wide = (
        numbers["log_p_exact"] - numbers[f"log_p_{name}_median"][middle]
        for name in ("prior", "wide")
    )
    ax.set(
        title=f"8 latents, {sizes[middle]:,} draws: {short:.1f} nats short from the prior, "
        f"{short_wide:.2f} from a wider posterior",
        ylim=(numbers["log_p_exact"] - 60.0, numbers["log_p_exact"] + 6.0),
        xscale="log",
        xlabel="draws N",
        ylabel="estimate of log p(x), nats",
    )
    ax.legend(loc="lower right")

    ax = axes["ess"]
    for name, (runs, colour, line) in names.items():
        ax.plot(sizes, np.median(runs.ess, axis=1), line, color=colour, label=name)
    ax.plot(sizes, sizes, ":", color=BLACK, lw=1.2, label="all draws count")
    ax.set(
        title="Few of the prior's draws carry the sum",
        xscale="log",
        yscale="log",
        xlabel="draws N",
        ylabel="effective sample size",
    )
    ax.legend(loc="upper left")

    ax = axes["latents"]
    ax.plot(numbers["latents"], numbers["shortfall_prior"], "o-", color=RED)
    ax.plot(numbers["latents"], numbers["shortfall_wide"], "s--", color=BLUE)
    ax.set(
        title=f"{numbers['shortfall_size']:,} draws: the shortfall grows with k",
        xscale="log",
        xlabel="latents k",
        ylabel="log p(x) - estimate, nats",
        xticks=numbers["latents"],
        xticklabels=[str(k) for k in numbers["latents"]],
    )
    ax.minorticks_off()
    ax.axhline(0.0, color=BLACK, lw=1.2)
    return picture
