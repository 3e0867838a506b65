"""Tokenizers of colour images: a KL autoencoder, a codebook, levels, and levels with a critic.

    python -m experiments.tokenizer photographs PHOTOGRAPHS
    python -m experiments.tokenizer emoji PACKAGE

PHOTOGRAPHS is usr/share/backgrounds/mate/nature of Debian's package mate-backgrounds 1.26.0-1:
twelve photographs, half in size, cut into 7,110 patches of 32x32 pixels to train on and 1,956 of
three photographs that are held out. PACKAGE is npm's emoji-datasource-google-16.0.0.tgz: 3,786
pictures of 64x64 pixels, one family in eight held out, alike but for the tone of the skin.

The networks of Esser, Rombach & Ommer 2021, small, end at 8x8 places, each with four numbers under
a Gaussian (KL) or one code of 1,000. One epoch of Adam, or two; what is measured is the average of
the parameters, on 500 held-out images drawn at random. Nobody has published numbers for these
images.

Ours on the photographs, mean and standard deviation over seeds 0, 1, 2, 444 steps, which is far
from converged, and 1.8 to 2.7 minutes of processor time a row on two shared x86-64 cores:

                     PSNR             SSIM              bits a number    of them for the code
    KL               21.29 +- 0.08    0.614 +- 0.013    6.80 +- 0.01     0.07
    codebook         22.33 +- 0.76    0.641 +- 0.016    6.83 +- 0.10     0.21
    levels           22.27 +- 0.62    0.622 +- 0.012    6.84 +- 0.10     0.21
    levels, critic   21.98 +- 0.15    0.674 +- 0.020    6.94 +- 0.09     0.21

On the emoji, all 463 held out, two epochs of 207 steps, 3.0 to 5.2 minutes a row:

    KL               17.99 +- 0.44    0.574 +- 0.007    7.25 +- 0.07     0.06
    codebook         17.95 +- 0.07    0.550 +- 0.013    7.23 +- 0.01     0.05
    levels           17.88 +- 0.13    0.551 +- 0.012    7.24 +- 0.02     0.05
    levels, critic   17.92 +- 0.27    0.558 +- 0.012    7.24 +- 0.04     0.05
"""

import json
import time
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

import jaxvae
from experiments.common.command import check_chosen, command
from experiments.common.evaluate import drawn, evaluate, reconstructed
from experiments.common.image_quality import psnr, ssim
from experiments.common.plotting import colour_rows
from experiments.datasets import emoji, photographs
from jaxvae import nn
from jaxvae.distributions import bits_per_dim
from jaxvae.models.quantization import FSQ, VQVAE, ema_step, init_codebook, vq
from jaxvae.regularizers import AdversarialPair, perceptual_distance, vqgan
from jaxvae.training import average_parameters, averaged_model, dequantize


class Data(NamedTuple):
    """Images, and how long and with what they are trained; networks end at a grid of 8x8."""

    load: Callable[[Path], tuple[np.ndarray, np.ndarray]]
    channels: tuple[int, ...]  # of each stage, from the image on
    epochs: int


DATA = {
    "photographs": Data(partial(photographs.arrays, side=32, shrink=2), (8, 16, 32), epochs=1),
    "emoji": Data(emoji.pictures, (8, 8, 16, 32), epochs=2),
}
GRID = (8, 8)  # places of an image
DEPTH = 1  # cells of a stage of the encoder, and one more of the decoder
GROUPS = 4  # of a norm
LATENTS = 4  # coordinates of z at a place, and of a code
LEVELS = (8, 5, 5, 5)  # of each coordinate of a code without a codebook: 1,000 codes
CODES = 1000  # in the codebook
THRESHOLD = 0.1  # uses a batch below which a code of it is drawn anew
SIGMA = 0.1  # of the likelihood, at the start; one for all pixels, learned
RATE = 2e-3  # of Adam
MOMENTS = 0.5, 0.9  # of Adam, Esser et al.'s
DECAY = 0.98  # of the average of the parameters, which is what is measured
BATCH = 16  # images a step
CRITIC = (16, 32)  # channels of the critic
PERCEPTUAL = 500.0  # nats a unit of the distance of contrasts
FLAT = 0.05  # contrast beside which a smaller one is little seen
ADVERSARIAL = 0.1  # of the critic's gradient beside that of the reconstruction,
FROM = 100  # from this step on
ROWS = 500  # held-out images that are measured, drawn at random
SEEDS = 3  # runs of each, from keys 0, 1, 2


def networks(data: Data) -> tuple[Any, Any]:
    sizes: Any = {"channels": data.channels, "depth": DEPTH, "groups": GROUPS}
    return partial(nn.ResidualEncoder, **sizes), partial(nn.ResidualDecoder, **sizes)


def kl_autoencoder(data: Data, shape: tuple[int, ...], rngs: nnx.Rngs) -> jaxvae.VAE:
    latents, (encoder, decoder) = (*GRID, LATENTS), networks(data)
    return jaxvae.VAE(
        encode=nn.Conditional(encoder, nn.NormalHead(), shape, latents, rngs=rngs),
        decode=nn.Conditional(decoder, nn.SharedScaleHead(SIGMA), latents, shape, rngs=rngs),
        prior=jaxvae.StandardNormal(latents),
    )


