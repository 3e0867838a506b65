"""Step 7. beta buys a cheaper code with distortion, or a better image with a dearer code.

    maximise -(D + beta R),    D = E_q[-log p(x|z)],    R = KL(q(z|x) || p(z))

beta = 1 is the ELBO. beta = 0 pays nothing for the code: the noise of q goes to 0 and the
autoencoder is back. As D = E_q|x - f(z)|^2 / (2 sigma^2) + d/2 log(2 pi sigma^2), the optimum at
beta and sigma^2 is that at 1 and beta sigma^2: with a fixed sigma, beta is the assumed noise of a
pixel.

The sweep is one run, a pure function of (key, beta), under two `jax.vmap`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.plotting import BLACK, BLUE, RED, figure, show_images, styled
from experiments.story.common import SIGMA, Array, Digits, Step, make_vae
from jaxvae import batched, elbo, init_state, train_epoch, train_step
from jaxvae.bounds import autoencoder

NUM_LATENTS = 8  # coordinates of z
SHOWN = (0.0, 0.25, 1.0, 4.0)  # the betas whose images are in the picture


def step(digits: Digits, key: Array, *, fast: bool = False) -> Step:
    epochs, num_seeds = (20, 2) if fast else (100, 3)
    betas = SHOWN if fast else (0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
    train, test = jnp.asarray(digits.train, float), jnp.asarray(digits.test, float)

    def run(objective: Any, key: Array, **hyper: Any) -> Any:
        init_key, run_key = jax.random.split(key)
        optimizer = optax.adam(3e-3)
        epoch = train_epoch(train_step(objective, optimizer), batch_size=100)
        state = init_state(make_vae(init_key, NUM_LATENTS), optimizer)
        state, _ = jax.lax.scan(
            lambda s, _: epoch(s, run_key, train, **hyper), state, length=epochs
        )
        return state.model

    def measure(model: Any, key: Array) -> tuple[Array, Array, Array]:
        """Rate and distortion on the test images, and the squared error at the mean of q."""
        draw_key, unused_key = jax.random.split(key)
        _, terms = batched(elbo)(model, draw_key, test)
        _, mean_terms = batched(autoencoder)(model, unused_key, test)
        return terms.rate.mean(), terms.distortion.mean(), mean_terms.distortion.mean()

    def one(key: Array, beta: Array) -> Any:
        run_key, measure_key = jax.random.split(key)
        model = run(elbo, run_key, beta=beta)
        return model, *measure(model, measure_key)

    def one_autoencoder(key: Array) -> Array:
        run_key, measure_key = jax.random.split(key)
        return measure(run(autoencoder, run_key), measure_key)[2]

    seeds = jax.random.split(jax.random.fold_in(key, 0), num_seeds)
    sweep = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    models, rate, distortion, squared_error = sweep(seeds, jnp.array(betas))  # each [seeds, betas]
    deterministic = jax.jit(jax.vmap(one_autoencoder))(jax.random.clone(seeds))  # the same start

    numbers = {
        "betas": list(betas),
        "rate": rate.mean(axis=0).tolist(),
        "distortion": distortion.mean(axis=0).tolist(),
        "elbo": (-rate - distortion).mean(axis=0).tolist(),
        "elbo_seed_sd": (rate + distortion).std(axis=0, ddof=1).tolist(),
        "squared_error": squared_error.mean(axis=0).tolist(),
        "squared_error_autoencoder": float(deterministic.mean()),
    }

    # eight reconstructions and eight samples of the first seed's model at four betas
    strips = {}
    draws = jax.random.normal(jax.random.fold_in(key, 1), (8, NUM_LATENTS))  # the same for all
    for beta in SHOWN:
        index = betas.index(beta)
        model: Any = jax.tree.map(lambda leaf, i=index: leaf[0, i], models)
        codes = jax.vmap(lambda x, m=model: m.encode(x).mean())(test[:8])
        reconstructions = jax.vmap(lambda z, m=model: m.decode(z).mean())(codes)
        samples = jax.vmap(lambda z, m=model: m.decode(z).mean())(draws)
        strips[beta] = (reconstructions, samples)
    points = (np.asarray(rate), np.asarray(distortion))
    return Step(numbers, draw(digits, numbers, points, strips))


@styled
def draw(digits: Digits, numbers: dict[str, Any], points: Any, strips: Any) -> Any:
    picture = figure(7.6, 6.2)
    top, bottom = picture.subfigures(2, 1, height_ratios=[1.2, 1.0])
    ax = top.subplots()

    rate, distortion = (np.array(numbers[name]) for name in ("rate", "distortion"))
    ax.plot(rate, distortion, "-", color=BLUE, lw=1.2, label="β from 4 to 0, mean of the seeds")
    ax.plot(*points, "o", color=BLUE, markersize=3, alpha=0.6)
    for beta, *place in zip(numbers["betas"], rate, distortion, strict=True):
        ax.annotate(f"{beta:g}", place, xytext=(4, 5), textcoords="offset points", fontsize=8.5)

    # the lowest line R + D = const, which touches the curve where beta = 1
    best = int(np.argmin(rate + distortion))
    total = rate[best] + distortion[best]
    reach = np.array([rate.min(), rate[best] + 12.0])
    ax.plot(reach, total - reach, "--", color=BLACK, lw=1.1, label=f"R + D = {total:.1f}")
    constant = 32.0 * np.log(2.0 * np.pi * SIGMA**2)  # d/2 log(2 pi sigma^2), d = 64
    floor = numbers["squared_error_autoencoder"] / (2.0 * SIGMA**2) + constant
    ax.axhline(floor, color=RED, ls=":", lw=1.4, label="autoencoder")
    ax.set(
        title=f"Best ELBO, {-total:.1f} nats, at β = {numbers['betas'][best]:g}",
        xlabel="rate R, nats",
        ylabel="distortion D, nats",
    )
    ax.legend(loc="upper right")

    rows = bottom.subplots(len(strips) + 1, 2)
    show_images(rows[0, 0], digits.test[:8], "test images")
    rows[0, 1].set_axis_off()
    for (beta, (reconstructions, samples)), row in zip(strips.items(), rows[1:], strict=True):
        show_images(row[0], reconstructions, f"β = {beta:g}")
        show_images(row[1], samples)
    rows[0, 0].set_title("Reconstructions blur as β grows", loc="center")
    rows[1, 1].set_title("Samples become digits as β grows", loc="center")
    return picture
