"""What a code carries as beta grows, and what a minibatch can know of it.

    python -m experiments.information

The digits (1,297 to train on), 64-128-z8 and its mirror, sigma 0.2, Adam 3e-3, batch 100, 100
epochs for each beta; all numbers on the training images, whose aggregate posterior q(z) is
then exact:

    rate = I(x; z) + total correlation + dimension-wise KL       (Chen et al. 2018, equation 2)

I(x; z) cannot exceed log N = 7.17 nats, the logarithm of the number of images: below beta = 1 the
rate still grows, and what grows is total correlation. At beta = 1 the three parts again from
minibatches of that data set (means of 50): minibatch-stratified sampling is unbiased for q(z) and
so low in log q(z) by Jensen's inequality, minibatch-weighted sampling is low by up to log N
besides, and its I(x; z) is then above what is possible. Seed 0, half a minute on two x86-64 cores;
no published numbers.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import jaxvae
from experiments.common.command import command
from experiments.common.plotting import BLUE, GREEN, GREY, ORANGE, RED, figure, save, styled
from experiments.story.common import load_digits, make_vae

NUM_LATENTS = 8  # coordinates of z
LEARNING_RATE = 3e-3  # of Adam
BATCH = 100  # images a step
EPOCHS = 100  # at each beta
BETAS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SIZES = (10, 30, 100, 300, 1000)  # of the minibatches that estimate the parts
DRAWS = 50  # minibatches of each size
PARTS = ("mutual information", "total correlation", "dimension-wise KL")
ESTIMATORS = {  # of q(z), from a minibatch
    "stratified": jaxvae.evaluation.minibatch_stratified,
    "weighted": jaxvae.evaluation.minibatch_weighted,
}


def train(images: jax.Array, epochs: int, key: jax.Array, beta: jax.Array) -> jaxvae.VAE:
    """A whole run as a pure function of its key and beta."""
    init_key, run_key = jax.random.split(key)
    optimizer = optax.adam(LEARNING_RATE)
    epoch = jaxvae.train_epoch(jaxvae.train_step(jaxvae.elbo, optimizer), batch_size=BATCH)
    state = jaxvae.init_state(make_vae(init_key, NUM_LATENTS), optimizer)
    state, _ = jax.lax.scan(
        lambda state, _: epoch(state, run_key, images, beta=beta), state, length=epochs
    )
    return state.model


def measure(
    key: jax.Array, *, epochs: int, betas: tuple[float, ...], sizes: tuple[int, ...], draws: int
) -> dict[str, Any]:
    images = jnp.asarray(load_digits().train, float)
    run_key, curve_key, part_key, batch_key = jax.random.split(key, 4)

    def run(beta: jax.Array) -> jaxvae.VAE:
        return train(images, epochs, jax.random.clone(run_key), beta)  # beta alone differs

    def exactly(model: jaxvae.VAE) -> jax.Array:
        return decompose(model, jax.random.clone(part_key), images)

    models = jax.jit(partial(jax.lax.map, run))(jnp.array(betas))
    curve = jax.jit(jaxvae.evaluation.rate_distortion_curve)(models, curve_key, images)
    parts = jax.jit(partial(jax.lax.map, exactly))(models)
    at_one = betas.index(1.0)
    model = jax.tree.map(lambda leaf: leaf[at_one], models)

    estimates: dict[str, Any] = {}
    for name, weighting in ESTIMATORS.items():
        estimates[name] = []
        for size in sizes:

            def one(key: jax.Array, size: int = size, weighting: Any = weighting) -> jax.Array:
                choose, draw = jax.random.split(key)
                rows = jax.random.permutation(choose, len(images))[:size]
                return decompose(
                    model, draw, images[rows], dataset_size=len(images), weighting=weighting
                )

            keys = jax.random.split(jax.random.fold_in(batch_key, size), draws)
            estimates[name].append(jnp.mean(jax.lax.map(jax.jit(one), keys), axis=0).tolist())
    return {
        "num_images": len(images),
        "betas": list(betas),
        "rate": curve.rate.tolist(),
        "distortion": curve.distortion.tolist(),
        "parts": parts.tolist(),
        "exact": parts[at_one].tolist(),
        "sizes": list(sizes),
        "estimates": estimates,
    }


def decompose(model: Any, key: jax.Array, xs: jax.Array, **how: Any) -> jax.Array:
    """The means of the three parts, shape [3]."""
    parts = jaxvae.evaluation.rate_decomposition(model, key, xs, **how)
    return jnp.stack([jnp.mean(part) for part in parts])


def main(
    epochs: int = EPOCHS,
    betas: tuple[float, ...] = BETAS,
    sizes: tuple[int, ...] = SIZES,
    draws: int = DRAWS,
    folder: str = "runs",
) -> None:
    target = Path(folder) / "information"
    target.mkdir(parents=True, exist_ok=True)
    numbers = measure(jax.random.key(0), epochs=epochs, betas=betas, sizes=sizes, draws=draws)
    (target / "result.json").write_text(json.dumps(numbers, indent=2) + "\n")
    save(draw(numbers), target / "information.png")
    table = Table("beta = 1", "batch", *PARTS)
    table.add_row("exact", "all", *(f"{part:.2f}" for part in numbers["exact"]))
    for name, rows in numbers["estimates"].items():
        for size, row in zip(sizes, rows, strict=True):
            table.add_row(name, str(size), *(f"{part:.2f}" for part in row))
    Console().print(table)
    print(f"picture: {target}/information.png")


@styled
def draw(numbers: dict[str, Any]) -> Any:
    picture = figure(10.2, 3.4)
    curve, stack, batches = picture.subplots(1, 3)
    curve.plot(numbers["rate"], numbers["distortion"], "o-", color=BLUE)
    points = zip(numbers["betas"], numbers["rate"], numbers["distortion"], strict=True)
    for beta, rate, distortion in points:
        curve.annotate(f"{beta:g}", (rate, distortion), xytext=(4, 4), textcoords="offset points")
    title = "Rate against distortion, β at each point"
    curve.set(title=title, xlabel="rate, nats", ylabel="distortion, nats")

    parts, bottom = np.array(numbers["parts"]), np.zeros(len(numbers["betas"]))
    for i, color in enumerate((BLUE, ORANGE, GREY)):
        stack.bar(range(len(bottom)), parts[:, i], bottom=bottom, color=color, label=PARTS[i])
        bottom = bottom + parts[:, i]
    stack.set_xticks(range(len(bottom)), [f"{beta:g}" for beta in numbers["betas"]])
    stack.axhline(np.log(numbers["num_images"]), color=RED, ls=":", label="log N")
    stack.set(title="Below β = 1 rate buys correlation", xlabel="β", ylabel="nats")
    stack.legend()

    for name, color in zip(ESTIMATORS, (GREEN, RED), strict=True):
        estimate = np.array(numbers["estimates"][name])[:, 0]
        batches.semilogx(numbers["sizes"], estimate, "o-", color=color, label=name)
    batches.axhline(numbers["exact"][0], color=BLUE, ls="--", label="exact")
    title = "I(x; z) from minibatches, β = 1"
    batches.set(title=title, xlabel="batch size", ylabel="mean estimate, nats", ylim=(0, None))
    batches.legend(loc="lower right")
    return picture


if __name__ == "__main__":
    command(main, __doc__)
