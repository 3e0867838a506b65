"""A ladder of two layers of latents against one layer, on static binarized MNIST.

python -m experiments.prepare binarized_mnist --from DIR      # once
python -m experiments.ladder
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxvae
from experiments.comparison import compare, train
from experiments.data import load
from experiments.evaluate import log_marginals
from jaxvae import nn

LOW, HIGH, EPOCHS, WARM_UP, BATCH, SEEDS, SAMPLES = 32, 16, 20, 5, 100, 3, 100
SHAPE = (28, 28, 1)
AS_STORED = partial(jaxvae.rescale, max_value=1.0)
OBJECTIVE = jaxvae.preprocessed(jaxvae.elbo, AS_STORED)


def mlp(*hidden: int) -> partial[nn.MLP]:
    return partial(nn.MLP, hidden=hidden)


def one_layer(key: jax.Array) -> jaxvae.VAE:
    rngs, normal, bernoulli = nnx.Rngs(key), nn.NormalHead(), nn.BernoulliHead()
    return jaxvae.VAE(
        encode=nn.Conditional(mlp(256, 128), normal, SHAPE, (LOW,), rngs=rngs),
        decode=nn.Conditional(mlp(128, 256), bernoulli, (LOW,), SHAPE, rngs=rngs),
        prior=jaxvae.StandardNormal((LOW,)),
    )


def ladder(key: jax.Array) -> jaxvae.Ladder:
    rngs, normal, bernoulli = nnx.Rngs(key), nn.NormalHead(), nn.BernoulliHead()
    return jaxvae.Ladder(
        up=(mlp(256)(SHAPE, (256,), rngs=rngs), mlp(128)((256,), (128,), rngs=rngs)),
        evidence=(
            nn.Conditional(mlp(), normal, (256,), (LOW,), rngs=rngs),
            nn.Conditional(mlp(), normal, (128,), (HIGH,), rngs=rngs),
        ),
        top=jaxvae.StandardNormal((HIGH,)),
        down=(nn.Conditional(mlp(128), normal, (HIGH,), (LOW,), rngs=rngs),),
        likelihood=nn.Conditional(mlp(128, 256), bernoulli, (LOW,), SHAPE, rngs=rngs),
    )


def main() -> None:
    data = load("binarized_mnist")
    images, test = jnp.asarray(data.train.images), jnp.asarray(data.test.images)
    warm_up = optax.linear_schedule(0.01, 1.0, WARM_UP * (len(images) // BATCH))

    def run(make, key):
        return train(
            make,
            OBJECTIVE,
            optax.adam(1e-3),
            key,
            images,
            epochs=EPOCHS,
            batch_size=BATCH,
            beta=warm_up,
        )

    compare(
        "ladder",
        {"one layer": partial(run, one_layer), "ladder, two": partial(run, ladder)},
        lambda key, model: -jnp.mean(log_marginals(model, key, test, AS_STORED, SAMPLES).value),
        seeds=SEEDS,
        unit="nats",
    )


if __name__ == "__main__":
    main()
