"""Latents that are independent over the data: beta-TC and DIP-VAE beside beta-VAE.

    python -m experiments.regularizers.total_correlation

beta-VAE buys independence with information; beta-TC charges the total correlation alone, DIP-VAE
the covariances. The digits, 64-200-z6 and its mirror, Gaussian pixels with sigma 0.2, Adam 1e-3,
batch 100, 300 epochs; the parts of the rate on the training images, with q(z) their whole mixture,
and the distortion per image, nats; DIP-VAE-I charges 10 off the diagonal and 100 on it, II 10 and
10; mean and standard deviation over seeds 0, 1, 2:

                    distortion         I(x; z)         total corr.     dimension-wise KL
    VAE             -31.28 +- 0.15     6.41 +- 0.01    2.85 +- 0.10    0.51 +- 0.07
    beta-VAE, 4     -18.90 +- 0.77     3.47 +- 0.18    0.47 +- 0.06    0.04 +- 0.01
    beta-TC, 4      -26.09 +- 0.07     5.36 +- 0.03    0.66 +- 0.09    0.88 +- 0.23
    DIP-VAE-I       -28.56 +- 0.04     6.26 +- 0.09    2.32 +- 0.12    0.62 +- 0.07
    DIP-VAE-II      -29.80 +- 0.10     6.23 +- 0.04    2.34 +- 0.17    0.28 +- 0.07

in 1.1 minutes of processor time on one x86-64 core. beta-TC comes within 0.2 nats of beta-VAE's
total correlation and gives up 1 nat of information for it, not 3; covariances alone remove 0.5.

Chen et al. 2018; Kumar et al. 2018; Higgins et al. 2017. Their numbers are scores on dSprites; for
scores see `experiments.disentanglement.sweep`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxvae
from experiments.common import plotting
from experiments.common.command import command
from experiments.common.comparison import compare
from experiments.common.data import load
from experiments.common.evaluate import evaluate, inputs
from jaxvae import nn

SHAPE = (8, 8, 1)  # of an image
HIDDEN = (200,)  # units of encoder and decoder
LATENT = 6  # coordinates of z
SIGMA = 0.2  # of a pixel in [0, 1]
LEARNING_RATE = 1e-3  # of Adam
BATCH = 100  # images a step
EPOCHS = 300
SEEDS = 3  # runs of each model, from keys 0, 1, 2
FOLDER = Path("runs/regularizers/total_correlation")
INPUT = partial(jaxvae.rescale, max_value=16.0)  # pixels are stored as 0, 1, ..., 16


def objectives(dataset_size: int) -> dict[str, Callable[..., Any]]:
    regularized = jaxvae.regularizers.regularized
    tc = partial(
        regularized, penalty=partial(jaxvae.regularizers.tc_penalty, dataset_size=dataset_size)
    )
    dip_1 = partial(
        regularized, penalty=jaxvae.regularizers.dip_1_penalty, off_diagonal=10.0, diagonal=100.0
    )
    dip_2 = partial(
        regularized, penalty=jaxvae.regularizers.dip_2_penalty, off_diagonal=10.0, diagonal=10.0
    )
    return {
        "VAE": jaxvae.elbo,
        "beta-VAE, 4": partial(jaxvae.elbo, beta=4.0),
        "beta-TC, 4": partial(tc, correlation=4.0),
        "DIP-VAE-I": dip_1,
        "DIP-VAE-II": dip_2,
    }


def make_vae(key: jax.Array) -> jaxvae.VAE:
    rngs = nnx.Rngs(key)
    mlp = partial(nn.MLP, hidden=HIDDEN)
    return jaxvae.VAE(
        encode=nn.Conditional(mlp, nn.NormalHead(), SHAPE, (LATENT,), rngs=rngs),
        decode=nn.Conditional(mlp, nn.NormalHead(SIGMA), (LATENT,), SHAPE, rngs=rngs),
        prior=jaxvae.StandardNormal((LATENT,)),
    )


def run(objective: Callable[..., Any], images: jax.Array, key: jax.Array) -> jaxvae.VAE:
    """A whole training run as a pure function of its key."""
    init_key, run_key = jax.random.split(key)
    optimizer = optax.adam(LEARNING_RATE)
    step = jaxvae.train_step(jaxvae.preprocessed(objective, INPUT), optimizer)
    epoch = jaxvae.train_epoch(step, batch_size=BATCH)
    state = jaxvae.init_state(make_vae(init_key), optimizer)
    state, _ = jax.lax.scan(lambda state, _: epoch(state, run_key, images), state, length=EPOCHS)
    return state.model


def main() -> None:
    images = jnp.asarray(load("digits").train.images)
    xs = inputs(jax.random.key(0), images, INPUT)

    def measure(key: jax.Array, model: Any) -> dict[str, Any]:
        bound_key, parts_key = jax.random.split(key)
        parts = jax.jit(jaxvae.evaluation.rate_decomposition)(model, parts_key, xs)
        return {
            "nats of distortion": evaluate(model, bound_key, images, INPUT).distortion,
            "nats of information": jnp.mean(parts.mutual_information),
            "nats of total correlation": jnp.mean(parts.total_correlation),
            "nats of dimension-wise KL": jnp.mean(parts.dimension_wise_kl),
        }

    runs = {
        name: partial(run, objective, images) for name, objective in objectives(len(images)).items()
    }
    results, _ = compare("regularizers/total_correlation", runs, measure, seeds=SEEDS)
    draw(results, FOLDER / "trade.png")


@plotting.styled
def draw(results: dict[str, list[Any]], path: Path) -> None:
    """Total correlation against distortion: what independence costs."""
    colours = (plotting.BLACK, plotting.GREY, plotting.BLUE, plotting.ORANGE, plotting.GREEN)
    picture = plotting.figure(5.0, 3.6)
    ax = picture.subplots()
    for (label, rows), colour, mark in zip(results.items(), colours, "osD^v", strict=True):
        x, y = (
            np.array([row[what] for row in rows])
            for what in ("nats of distortion", "nats of total correlation")
        )
        ax.plot(x, y, mark, color=colour, label=label)
    ax.set_xlabel("distortion, nats")
    ax.set_ylabel("total correlation, nats")
    ax.set_title("What independent latents cost")
    ax.legend()
    plotting.save(picture, path)


if __name__ == "__main__":
    command(main, __doc__)
