"""Step 1. An autoencoder reconstructs, but its decoder knows nothing of N(0, I).

    autoencoder    maximise  -|x - f(mu(x))|^2
    VAE            maximise  E_q[log p(x|z)] - KL(q(z|x) || N(0, I))

The autoencoder pays nothing for its codes, so they lie where training left them, with gaps between.
A draw of N(0, I) falls into a gap and decodes to no digit. The KL fills the gaps.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.plotting import BLUE, RED, figure, show_images, styled
from experiments.story.common import Array, Digits, Step, make_vae
from jaxvae import elbo, fit, init_state, train_step
from jaxvae.bounds import autoencoder

REACH = 3.6  # half the width of the picture's maps
PIXELS = 81  # points an axis of their ground


def step(digits: Digits, key: Array, *, fast: bool = False) -> Step:
    epochs, num_draws = (60, 200) if fast else (300, 1000)
    test = jnp.asarray(digits.test, float)
    distance = nearest_distance(test, digits.train)
    numbers: dict[str, Any] = {"nearest_distance_test_images": float(distance.mean())}
    shown: dict[str, dict[str, Any]] = {}
    for num_latents in (2, 8):
        for name, objective in (("autoencoder", autoencoder), ("vae", elbo)):
            model = trained(objective, num_latents, key, digits.train, epochs=epochs)
            look = look_at(model, jax.random.fold_in(key, 2), test, num_draws=num_draws)
            if name == "autoencoder":
                look["codes"] = look["mean_codes"]
            if num_latents == 2:
                look["far"] = nearest_distance(decoded_map(model), digits.train)
            distance = nearest_distance(look["samples"], digits.train)
            squared_error = jnp.sum((test - look["reconstructions"]) ** 2, axis=1)
            log_prior = jax.vmap(model.prior.log_prob)(look["codes"])
            which = f"{name}_{num_latents}_latents"
            numbers[f"squared_error_{which}"] = float(squared_error.mean())
            numbers[f"nearest_distance_samples_{which}"] = float(distance.mean())
            numbers[f"log_prior_of_codes_{which}"] = float(log_prior.mean())
            shown[which] = look
    return Step(numbers, draw(digits, numbers, shown))


@partial(jax.jit, static_argnames="num_draws")
def look_at(model: Any, key: Array, xs: Array, *, num_draws: int) -> dict[str, Array]:
    """Codes of the images, what these decode to, draws of the prior, and what those decode to."""
    code_key, prior_key = jax.random.split(key)
    decode = jax.vmap(lambda z: model.decode(z).mean())  # the mean of p(x|z)
    mean_codes = jax.vmap(lambda x: model.encode(x).mean())(xs)
    keys = jax.random.split(code_key, len(xs))
    codes = jax.vmap(lambda k, x: model.encode(x).sample(k))(keys, xs)  # z ~ q(z|x)
    draws = jax.vmap(model.prior.sample)(jax.random.split(prior_key, num_draws))  # z ~ N(0, I)
    return {
        "mean_codes": mean_codes,
        "codes": codes,
        "reconstructions": decode(mean_codes),
        "draws": draws,
        "samples": decode(draws),
    }


@jax.jit
def decoded_map(model: Any) -> Array:
    """What the points of a square map decode to, one row of the map after another."""
    axis = jnp.linspace(-REACH, REACH, PIXELS)
    z = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return jax.vmap(lambda z: model.decode(z).mean())(z)


def trained(objective: Any, num_latents: int, key: Array, xs: Any, *, epochs: int) -> Any:
    """The same network, optimiser and batches whatever the objective."""
    init_key, run_key = jax.random.split(jax.random.fold_in(key, 1))
    optimizer = optax.adam(3e-3)
    state = init_state(make_vae(init_key, num_latents), optimizer)
    step = train_step(objective, optimizer)
    state, _ = fit(step, state, run_key, jnp.asarray(xs), epochs=epochs, batch_size=100)
    return state.model


@jax.jit
def nearest_distance(images: Any, others: Any) -> Array:
    """Euclidean distance of each image to the nearest of the others, in units of full ink."""
    others = jnp.asarray(others)
    return jax.lax.map(
        lambda image: jnp.min(jnp.linalg.norm(others - image[None], axis=1)), jnp.asarray(images)
    )


@styled
def draw(digits: Digits, numbers: dict[str, Any], shown: dict[str, dict[str, Any]]) -> Any:
    picture = figure(7.6, 5.9)
    top, bottom = picture.subfigures(2, 1, height_ratios=[1.35, 1.0])

    titles = {
        "autoencoder": "Autoencoder: no digits where no codes lie",
        "vae": "VAE: digits in nearly all of N(0, I)",
    }
    for (name, title), ax in zip(titles.items(), top.subplots(1, 2), strict=True):
        view = shown[f"{name}_2_latents"]
        edge = np.linspace(-REACH, REACH, PIXELS)
        far = np.asarray(view["far"]).reshape(PIXELS, PIXELS)
        ax.contourf(
            edge, edge, far, np.arange(1.0, 4.1, 0.5), cmap="Greys", alpha=0.7, extend="both"
        )
        ax.scatter(
            *np.asarray(view["draws"][:300]).T,
            s=9,
            color="black",
            marker="x",
            lw=0.8,
            label="draws of N(0, I)",
        )
        colour = RED if name == "autoencoder" else BLUE
        ax.scatter(*np.asarray(view["codes"]).T, s=9, color=colour, label="codes of test images")
        angle = np.linspace(0.0, 2.0 * np.pi, 200)
        for radius in (1.0, 2.0):  # standard deviations of the prior
            ax.plot(radius * np.cos(angle), radius * np.sin(angle), color="black", lw=0.9)
        ax.set(
            title=title, xlabel="$z_1$", ylabel="$z_2$", xlim=(-REACH, REACH), ylim=(-REACH, REACH)
        )
        ax.set_aspect("equal")
        ax.legend(loc="upper left", fontsize=8, handletextpad=0.1, frameon=True)

    rows = [("test images", digits.test[:12])]
    for kind in ("reconstructions", "samples"):
        for name, label in (("autoencoder", "autoencoder"), ("vae", "VAE")):
            what = "reconstructs" if kind == "reconstructions" else "samples"
            rows.append((f"{label} {what}", shown[f"{name}_8_latents"][kind][:12]))
    for (label, images), ax in zip(rows, bottom.subplots(len(rows), 1), strict=True):
        show_images(ax, images, label)
    distance = [numbers[f"nearest_distance_samples_{n}_8_latents"] for n in ("autoencoder", "vae")]
    bottom.suptitle(
        f"With 8 latents, samples lie {distance[0]:.1f} (autoencoder) and {distance[1]:.1f} (VAE) "
        "from the nearest training image",
        x=0.01,
        ha="left",
        fontsize=9.5,
        fontweight="bold",
    )
    return picture
