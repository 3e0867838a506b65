"""Images in a folder: streamed, trained on, saved, exported; and which likelihood colours want.

    uv run --with grain --with flatbuffers python -m experiments.recipes.images PHOTOGRAPHS

PHOTOGRAPHS is usr/share/backgrounds/mate/nature of Debian's package mate-backgrounds 1.26.0-1
(`apt-get download mate-backgrounds`, then `dpkg -x`): twelve, a quarter in size, cut into 7,110
patches of 16x16 pixels to train on and 1,956 of three photographs that are held out.

A convolutional VAE, Kingma & Welling 2014, with one likelihood after the other, in bits a number of
the same bytes, of which a density has an upper bound by uniform dequantization (Theis et al. 2016).
Nobody has published numbers for these patches; what compresses them is PNG and WebP, without loss.

Ours, held out, seeds 0, 1, 2 (on two shared cores, where a run took 3 to 12 minutes):

    normal of sigma 0.1     6.35 6.36 6.35      discretized logistic      5.85 5.73 5.73
    normal, one sigma       6.18 6.15 6.10      mixture of five logistics 6.29 6.44 6.54
    normal, a sigma each    6.05 6.53 6.31      PNG, a file each patch    4.44
    continuous Bernoulli    6.82 6.81 6.86      WebP                      3.77
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import optax
import tyro
from flax import nnx

import jaxvae
from experiments.common.command import command
from experiments.common.plotting import colour_rows
from experiments.datasets.photographs import SIDE, codec_bits, patches, read
from jaxvae import distributions, nn, use
from jaxvae.evaluation import export_model
from jaxvae.training import dequantize

SHAPE = (SIDE, SIDE, 3)  # of an image
LATENT = 32  # coordinates of z
LEARNING_RATE = 2e-3  # of Adam
BATCH = 64  # images a step
EPOCHS = 10
SAMPLES = 10  # importance samples of log p(x)
SEEDS = 3
FOLDER = Path("runs/images")
CODECS = {"PNG": {"optimize": True}, "WebP": {"lossless": True, "quality": 100, "method": 6}}

real, positive = nn.Real("n"), nn.Positive("n")
mixture = nn.Real(5), nn.Real(5, "n"), nn.Positive(5, "n"), nn.Real(5, 3)
DENSITIES = {  # of floats in (0, 1)
    "normal of sigma 0.1": lambda: nn.NormalHead(0.1),
    "normal, one sigma": lambda: nn.SharedScaleHead(0.1),
    "normal, a sigma each": lambda: nn.NormalHead(),
    "continuous Bernoulli": lambda: nn.HeadOf(jaxvae.ContinuousBernoulli, (real,)),
}
PROBABILITIES = {  # of integers 0..255
    "discretized logistic": lambda: nn.HeadOf(jaxvae.DiscretizedLogistic, (real, positive)),
    "mixture of five logistics": lambda: nn.HeadOf(distributions.logistic_mixture, mixture),
}


def model_of(likelihood: str, rngs: nnx.Rngs) -> jaxvae.VAE:
    head = (DENSITIES | PROBABILITIES)[likelihood]()
    largest = 1.0 if likelihood in DENSITIES else 255.0
    encoder = partial(nn.Rescaled, nn.ConvEncoder, max_value=largest)
    return jaxvae.VAE(
        encode=nn.Conditional(encoder, nn.NormalHead(), SHAPE, (LATENT,), rngs=rngs),
        decode=nn.Conditional(nn.ConvDecoder, head, (LATENT,), SHAPE, rngs=rngs),
        prior=jaxvae.StandardNormal((LATENT,)),
    )


def stream(files: list[str], seed: int) -> Any:
    """Batches without end, shuffled anew in every turn; two threads read ahead."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4 * BATCH)
    images = grain.MapDataset.source(files).seed(seed).shuffle().repeat().map(read)
    return images.to_iter_dataset(options).batch(BATCH)


def train(likelihood: str, seed: int, files: list[str]) -> Any:
    objective = jaxvae.elbo
    if likelihood in DENSITIES:
        objective = jaxvae.preprocessed(jaxvae.elbo, dequantize)
    optimizer = optax.adam(LEARNING_RATE)
    state, history = jaxvae.fit(
        jaxvae.train_step(objective, optimizer),
        jaxvae.init_state(model_of(likelihood, nnx.Rngs(seed)), optimizer),
        jax.random.key(seed),
        stream(files, seed),
        epochs=EPOCHS,
        steps_per_epoch=len(files) // BATCH,
        checkpoints=jaxvae.Checkpoints(FOLDER / "checkpoints" / f"{likelihood}, {seed}"),
    )
    return state.model, history


def bits(likelihood: str, model: Any, key: jax.Array, images: np.ndarray) -> np.ndarray:
    """An upper bound of -log2 p of every image as stored, per number in it."""
    noise_key, key = jax.random.split(key)
    density = likelihood in DENSITIES
    if density:
        keys = jax.random.split(noise_key, len(images))
        images = np.asarray(jax.vmap(dequantize)(keys, images))
    nats = -use.score(model, key, images, num_samples=SAMPLES).iwae
    return distributions.bits_per_dim(nats, SHAPE) + 8.0 * density  # a cell has 1/256


def main(photographs: tyro.conf.Positional[str]) -> None:
    files, held_out = patches(Path(photographs), FOLDER / "patches")
    test = np.stack([read(file) for file in held_out])
    for codec, how in CODECS.items():
        each, sheet = codec_bits(test, format=codec, **how)
        print(f"{codec}: {each:.3f} bits a number in files of their own, {sheet:.3f} in one")
    results: dict[str, list[list[float]]] = {name: [] for name in DENSITIES | PROBABILITIES}
    for seed in range(SEEDS):
        for likelihood in results:
            model, history = train(likelihood, seed, files)
            last = history["loss"][-(len(files) // BATCH) :].mean()
            seen = distributions.bits_per_dim(last, SHAPE) + 8.0 * (likelihood in DENSITIES)
            found = bits(likelihood, model, jax.random.key(1000 + seed), test).mean()
            results[likelihood].append([float(found), float(seen)])
            print(f"{likelihood}, {seed}: {found:.3f} bits a number, {seen:.3f} in training")
            if seed == 0:
                nn.save_model(FOLDER / "models" / likelihood, model, about={"bits": float(found)})
    (FOLDER / "result.json").write_text(json.dumps(results))
    models = {name: nn.load_model(FOLDER / "models" / name) for name in results}
    for what in ("encode", "decode", "score"):
        export_model(FOLDER / f"{what}.stablehlo", models["discretized logistic"], what)
    order = np.argsort(test.std((1, 2)).mean(-1))  # six of the more varied half
    varied = order[len(test) // 2 :: max(len(test) // 12, 1)][:6]
    rows = {name: drawn(name, model, test[varied]) for name, model in models.items()}
    colour_rows(FOLDER / "likelihoods.png", {"held out": test[varied] / 255} | rows)


def drawn(likelihood: str, model: Any, images: np.ndarray) -> np.ndarray:
    """Means of p(x|z) at q(z|x) of images and at draws of the prior, then draws of these."""
    density = likelihood in DENSITIES
    new = jax.random.normal(jax.random.key(0), (len(images), LATENT))
    zs = np.concatenate([use.encode(model, (images + 0.5) / 256 if density else images), new])
    keys = jax.random.split(jax.random.key(1), 64)
    xs = np.stack([use.decode(model, zs, key=key) for key in keys])
    return np.concatenate([xs.mean(0), xs[0, len(images) :]]) / (1 if density else 255)


if __name__ == "__main__":
    command(main, __doc__)
