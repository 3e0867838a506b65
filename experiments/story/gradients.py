"""Step 5. Two unbiased gradients of the same ELBO; one of them is far noisier.

With log w(z) = log p(x, z) - log q(z), ELBO = E_q[log w(z)]; its gradient in the mean of q is

    reparameterization    d/dmu log w(mu + sigma eps),       eps ~ N(0, I)
    score function        (log w(z) - b) d/dmu log q(z),     z ~ q, any constant b

The first uses the slope of log w, the second only its value. q is the linear model's posterior
with its mean one posterior sd off along every axis and its sd times c; the gradient is taken in t,
the shift in posterior sds. Then the exact gradient is -1 in each of the k components, and the first
estimator's total variance is k c^2.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from experiments.common.plotting import BLACK, BLUE, ORANGE, RED, figure, styled
from experiments.story.common import Array, Digits, Step, with_posterior
from experiments.story.lower_bound import exact_elbo
from jaxvae import Normal, elbo, pathwise, sampled_kl, sticking_the_landing
from jaxvae.models import ppca

ESTIMATORS = ("reparameterization", "sticking", "score", "score_baseline")


def step(digits: Digits, key: Array, *, fast: bool = False) -> Step:
    with jax.enable_x64(True):
        return exact_step(digits, key, fast=fast)


def exact_step(digits: Digits, key: Array, *, fast: bool) -> Step:
    num_draws = 500 if fast else 20_000
    scales = np.array([0.3, 1.0, 3.0]) if fast else np.geomspace(0.05, 2.0, 9)
    latents = (2,) if fast else (1, 2, 4, 8, 16, 32)
    xs = jnp.asarray(digits.all)

    by_scale = measure(xs, 8, jnp.asarray(scales), jax.random.fold_in(key, 0), num_draws)
    by_latents = [
        measure(xs, k, jnp.ones(1), jax.random.fold_in(key, k), num_draws) for k in latents
    ]
    numbers: dict[str, Any] = {
        "scales": scales.tolist(),
        "latents": list(latents),
        "exact_gradient_per_component": float(by_scale["exact"].mean()),
        "largest_mean_error_in_standard_errors": max(
            float(m[f"{name}_error"].max()) for m in (by_scale, *by_latents) for name in ESTIMATORS
        ),
    }
    for name in ESTIMATORS:
        numbers[f"variance_by_scale_{name}"] = by_scale[name].tolist()
        numbers[f"variance_by_latents_{name}"] = [float(m[name][0]) for m in by_latents]
    return Step(numbers, draw(numbers))


def measure(xs: Array, k: int, scales: Array, key: Array, num_draws: int) -> dict[str, Array]:
    """For every c: the total variance of one draw, and the mean's error in standard errors."""
    linear = ppca.maximum_likelihood(xs, k)
    model: Any = ppca.as_vae(linear)
    x = xs[0]
    p = ppca.posterior(linear, x)
    posterior_sd = jnp.diagonal(p.scale_tril)  # W'W is diagonal here, so p(z|x) is too
    t = jnp.ones(k)

    def q_of(t: Array, c: Array) -> Normal:
        return Normal(p.loc + posterior_sd * t, c * posterior_sd)

    def bound(t: Array, c: Array, key: Array, gradient: Any = pathwise) -> Array:
        vae = with_posterior(model, q_of(t, c))
        return elbo(vae, key, x, kl=sampled_kl, gradient=gradient)[0]

    def score_surrogate(t: Array, c: Array, key: Array, baseline: Array) -> Array:
        q = q_of(t, c)
        z = stop_gradient(q.sample(key))
        log_w = model.decode(z).log_prob(x) + model.prior.log_prob(z) - q.log_prob(z)
        return stop_gradient(log_w - baseline) * q.log_prob(z)  # slope (log w - b) d/dt log q

    def at_scale(c: Array, key: Array) -> dict[str, Array]:
        exact = jax.grad(lambda t: exact_elbo(linear, q_of(t, c), x))(t)
        pilot_key, *keys = jax.random.split(key, 5)
        pilots = jax.vmap(lambda key: bound(t, c, key))(jax.random.split(pilot_key, 1000))
        estimators = {
            "reparameterization": lambda key: jax.grad(bound)(t, c, key),
            "sticking": lambda key: jax.grad(bound)(t, c, key, sticking_the_landing),
            "score": lambda key: jax.grad(score_surrogate)(t, c, key, jnp.zeros(())),
            "score_baseline": lambda key: jax.grad(score_surrogate)(t, c, key, jnp.mean(pilots)),
        }
        found = {"exact": exact}
        for k, (name, estimate) in zip(keys, estimators.items(), strict=True):
            draws = jax.vmap(estimate)(jax.random.split(k, num_draws))
            found[name] = jnp.sum(jnp.var(draws, axis=0))
            # sticking at c = 1 has no spread but rounding, hence the floor
            standard_error = jnp.maximum(jnp.std(draws, axis=0) / num_draws**0.5, 1e-9)
            found[f"{name}_error"] = jnp.abs(draws.mean(axis=0) - exact) / standard_error
        return found

    keys = jax.random.split(key, len(scales))
    return jax.jit(lambda pairs: jax.lax.map(lambda pair: at_scale(*pair), pairs))((scales, keys))


@styled
def draw(numbers: dict[str, Any]) -> Any:
    picture = figure(7.6, 3.6)
    left, right = picture.subplots(1, 2, sharey=True)
    style = {
        "score": ("score function", RED, "o-"),
        "score_baseline": ("score function, baseline E log w", ORANGE, "^-."),
        "reparameterization": ("reparameterization", BLUE, "s--"),
    }
    for name, (label, colour, line) in style.items():
        left.plot(numbers["scales"], numbers[f"variance_by_scale_{name}"], line, color=colour)
        right.plot(
            numbers["latents"],
            numbers[f"variance_by_latents_{name}"],
            line,
            color=colour,
            label=label,
        )
    scales, latents = np.array(numbers["scales"]), np.array(numbers["latents"])
    left.plot(scales, 8.0 * scales**2, ":", color=BLACK, lw=1.2)
    right.plot(latents, latents, ":", color=BLACK, lw=1.2, label="theory, k c²")
    left.set(
        title="Narrow q: the score function explodes",
        xscale="log",
        yscale="log",
        xlabel="sd of q, in posterior sds (k = 8)",
        ylabel="variance of one draw, nats² per sd²",
    )
    right.set(
        title="More latents: with a baseline nearly as k²",
        xscale="log",
        xlabel="latents k (sd of q: 1)",
        xticks=latents,
        xticklabels=latents,
    )
    right.minorticks_off()
    picture.legend(loc="outside lower center", ncols=4)
    return picture
