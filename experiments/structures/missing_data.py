"""Pixels missing completely at random: what a VAE trained on incomplete images puts in the gaps.

    python -m experiments.prepare binarized_mnist --from DIR      # once
    python -m experiments.structures.missing_data

Mattei & Frellsen 2019: `iwae` of a `Masked` likelihood, K = 5, and self-normalised importance
sampling, 100 samples, for the gaps. A fifth or a half of the pixels of static binarized MNIST is
missing, in training as in test; no complete image is ever seen. 784-256-128-z32 and its mirror,
ReLU, Adam 1e-3, batch 100, 20 epochs. Against the mean of each pixel, and against the conditional
mean of probabilistic PCA with 32 latents, by maximum likelihood on the observed pixels alone (its
ELBO is exact; Adam 1e-2, 3 epochs).

Ours: over the gaps of 1,000 test images, mean and standard deviation over seeds 0, 1, 2, on one
H100:

                             RMSE               F1                 nats a pixel
    a fifth   pixel means    0.293 +- 0.001     0.121 +- 0.006     0.262 +- 0.001
              linear         0.202 +- 0.001     0.786 +- 0.001     0.138 +- 0.001
              VAE            0.187 +- 0.001     0.812 +- 0.001     0.111 +- 0.001
    a half    pixel means    0.293 +- 0.000     0.119 +- 0.007     0.262 +- 0.000
              linear         0.211 +- 0.000     0.763 +- 0.001     0.153 +- 0.001
              VAE            0.199 +- 0.000     0.787 +- 0.002     0.125 +- 0.000

The VAE is ahead of the linear model at both, by 0.03 nats a pixel; it loses less than 0.015 when
half of the pixels are missing in place of a fifth.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.scipy.special import logit
from jax.tree_util import Partial

import jaxvae
from experiments.comparison import compare, train
from experiments.data import load
from experiments.plotting import figure, save, show_images, styled
from jaxvae import nn, ppca
from jaxvae.imputation import impute, multiple_imputations

LATENT, EPOCHS, BATCH, SEEDS, IMAGES, K, SAMPLES = 32, 20, 100, 3, 1000, 5, 100
MISSING, LINEAR_EPOCHS, SHOWN = (0.2, 0.5), 3, 8
SHAPE = (28, 28, 1)
FOLDER = Path("runs/missing_data")


def signs(network: Any, event: Any) -> Any:
    """-1 and 1 for what is seen, 0 for a gap."""
    x, mask = event
    return network(jnp.where(mask, 2.0 * x - 1.0, 0.0))


def vae(key: jax.Array) -> jaxvae.VAE:
    rngs, pixels = nnx.Rngs(key), nn.MaskedHead(nn.BernoulliHead())
    up, down = partial(nn.MLP, hidden=(256, 128)), partial(nn.MLP, hidden=(128, 256))
    return jaxvae.VAE(
        encode=Partial(signs, nn.Conditional(up, nn.NormalHead(), SHAPE, (LATENT,), rngs=rngs)),
        decode=nn.Conditional(down, pixels, (LATENT,), SHAPE, rngs=rngs),
        prior=jaxvae.StandardNormal((LATENT,)),
    )


class Linear(NamedTuple):
    """Probabilistic PCA: a pixel that is not seen is one that no latent moves."""

    weight: Any
    mean: Any
    log_scale: Any
    prior = jaxvae.StandardNormal((LATENT,))

    def encode(self, event: Any) -> Any:
        x, mask = (leaf.reshape(-1) for leaf in event)
        weight = jnp.where(mask[:, None], self.weight, 0.0)
        seen = ppca.PPCA(weight, self.mean, jnp.exp(2.0 * self.log_scale))
        return ppca.posterior(seen, jnp.where(mask, x, self.mean))

    def decode(self, z: jax.Array) -> jaxvae.Masked:
        pixels = (self.weight @ z + self.mean).reshape(SHAPE)
        return jaxvae.Masked(jaxvae.Normal(pixels, jnp.exp(self.log_scale)))


def linear(key: jax.Array) -> Linear:
    weight = 0.1 * jax.random.normal(key, (784, LATENT))
    return Linear(weight, jnp.zeros(784), jnp.log(0.3))


def pixel_means(images: jax.Array, masks: jax.Array) -> jaxvae.VAE:
    """A model whose code says nothing."""
    mean = jnp.mean(images.astype(float), axis=0, where=masks)
    pixels = jaxvae.Masked(jaxvae.Bernoulli(logit(jnp.clip(mean, 1e-6, 1.0 - 1e-6))))
    nothing = jaxvae.StandardNormal((1,))
    return jaxvae.VAE(
        encode=Partial(lambda event: nothing),
        decode=Partial(lambda pixels, z: pixels, pixels),
        prior=nothing,
    )


def as_floats(key: jax.Array, event: Any) -> Any:
    x, mask = event
    return jaxvae.rescale(key, x, max_value=1.0), mask


@jax.jit
def imputed(model: Any, key: jax.Array, xs: jax.Array, masks: jax.Array) -> jax.Array:
    """E[x_missing|x_observed] of every image, between 0 and 1."""
    one = partial(impute, num_samples=SAMPLES)
    keys = jax.random.split(key, len(xs))
    means = jax.lax.map(lambda kxm: one(model, kxm[0], kxm[1:]), (keys, xs, masks))
    return jnp.clip(means, 0.0, 1.0)


def scores(means: jax.Array, xs: jax.Array, masks: jax.Array) -> dict[str, jax.Array]:
    """Over the gaps alone."""
    gap, ink, said = ~masks, xs > 0.5, means > 0.5
    hits = jnp.sum(gap & ink & said)
    return {
        "RMSE": jnp.sqrt(jnp.mean(jnp.square(means - xs), where=gap)),
        "F1": 2 * hits / (jnp.sum(gap & ink) + jnp.sum(gap & said)),
        "nats a pixel": -jnp.mean(
            jnp.log(jnp.clip(jnp.where(ink, means, 1.0 - means), 1e-3, 1.0)), where=gap
        ),
    }


@styled
def draw(path: Path, models: dict[str, Any], xs: jax.Array, masks: jax.Array) -> None:
    means = {name: imputed(m, jax.random.key(0), xs, masks) for name, m in models.items()}
    several = partial(multiple_imputations, num_samples=SAMPLES, num_draws=3)
    keys = jax.random.split(jax.random.key(1), len(xs))
    draws = jax.vmap(lambda k, x, m: several(models["VAE"], k, (x, m)))(keys, xs, masks)
    rows = {"image": xs, "seen": jnp.where(masks, xs, 0.3), **means}
    rows |= {f"draw {i + 1} of VAE": draws[:, i] for i in range(3)}
    picture = figure(4.6, 0.47 * len(rows))
    for axes, (name, images) in zip(picture.subplots(len(rows), 1), rows.items(), strict=True):
        show_images(axes, images.reshape(len(xs), -1), name)
    save(picture, path)


def compare_at(missing: float, images: jax.Array, test: jax.Array) -> None:
    """All three at one share of missing pixels."""
    name, seen = f"{round(100 * missing)}", partial(jax.random.bernoulli, p=1 - missing)

    def run(make, objective, rate, epochs, key):
        mask_key, key = jax.random.split(key)
        events: Any = (images, seen(mask_key, shape=images.shape))
        objective, optimizer = jaxvae.preprocessed(objective, as_floats), optax.adam(rate)
        return train(make, objective, optimizer, key, events, epochs=epochs, batch_size=BATCH)

    def means(key):
        mask_key, _ = jax.random.split(key)
        return pixel_means(images, seen(mask_key, shape=images.shape))

    def measure(key, model):
        mask_key, key = jax.random.split(key)
        masks = seen(mask_key, shape=test.shape)
        return scores(imputed(model, key, test, masks), test, masks)

    runs = {
        "pixel means": means,
        "linear": partial(run, linear, jaxvae.elbo, 1e-2, LINEAR_EPOCHS),
        "VAE": partial(run, vae, partial(jaxvae.iwae, num_samples=K), 1e-3, EPOCHS),
    }
    _, trained = compare(f"missing_data/{name}", runs, measure, seeds=SEEDS)
    models = {label: of_seeds[0] for label, of_seeds in trained.items()}
    masks = seen(jax.random.key(97), shape=(SHOWN, *SHAPE))
    draw(FOLDER / f"imputations_{name}.png", models, test[:SHOWN], masks)


def main() -> None:
    data = load("binarized_mnist")
    test = jnp.asarray(data.test.images[:IMAGES]).astype(float)
    for missing in MISSING:
        compare_at(missing, jnp.asarray(data.train.images), test)


if __name__ == "__main__":
    main()
