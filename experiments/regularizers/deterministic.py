"""Autoencoders whose codes are certain, plain and regularized, and a VAE: what they generate.

    python -m experiments.prepare mnist --from DIR      # once
    python -m experiments.regularizers.deterministic

784-300-300-z16 and its mirror on MNIST as stored, Adam 1e-3, batch 100, 10 epochs; the VAE's
one sigma is at its optimum, the RAEs' weights are the best of a few on validation images in short
runs. Each decodes the codes of 2,000 test images, draws of N(0, I), trained for it or not, and of a
mixture of 10 Gaussians fitted to the codes of 10,000 training images: the squared error of
the first, and for all three the Frechet distance to the test images in the features of a small
classifier (of experiments.latents.classifier; it is no FID). Mean and standard deviation over seeds
0, 1, 2, on one H100; the test images are drawn at random, and these numbers were measured on the
first 2,000 of TFDS's order, which is a shuffle:

                                      Frechet distance
                   squared error      codes       N(0, I)     mixture
    autoencoder    11.25 +- 0.04      44 +- 1     363 +- 33   101 +- 1     100 102 101
    RAE-L2         10.32 +- 0.05      35 +- 2     145 +- 10    90 +- 2      88  91  92
    RAE-GP         11.49 +- 0.11      49 +- 3     280 +- 2    113 +- 4     118 110 111
    VAE            11.49 +- 0.01      44 +- 2     365 +- 6    105 +- 4     109 104 101

(the mixture's of each seed). Decay of the decoder's weights is best throughout. The gradient
penalty at this weight does not help: only draws of N(0, I) come out nearer than those of the plain
autoencoder, and still far off. The VAE, at its best sigma, decodes N(0, I) no better than it does.

Ghosh et al. 2020; their numbers are FIDs of convolutional networks.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxvae
from experiments.common.command import command
from experiments.common.comparison import compare
from experiments.common.data import load
from experiments.common.evaluate import drawn, generated, reconstructed
from experiments.common.plotting import image_rows
from experiments.latents.classifier import features
from experiments.latents.second_stage import mixture
from jaxvae import nn
from jaxvae.evaluation.sample_quality import sample_frechet_distance
from jaxvae.regularizers.regularized_autoencoder import gradient_penalty, rae, weight_penalty

SHAPE = (28, 28, 1)  # of an image
HIDDEN = (300, 300)  # units of encoder and decoder
LATENT = 16  # coordinates of z
CODE_WEIGHT = 0.1  # of |z|^2 / 2 in both RAEs, as the other two the best of a few
DECAY_WEIGHT = 0.001  # of the decoder's weights in RAE-L2
GRADIENT_WEIGHT = 0.01  # of the decoder's gradient in RAE-GP
LEARNING_RATE = 1e-3  # of Adam
BATCH = 100  # images a step
EPOCHS = 10
COMPONENTS = 10  # Gaussians of the mixture fitted to the codes
EM_ROWS = 10_000  # training images whose codes it is fitted to
DRAWS = 2_000  # test images, and as many draws of each prior, for the scores
SEEDS = 3  # runs of each model, from keys 0, 1, 2
NAME = "regularizers/deterministic"
CERTAIN = nn.NormalHead(0.0)  # a code for each image
RANDOM = nn.NormalHead()  # a posterior for each image
OBJECTIVES: dict[str, tuple[Callable[..., Any], Any]] = {
    "autoencoder": (jaxvae.bounds.autoencoder, CERTAIN),
    "RAE-L2": (
        partial(rae, penalty=weight_penalty, beta=CODE_WEIGHT, weight=DECAY_WEIGHT),
        CERTAIN,
    ),
    "RAE-GP": (
        partial(rae, penalty=gradient_penalty, beta=CODE_WEIGHT, weight=GRADIENT_WEIGHT),
        CERTAIN,
    ),
    "VAE": (jaxvae.elbo, RANDOM),
}


def make(head: Any, key: jax.Array) -> jaxvae.VAE:
    rngs, mlp = nnx.Rngs(key), partial(nn.MLP, hidden=HIDDEN)
    best_sigma = nn.HeadOf(jaxvae.distributions.OptimalNormal, (nn.Real("n"),))
    return jaxvae.VAE(
        encode=nn.Conditional(mlp, head, SHAPE, (LATENT,), rngs=rngs),
        decode=nn.Conditional(mlp, best_sigma, (LATENT,), SHAPE, rngs=rngs),
        prior=jaxvae.StandardNormal((LATENT,)),
    )


def run(label: str, images: jax.Array, key: jax.Array) -> jaxvae.VAE:
    """A whole training run as a pure function of its key."""
    init_key, run_key = jax.random.split(key)
    (objective, head), optimizer = OBJECTIVES[label], optax.adam(LEARNING_RATE)
    step = jaxvae.train_step(jaxvae.preprocessed(objective, jaxvae.rescale), optimizer)
    epoch = jaxvae.train_epoch(step, batch_size=BATCH)
    state = jaxvae.init_state(make(head, init_key), optimizer)
    state, _ = jax.lax.scan(lambda state, _: epoch(state, run_key, images), state, length=EPOCHS)
    return state.model


def main() -> None:
    data = load("mnist", validation=10_000)
    images = jnp.asarray(data.train.images)
    test = drawn(jax.random.key(98), data.test.images, DRAWS).astype(float) / 255.0
    real = features(test)

    def album(key: jax.Array, model: Any) -> dict[str, jax.Array]:
        code_key, again_key, draw_key, fitted_key = jax.random.split(key, 4)
        zs = codes(model, code_key, images[:EM_ROWS].astype(float) / 255.0)
        fitted = model._replace(prior=mixture(zs, COMPONENTS))
        return {
            "codes": reconstructed(model, again_key, test),
            "N(0, I)": generated(model, draw_key, DRAWS),
            "mixture": generated(fitted, fitted_key, DRAWS),
        }

    def measure(key: jax.Array, model: Any) -> dict[str, Any]:
        pictures = album(key, model)
        errors = jnp.sum(jnp.square(pictures["codes"] - test), (1, 2, 3))
        return {"squared error": jnp.mean(errors)} | {
            f"Frechet, {what}": sample_frechet_distance(real, features(jnp.clip(shown, 0.0, 1.0)))
            for what, shown in pictures.items()
        }

    runs = {label: partial(run, label, images) for label in OBJECTIVES}
    trained = compare(NAME, runs, measure, seeds=SEEDS)
    rows = {"test images": test[:20]}
    for label, model in trained.firsts.items():
        pictures = album(jax.random.key(1000), model)  # as measured
        rows |= {f"{label}: {what}": shown[:20] for what, shown in pictures.items()}
    image_rows(Path("runs") / NAME / "samples.png", rows)


@jax.jit
def codes(model: Any, key: jax.Array, xs: jax.Array) -> jax.Array:
    """A draw of q(z|x) for each x, [n, d]."""
    return jax.vmap(lambda k, x: model.encode(x).sample(k))(jax.random.split(key, len(xs)), xs)


if __name__ == "__main__":
    command(main, __doc__)
