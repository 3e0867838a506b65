"""Step 1. An autoencoder reconstructs, but its decoder knows nothing of N(0, I).

    autoencoder    maximise  -|x - f(mu(x))|^2
    VAE            maximise  E_q[log p(x|z)] - KL(q(z|x) || N(0, I))

The autoencoder pays nothing for its codes, so they lie where training left them: with 8 latents in
a thin sheet. A draw of N(0, I) falls beside it and decodes to no digit. The KL makes the codes fill
N(0, I), along their shortest principal axis too.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.plotting import (
    BLACK,
    BLUE,
    RED,
    figure,
    gaussian_contour,
    show_images,
    styled,
)
from experiments.story.common import Array, Digits, Step, make_vae
from jaxvae import elbo, fit, init_state, train_step
from jaxvae.bounds import autoencoder

REACH = 3.2  # half the width of the picture's maps
REACHES = (-REACH, REACH)
PIXELS = 81  # points an axis of their ground
FAR = np.arange(1.0, 6.1, 0.5)  # distances at which the ground gets greyer


def step(digits: Digits, key: Array, *, fast: bool = False) -> Step:
    epochs, num_draws = (60, 200) if fast else (300, 1000)
    test = jnp.asarray(digits.test, float)
    distance = nearest_distance(test, digits.train)
    numbers: dict[str, Any] = {"nearest_distance_test_images": float(distance.mean())}
    shown: dict[str, dict[str, Any]] = {"test": {"distance": distance}}
    for num_latents in (2, 8):
        for name, objective in (("autoencoder", autoencoder), ("vae", elbo)):
            model = trained(objective, num_latents, key, digits.train, epochs=epochs)
            look = look_at(model, jax.random.fold_in(key, 2), test, num_draws=num_draws)
            if name == "autoencoder":
                look["codes"] = look["mean_codes"]
            look["plane"] = axes = principal_axes(look["codes"])
            look["far"] = nearest_distance(decoded_map(model, look["codes"], axes), digits.train)
            look["distance"] = distance = nearest_distance(look["samples"], digits.train)
            squared_error = jnp.sum((test - look["reconstructions"]) ** 2, axis=1)
            log_prior = jax.vmap(model.prior.log_prob)(look["codes"])
            which = f"{name}_{num_latents}_latents"
            numbers[f"squared_error_{which}"] = float(squared_error.mean())
            numbers[f"nearest_distance_samples_{which}"] = float(distance.mean())
            numbers[f"log_prior_of_codes_{which}"] = float(log_prior.mean())
            numbers[f"sd_of_codes_{which}"] = jnp.std(look["codes"] @ axes.T, axis=0).tolist()
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
def principal_axes(codes: Array) -> Array:
    """Of codes [n, k], the directions of their largest and least variance, shape [2, k]."""
    axes = jnp.linalg.svd(codes - codes.mean(axis=0)[None], full_matrices=False)[2]
    return axes[jnp.array([0, -1])]


@jax.jit
def decoded_map(model: Any, codes: Array, axes: Array) -> Array:
    """What the points of a square in the plane of two axes decode to, row after row.

    In the directions that the map does not show, they are at the codes' mean.
    """
    along = jnp.linspace(-REACH, REACH, PIXELS)
    places = jnp.stack(jnp.meshgrid(along, along), axis=-1).reshape(-1, 2)
    mean = codes.mean(axis=0)
    z = (mean - axes.T @ (axes @ mean))[None] + places @ axes
    return jax.vmap(lambda z: model.decode(z).mean())(z)


def trained(objective: Any, num_latents: int, key: Array, xs: Any, *, epochs: int) -> Any:
    """The same network, optimiser and batches whatever the objective."""
    init_key, run_key = jax.random.split(jax.random.fold_in(key, 1))
    optimizer = optax.adam(3e-3)
    state = init_state(make_vae(init_key, num_latents), optimizer)
    step = train_step(objective, optimizer)
    state, _ = fit(
        step, state, run_key, jnp.asarray(xs), epochs=epochs, batch_size=100, progress=False
    )
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
    picture = figure(7.6, 5.6)
    top, bottom = picture.subfigures(2, 1, height_ratios=[1.15, 1.0])
    left, middle, right = top.subplots(1, 3)

    titles = {"autoencoder": "Autoencoder: a thin sheet", "vae": "VAE: all of N(0, I)"}
    colours = {"autoencoder": RED, "vae": BLUE, "test": BLACK}
    for (name, title), ax in zip(titles.items(), (left, middle), strict=True):
        view = shown[f"{name}_8_latents"]
        edge = np.linspace(-REACH, REACH, PIXELS)
        far = np.asarray(view["far"]).reshape(PIXELS, PIXELS)
        ax.contourf(edge, edge, far, FAR, cmap="Greys", alpha=0.7, extend="both")
        for what, n, style in (
            ("draws", 300, {"color": BLACK, "marker": "x", "lw": 0.8, "label": "draws of N(0, I)"}),
            ("codes", None, {"color": colours[name], "label": "codes of test images"}),
        ):
            ax.scatter(*np.asarray(view["plane"] @ view[what][:n].T), s=7, **style)
        for radius in (1.0, 2.0):  # standard deviations of the prior
            ax.plot(*gaussian_contour(np.zeros(2), np.eye(2), radius), color=BLACK, lw=0.9)
        ax.set(title=title, xlabel="longest axis of the codes", xlim=REACHES, ylim=REACHES)
        ax.set_aspect("equal")
        ax.legend(loc="upper left", fontsize=7.5, handletextpad=0.1, frameon=True, borderpad=0.2)
    left.set_ylabel("shortest axis of the codes")

    bins = np.linspace(0.0, 10.0, 41)
    for name, label in (("test", "test images"), ("vae", "VAE draws"), ("autoencoder", "AE draws")):
        distance = shown["test" if name == "test" else f"{name}_8_latents"]["distance"]
        style: Any = {"histtype": "step", "lw": 1.5, "color": colours[name], "label": label}
        right.hist(np.clip(distance, *bins[[0, -1]]), bins, density=True, **style)
    right.set(title="How far from any digit", xlabel="distance to the nearest digit", yticks=[])
    right.set_xticks([0, 2, 4, 6, 8, 10], ["0", "2", "4", "6", "8", "≥10"])
    right.set_box_aspect(1.0)
    right.legend(loc="center right")

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
