"""A VampPrior against N(0, I) at equal epochs, on dynamically binarized MNIST.

python -m experiments.prepare mnist --from DIR      # once
python -m experiments.vamp_prior
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxvae
from experiments.comparison import compare, train
from experiments.data import load
from experiments.evaluate import inputs, log_marginals
from jaxvae import nn

LATENT, PSEUDO_INPUTS, EPOCHS, BATCH, SEEDS, IMAGES, SAMPLES = 40, 500, 10, 100, 3, 2000, 200
SHAPE = (28, 28, 1)
AS_STORED = partial(jaxvae.rescale, max_value=1.0)
MLP = partial(nn.MLP, hidden=(300, 300))
OBJECTIVE = jaxvae.preprocessed(jaxvae.elbo, jaxvae.binarize)


def standard_normal(key: jax.Array) -> jaxvae.VAE:
    rngs = nnx.Rngs(key)
    return jaxvae.VAE(
        encode=nn.Conditional(MLP, nn.NormalHead(), SHAPE, (LATENT,), rngs=rngs),
        decode=nn.Conditional(MLP, nn.BernoulliHead(), (LATENT,), SHAPE, rngs=rngs),
        prior=jaxvae.StandardNormal((LATENT,)),
    )


def vamp_prior(images: jax.Array, key: jax.Array) -> jaxvae.VampVAE:
    encode, decode, _ = standard_normal(key)
    return jaxvae.VampVAE(encode, decode, pseudo_inputs=images[:PSEUDO_INPUTS] / 255.0)


def main() -> None:
    data = load("mnist", validation=10_000)
    images, test_images = jnp.asarray(data.train.images), jnp.asarray(data.test.images)
    test = inputs(jax.random.key(98), test_images[:IMAGES], jaxvae.binarize)

    def run(make, key):
        optimizer = optax.adam(5e-4)
        return train(make, OBJECTIVE, optimizer, key, images, epochs=EPOCHS, batch_size=BATCH)

    compare(
        "vamp_prior",
        {
            "N(0, I)": partial(run, standard_normal),
            "VampPrior": partial(run, partial(vamp_prior, images)),
        },
        lambda key, model: -jnp.mean(log_marginals(model, key, test, AS_STORED, SAMPLES).value),
        seeds=SEEDS,
        unit="nats",
    )


if __name__ == "__main__":
    main()
