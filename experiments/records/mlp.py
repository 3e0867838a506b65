"""What each part of a model gains in the class of small dense networks, trained to convergence.

    python -m experiments.prepare fashion_mnist --from DIR      # once
    python -m experiments.records.mlp fashion_mnist
    python -m experiments.records.mlp mnist

The protocol of Norouzi, Fleet & Norouzi 2020: images binarized anew at every visit, 50,000 to
train on; 784-300-300-z40 and its mirror, of gated layers; Adam 5e-4, batch 100; beta rises to 1
over 100 epochs; the state of the best validation ELBO, with a patience of 50 epochs, of 2,000 at
most. NLL of all 10,000 test images, binarized once, from 5,000 importance samples. Published, three
seeds:

                  Fashion-MNIST      dynamic MNIST
    N(0, I)       228.70 +- .15      84.45 +- .12
    VampPrior     227.35 +- .05      82.43 +- .06

A run that is ended goes on with the same command.

Ours, N(0, I) on Fashion-MNIST, seed 0, ended after 412 epochs, when the validation ELBO still rose
by 0.15 nats in 25 epochs: 229.25, with averaged parameters 228.95. k-hat trusts 36 % of the rows
(its median is .77). About 30 minutes of processor time on two shared x86-64 cores, and 10 to
evaluate. The other rows were not measured yet.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx

import jaxvae
from experiments.common.data import load
from experiments.common.evaluate import inputs
from experiments.records.gated import GatedMLP
from experiments.records.runs import Gaussians, kept, measured
from jaxvae import nn
from jaxvae.training import average_parameters, averaged_model, early_stopping, validation

SHAPE = (28, 28, 1)  # of an image
WIDTH = 300  # units of each of the two gated layers of encoder and decoder
LATENT = 40  # coordinates of z
PSEUDO_INPUTS = 500  # K of the VampPrior
LEARNING_RATE = 5e-4  # of Adam
DECAY = 0.999  # of the average of the parameters
BATCH = 100  # images a step
EPOCHS = 2000  # at most
WARM_UP = 100  # epochs in which beta rises to 1
PATIENCE = 50  # epochs without a better validation ELBO
HELD_OUT = 10_000  # training images that validate
SAMPLES = 5000  # of importance, an image
FOLDER = Path("runs/records/mlp")
AS_STORED = partial(jaxvae.rescale, max_value=1.0)  # the test images are binarized beforehand
OBJECTIVE = jaxvae.preprocessed(jaxvae.elbo, jaxvae.binarize)
OPTIMIZER = optax.chain(optax.adam(LEARNING_RATE), average_parameters(DECAY))


def one_layer(images: jax.Array, key: jax.Array) -> jaxvae.VAE:
    del images
    conditional = partial(nn.Conditional, partial(GatedMLP, width=WIDTH), rngs=nnx.Rngs(key))
    return jaxvae.VAE(
        encode=conditional(nn.NormalHead(), SHAPE, (LATENT,)),
        decode=conditional(nn.BernoulliHead(), (LATENT,), SHAPE),
        prior=jaxvae.StandardNormal((LATENT,)),
    )


class Vamp(jaxvae.VampVAE):
    """The VampPrior by products of matrices."""

    @property
    def prior(self) -> Any:
        return Gaussians(jax.vmap(self.encode)(self.pseudo_inputs))


def vamp_prior(images: jax.Array, key: jax.Array) -> Vamp:
    encode, decode, _ = one_layer(images, key)
    return Vamp(encode, decode, images[:PSEUDO_INPUTS].astype(float) / 255.0)


MODELS = {"N(0, I)": one_layer, "VampPrior": vamp_prior}


def train(make: Any, images: jax.Array, looks: Any, seed: int, folder: Path) -> Any:
    """The state of the best validation ELBO."""
    init_key, run_key = jax.random.split(jax.random.key(seed))
    state, _ = jaxvae.fit(
        jaxvae.train_step(OBJECTIVE, OPTIMIZER),
        jaxvae.init_state(make(images, init_key), OPTIMIZER),
        run_key,
        images,
        epochs=EPOCHS,
        batch_size=BATCH,
        callbacks=[looks, early_stopping("validation_loss", patience=PATIENCE)],
        checkpoints=jaxvae.Checkpoints(folder, keep=1),
        beta=optax.linear_schedule(0.0, 1.0, WARM_UP * (len(images) // BATCH)),
    )
    return state


def main(
    data: tyro.conf.Positional[Literal["fashion_mnist", "mnist"]],
    models: tuple[str, ...] = tuple(MODELS),
    seeds: tuple[int, ...] = (0, 1, 2),
) -> None:
    splits = load(data, validation=HELD_OUT)
    images, test = jnp.asarray(splits.train.images), jnp.asarray(splits.test.images)
    test = inputs(jax.random.key(99), test, jaxvae.binarize)
    looks = validation(OBJECTIVE, jax.random.key(97), jnp.asarray(splits.validation.images))
    for name in models:
        for seed in seeds:
            began, folder = time.process_time(), FOLDER / data / name
            state = train(MODELS[name], images, looks, seed, folder / f"seed_{seed}")
            key = jax.random.key(1000 + seed)
            numbers = measured(state.model, key, test, SAMPLES)
            averaged = measured(averaged_model(state), key, test, SAMPLES)["NLL"]
            minutes = (time.process_time() - began) / 60
            more = {"NLL, averaged": averaged, "steps": int(state.step), "minutes": minutes}
            kept(folder, seed, numbers | more)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
