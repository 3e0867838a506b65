"""Step 4. log p(x) = ELBO + KL(q(z|x) || p(z|x)), whatever q.

    ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z))

The gap is a KL, so it is never negative, and it is zero for the exact posterior alone. In the
linear model all three have closed forms. q is here the posterior N(m, LL') moved or rescaled:

    N(m + t L u, LL'), |u| = 1    gap = t^2 / 2
    N(m, c^2 LL')                 gap = k (c^2 - 1 - 2 log c) / 2
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.plotting import BLACK, BLUE, ORANGE, RED, figure, styled
from experiments.story.common import Array, Digits, Step, with_posterior
from jaxvae import MultivariateNormal, elbo, iwae, kl_divergence, sampled_kl
from jaxvae.models import ppca


def step(digits: Digits, key: Array, *, fast: bool = False) -> Step:
    with jax.enable_x64(True):
        return exact_step(digits, key, fast=fast)


def exact_step(digits: Digits, key: Array, *, fast: bool) -> Step:
    num_draws = 1000 if fast else 5000
    xs = jnp.asarray(digits.all)
    x = xs[0]
    linear = ppca.maximum_likelihood(xs, 8)
    model: Any = ppca.as_vae(linear)
    exact = ppca.log_marginal(linear, x)
    posterior = ppca.posterior(linear, x)
    along = posterior.scale_tril @ jnp.full(8, 8**-0.5)  # L u: one posterior sd off

    def shifted(t: Array) -> MultivariateNormal:
        return MultivariateNormal(posterior.loc + t * along, posterior.scale_tril)

    def scaled(c: Array) -> MultivariateNormal:
        return MultivariateNormal(posterior.loc, c * posterior.scale_tril)

    shifts, scales = jnp.linspace(-3.0, 3.0, 25), jnp.geomspace(0.4, 2.0, 25)
    curves = {}
    for name, family, values in (("shift", shifted, shifts), ("scale", scaled, scales)):
        qs = jax.vmap(family)(values)
        bounds = jax.vmap(lambda q: exact_elbo(linear, q, x))(qs)
        gaps = jax.vmap(lambda q: kl_divergence(q, posterior))(qs)
        curves[name] = tuple(np.asarray(a) for a in (values, bounds, gaps))
    rounding = max(float(np.max(np.abs(b + g - exact))) for _, b, g in curves.values())

    # the library's one-draw elbo has this mean; at the exact posterior it has no spread at all
    keys = jax.random.split(jax.random.fold_in(key, 0), num_draws)

    def draws(keys: Array, q: Any) -> Array:
        one = jax.vmap(lambda k: elbo(with_posterior(model, q), k, x, kl=sampled_kl)[0])
        return jax.jit(one)(keys)

    moved = shifted(jnp.array(1.0))
    moved_draws, posterior_draws = draws(keys, moved), draws(jax.random.clone(keys), posterior)

    # more draws close the gap: K (log p - IWAE_K) -> chi2 / 2 = (exp(t^2) - 1) / 2
    num_samples = (1, 16) if fast else (1, 4, 16, 64, 256)
    iwae_gaps, iwae_errors = [], []
    for count in num_samples:

        def bound(key: Array, count: int = count) -> Array:
            return iwae(with_posterior(model, moved), key, x, num_samples=count)[0]

        bounds = jax.jit(jax.vmap(bound))(
            jax.random.split(jax.random.fold_in(key, count), num_draws)
        )
        iwae_gaps.append(float(exact - bounds.mean()))
        iwae_errors.append(float(bounds.std() / num_draws**0.5))

    numbers = {
        "log_p_exact": float(exact),
        "largest_error_of_elbo_plus_gap": rounding,
        "gap_at_shift_1": float(kl_divergence(moved, posterior)),
        "gap_at_scale_2": float(kl_divergence(scaled(jnp.array(2.0)), posterior)),
        "elbo_at_shift_1_exact": float(exact_elbo(linear, moved, x)),
        "elbo_at_shift_1_draws_mean": float(moved_draws.mean()),
        "elbo_at_shift_1_draws_standard_error": float(moved_draws.std() / num_draws**0.5),
        "elbo_at_shift_1_draws_sd": float(moved_draws.std()),
        "elbo_at_posterior_draws_sd": float(posterior_draws.std()),
        "iwae_samples": list(num_samples),
        "iwae_gaps": iwae_gaps,
        "iwae_standard_errors": iwae_errors,
        "iwae_half_chi2": (np.e - 1.0) / 2.0,
    }
    return Step(numbers, draw(numbers, curves))


def exact_elbo(linear: ppca.PPCA, q: Any, x: Array) -> Array:
    """The ELBO of a Gaussian q with no sampling, as E_q of a quadratic in z needs no more than

    E_q[log N(x; W z + mu, s2 I)] = log N(x; W m + mu, s2 I) - |W L|^2 / (2 s2),  q = N(m, LL').
    """
    model: Any = ppca.as_vae(linear)
    scale_tril = q.scale_tril if isinstance(q, MultivariateNormal) else jnp.diag(q.scale)
    spread = jnp.sum((linear.weight @ scale_tril) ** 2) / (2.0 * linear.variance)
    return model.decode(q.loc).log_prob(x) - spread - kl_divergence(q, model.prior)


@styled
def draw(numbers: dict[str, Any], curves: dict[str, Any]) -> Any:
    exact = numbers["log_p_exact"]
    picture = figure(7.6, 3.1)
    axes = picture.subplots(1, 3)
    labels = {
        "shift": ("mean of q off by t, posterior sd", "Wrong mean: gap t²/2"),
        "scale": ("sd of q, posterior sd", "Wrong sd: too wide costs more"),
    }
    for ax, (name, (label, title)) in zip(axes, labels.items(), strict=False):
        values, bounds, gaps = curves[name]
        ax.axhline(exact, color=BLACK, lw=1.2, label="log p(x)")
        ax.plot(values, bounds, color=BLUE, label="ELBO")
        ax.fill_between(values, bounds, bounds + gaps, color=ORANGE, alpha=0.35, lw=0, label="gap")
        ax.set(title=title, xlabel=label, ylim=(exact - 5.0, exact + 0.6))
    axes[0].set_ylabel("nats")
    axes[1].sharey(axes[0])
    axes[1].legend(loc="lower center")

    ax = axes[2]
    counts = np.array(numbers["iwae_samples"])
    ax.errorbar(
        counts,
        numbers["iwae_gaps"],
        yerr=2.0 * np.array(numbers["iwae_standard_errors"]),
        fmt="o",
        color=RED,
        capsize=2,
        label="measured, ±2 s.e.",
    )
    ax.plot(counts, numbers["iwae_half_chi2"] / counts, "--", color=BLACK, lw=1.2, label="χ² / 2K")
    ax.set(
        title="K draws close it (t = 1)",
        xscale="log",
        yscale="log",
        xlabel="draws K",
        ylabel="log p(x) - IWAE, nats",
        xticks=counts,
        xticklabels=counts,
    )
    ax.minorticks_off()
    ax.legend(loc="lower left")
    return picture