def with_codebook(data: Data, shape: tuple[int, ...], rngs: nnx.Rngs) -> VQVAE:
    vectors, (encoder, decoder) = (prod(GRID), LATENTS), networks(data)
    return VQVAE(
        encoder=encoder(shape, vectors, rngs=rngs),
        quantizer=init_codebook(jax.random.normal(rngs.params(), (CODES, LATENTS))),
        decoder=nn.Conditional(decoder, nn.SharedScaleHead(SIGMA), vectors, shape, rngs=rngs),
        prior=jaxvae.Constant(jaxvae.Categorical(jnp.zeros((prod(GRID), CODES)))),
    )


def with_levels(data: Data, shape: tuple[int, ...], rngs: nnx.Rngs) -> VQVAE:
    return with_codebook(data, shape, rngs)._replace(quantizer=FSQ(LEVELS))


def with_critic(data: Data, shape: tuple[int, ...], rngs: nnx.Rngs) -> AdversarialPair:
    critic = nn.PatchCritic(shape, channels=CRITIC, groups=GROUPS, rngs=rngs)
    return AdversarialPair(with_levels(data, shape, rngs), critic)


def contrasts(x: jax.Array) -> list[jax.Array]:
    """Frozen features: differences of neighbours, of the image and of it made smaller twice."""
    found = []
    for _ in range(3):
        across, down = jnp.diff(x, axis=1)[:-1], jnp.diff(x, axis=0)[:, :-1]
        found.append(jnp.concatenate([across, down, jnp.full_like(across, FLAT)], axis=-1))
        h, w, _ = x.shape
        x = x.reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3))
    return found


def game(optimizer: optax.GradientTransformation) -> Any:
    """Levels, with a distance of contrasts and a critic that is heard from a step on."""
    objective = partial(
        vqgan,
        objective=vq,
        layer=lambda model: model.decoder.network.last.kernel,
        distance=partial(perceptual_distance, contrasts),
        perceptual=PERCEPTUAL,
    )
    step = jaxvae.train_step(jaxvae.preprocessed(objective, dequantize), optimizer)
    return partial(step, adversarial=lambda t: ADVERSARIAL * (t >= FROM))


ELBO, VQ = jaxvae.preprocessed(jaxvae.elbo, dequantize), jaxvae.preprocessed(vq, dequantize)
MODELS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {  # the model, and its step
    "KL": (kl_autoencoder, partial(jaxvae.train_step, ELBO)),
    "codebook": (with_codebook, partial(ema_step, VQ, threshold=THRESHOLD)),
    "levels": (with_levels, partial(jaxvae.train_step, VQ)),
    "levels, critic": (with_critic, game),
}


def measure(model: Any, key: jax.Array, test: np.ndarray) -> dict[str, float]:
    """Of held-out images: decibels, a similarity, and bits a number of the bytes as stored."""
    key, again_key = jax.random.split(key)
    elbo, rate, _ = evaluate(model, key, test, dequantize)
    again = shown(model, again_key, test)
    numbers = {
        "PSNR": psnr(test / 255.0, again).mean(),
        "SSIM": ssim(test / 255.0, again).mean(),
        "bits": bits_per_dim(-elbo, test.shape[1:]) + 8.0,
        "bits of the code": bits_per_dim(rate, test.shape[1:]),
    }
    return {name: float(value) for name, value in numbers.items()}


def shown(model: Any, key: jax.Array, images: np.ndarray) -> np.ndarray:
    """The means of p(x|z) at codes of the images, as pixels in [0, 1]."""
    means = reconstructed(model, key, (images + 0.5) / 256.0)
    return np.clip((256.0 * np.asarray(means) - 0.5) / 255.0, 0.0, 1.0)


def main(
    data: tyro.conf.Positional[Literal["photographs", "emoji"]],
    file: tyro.conf.Positional[Path],
    models: tuple[str, ...] = tuple(MODELS),
    seeds: int = SEEDS,
) -> None:
    check_chosen("--models", models, MODELS)
    folder, of = Path("runs/tokenizer") / data, DATA[data]
    train, held_out = of.load(file)
    test = np.asarray(drawn(jax.random.key(98), held_out, ROWS))
    rows = {"held out": test[:12] / 255.0}
    print(f"{len(train)} images to train on, {len(held_out)} held out", flush=True)
    optimizer = optax.chain(optax.adam(RATE, *MOMENTS), average_parameters(DECAY))
    folder.mkdir(parents=True, exist_ok=True)
    for name in models:
        make, step_of = MODELS[name]
        epoch = jax.jit(jaxvae.train_epoch(step_of(optimizer), batch_size=BATCH))
        found, start = [], time.process_time()
        for seed in range(seeds):
            state = jaxvae.init_state(make(of, train.shape[1:], nnx.Rngs(seed)), optimizer)
            for _ in range(of.epochs):
                state, history = epoch(state, jax.random.key(seed), train)
                print({what: float(values[-50:].mean()) for what, values in history.items()})
            model = averaged_model(state)
            model = model.model if isinstance(model, AdversarialPair) else model
            found.append(measure(model, jax.random.key(1000 + seed), test))
            print(f"{name}, seed {seed}: {found[-1]}", flush=True)
            if seed == 0:
                rows[name] = shown(model, jax.random.key(1000), test[:12])
                colour_rows(folder / "reconstructions.png", rows)
        print(f"{name}: {(time.process_time() - start) / 60:.1f} minutes of processor time")
        (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    command(main, __doc__)
