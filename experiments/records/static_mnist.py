"""A long run of a small VAE on static binarized MNIST, to compare with the best known one.

    python -m experiments.prepare binarized_mnist --from DIR      # once
    python -m experiments.records.static_mnist

Pythae's protocol for its VAE (Chadebec, Vincent & Allassonniere 2022): 784-400-z40-400-784, ReLU,
Bernoulli pixels, Adam 1e-4, batch 100, 500 epochs of Larochelle's 50,000 training images; NLL of
all 10,000 test images from 200 importance samples. Published: 89.78, and 89.9 in the paper that
they follow.

The state measured is that of the lowest -ELBO of the 10,000 validation images, looked at every
epoch. A run that is ended goes on with the same command.

Ours, seed 0: 92.69 nats on the test images, 90.59 on 10,000 that were trained on: not reached. The
best state was three epochs before the end. With a rate of 1e-3 that falls to 0 along a cosine over
150 epochs 92.02, and 89.78 on images trained on. So what is missing is not training, which widens
that gap; nor regularization: with dropout and averaged parameters 93.89 of validation images. The
published script's run in plain PyTorch, with its initialisation and its rate, ended by hand after
260 epochs, had a best validation -ELBO of 99.18 nats, and the run of 150 epochs 98.03.

k-hat trusts 1.3 % of the estimates (its median is 1.25): more samples would lower all of them.
About 17 minutes of processor time on two shared x86-64 cores.
"""

import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxvae
from experiments.common.command import check_chosen, command
from experiments.common.data import load
from experiments.common.evaluate import drawn, inputs
from experiments.records.runs import kept, measured
from jaxvae import nn
from jaxvae.training import early_stopping, validation

SHAPE = (28, 28, 1)  # of an image
HIDDEN = (400,)  # units of encoder and decoder
LATENT = 40  # coordinates of z
LEARNING_RATE = 1e-4  # of Adam
BATCH = 100  # images a step
EPOCHS = 500
SAMPLES = 200  # of importance, an image
FOLDER = Path("runs/records/static_mnist")
AS_STORED = partial(jaxvae.rescale, max_value=1.0)  # pixels are stored as 0 and 1
OBJECTIVE = jaxvae.preprocessed(jaxvae.elbo, AS_STORED)
OPTIMIZER = optax.adam(LEARNING_RATE)


def make_vae(key: jax.Array) -> jaxvae.VAE:
    rngs, mlp = nnx.Rngs(key), partial(nn.MLP, hidden=HIDDEN)
    return jaxvae.VAE(
        encode=nn.Conditional(mlp, nn.NormalHead(), SHAPE, (LATENT,), rngs=rngs),
        decode=nn.Conditional(mlp, nn.BernoulliHead(), (LATENT,), SHAPE, rngs=rngs),
        prior=jaxvae.StandardNormal((LATENT,)),
    )


def main(seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    check_chosen("--seeds", seeds)
    data = load("binarized_mnist")
    train, test = jnp.asarray(data.train.images), jnp.asarray(data.test.images)
    looks = validation(OBJECTIVE, jax.random.key(97), jnp.asarray(data.validation.images))
    rows = {"test": test, "train": drawn(jax.random.key(98), train, len(test))}
    rows = {name: inputs(jax.random.key(99), xs, AS_STORED) for name, xs in rows.items()}
    for seed in seeds:
        began, (init_key, run_key) = time.process_time(), jax.random.split(jax.random.key(seed))
        state, _ = jaxvae.fit(
            jaxvae.train_step(OBJECTIVE, OPTIMIZER),
            jaxvae.init_state(make_vae(init_key), OPTIMIZER),
            run_key,
            train,
            epochs=EPOCHS,
            batch_size=BATCH,
            callbacks=[looks, early_stopping("validation_loss", patience=EPOCHS)],
            checkpoints=jaxvae.Checkpoints(FOLDER / f"seed_{seed}", keep=1),
        )
        key = jax.random.key(1000 + seed)
        found = {name: measured(state.model, key, xs, SAMPLES) for name, xs in rows.items()}
        minutes = (time.process_time() - began) / 60
        numbers = {"NLL, train": found["train"]["NLL"], "minutes": minutes}
        kept(FOLDER, seed, found["test"] | numbers | {"steps": int(state.step)})


if __name__ == "__main__":
    command(main, __doc__)
