"""Which trick helps a quantizer: one table, the same networks, codes and steps for all.

    python -m experiments.prepare mnist --from DIR      # once
    python -m experiments.codes.tricks PHOTOGRAPHS      # or one of the two, --only MNIST

PHOTOGRAPHS is usr/share/backgrounds/mate/nature of Debian's package mate-backgrounds 1.26.0-1
(`apt-get download mate-backgrounds`, then `dpkg -x`): twelve, of which three are held out whole.

An image, a patch of 16x16x3 or a digit of MNIST, is 16 codes of 256: an MLP of 256 ReLU units and
its mirror, a normal of sigma 0.1, Adam 1e-3, about 700 steps of 100 images, so that this says what
helps from the start. A row "+ ..." is "VQ, k-means to start" with that changed. No published number
is on these data. Ours, of seeds 0, 1, 2, is the table of docs/quantizers.md: root mean square error
of held-out pixels, perplexity and dead codes, and bits an image under a prior counted for each
place; about 10 minutes of processor time a data set on one x86-64 core.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax.tree_util import Partial

import jaxvae
from experiments.codes.vq import BATCH, OPTIMIZER, fit
from experiments.common.command import command
from experiments.common.comparison import compare
from experiments.common.data import load
from experiments.common.plotting import BLUE, ORANGE, figure, save, styled
from experiments.datasets.photographs import patches, read
from jaxvae import nn
from jaxvae.models.quantization import (
    BSQ,
    FSQ,
    IBQ,
    LFQ,
    VQVAE,
    Grouped,
    Projected,
    ResidualCodebooks,
    ResidualFSQ,
    Rotation,
    SimVQ,
    UnitCodes,
    code_counts,
    cosine,
    ema_step,
    entropy_penalty,
    init_codebook,
    kmeans,
    orthogonal_penalty,
    perplexity,
    vq,
)
from jaxvae.models.quantization.quantizers import unit
from jaxvae.protocols import mean_of

PLACES = 16  # codes of an image
CODES = 256  # of a place, for every quantizer
DIM = 16  # coordinates of a code in a codebook
LOW = 4  # coordinates of a low-dimensional one
BITS = 8  # of a code without a codebook: 2^8 = 256
HIDDEN = (256,)  # units of encoder and decoder
SIGMA = 0.1  # of p(x|codes), a normal, with pixels in 0..1
STEPS = 700  # about, in whole epochs
IMAGES = 10_000  # to train on, at most, and to count the prior of
FIRST = 512  # images whose vectors k-means starts from
THRESHOLD = 0.25  # uses a batch below which a code is drawn anew
COOL = 0.1  # temperature of the soft assignment to bits
SEEDS = 3  # runs of each quantizer, from keys 0, 1, 2
FOLDER = Path("runs/tricks")


class Trick(NamedTuple):
    """How a quantizer is made and learns.

    Args:
      make: (key, vectors of the encoder before training [n, d]) -> quantizer.
      dim: d, coordinates of what the encoder gives.
      averages: where codes follow by moving averages, the least use of each a batch.
      choices: of one place: how many numbers its index has, and of how many each is.
      options: of `vq`.
    """

    make: Callable[[jax.Array, jax.Array], Any]
    dim: int = DIM
    averages: float | None = None
    choices: tuple[int, ...] = (CODES,)
    options: Any = None


def noise(key: jax.Array, vectors: jax.Array) -> Any:
    return init_codebook(jax.random.uniform(key, (CODES, DIM), minval=-1.0, maxval=1.0) / CODES)


def means(key: jax.Array, vectors: jax.Array, codes: int = CODES) -> Any:
    return init_codebook(kmeans(key, vectors, num_codes=codes))


def residual(key: jax.Array, vectors: jax.Array, codes: int = 16) -> ResidualCodebooks:
    """Two codebooks, the second of what the first leaves."""
    keys = jax.random.split(key)
    first = means(keys[0], vectors, codes)
    left = vectors - first.codes[jax.vmap(first)(vectors).indices]
    both = first, means(keys[1], left, codes)
    return ResidualCodebooks(jax.tree.map(lambda *leaves: jnp.stack(leaves), *both))


def grouped(key: jax.Array, vectors: jax.Array) -> Grouped:
    """Two halves, each of two codebooks of 4: 4^4 = 256."""
    halves = jnp.moveaxis(vectors.reshape(-1, 2, DIM // 2), 1, 0)
    return Grouped(jax.vmap(partial(residual, codes=4))(jax.random.split(key), halves))


def on_the_sphere(key: jax.Array, vectors: jax.Array) -> Any:
    return means(key, jax.vmap(unit)(vectors))


def low(key: jax.Array, vectors: jax.Array, of: Any = lambda codebook: codebook) -> Projected:
    """Linear maps to a few coordinates and back, and k-means there."""
    keys = jax.random.split(key, 3)
    down = Partial(jnp.matmul, jax.random.normal(keys[0], (LOW, DIM)) / DIM**0.5)
    up = Partial(jnp.matmul, jax.random.normal(keys[1], (DIM, LOW)) / LOW**0.5)
    return Projected(of(means(keys[2], jax.vmap(down)(vectors))), down, up)


def linear_map(key: jax.Array, vectors: jax.Array) -> SimVQ:
    frozen = jax.random.normal(key, (CODES, DIM)) / DIM**0.5
    return SimVQ(frozen, jnp.eye(DIM))


def entropies(quantizer: Any, z: jax.Array, q: Any, temperature: float = 1.0) -> jax.Array:
    return entropy_penalty(q, temperature=temperature)


def of_bits(quantizer: Any, z: jax.Array, q: Any) -> jax.Array:
    return entropies(quantizer, z, q, COOL)


def right_angles(quantizer: Any, z: jax.Array, q: Any) -> jax.Array:
    return CODES * orthogonal_penalty(quantizer.codes)


def double(quantizer: Any, z: jax.Array, q: Any) -> jax.Array:
    return jnp.sum((z - q.code) ** 2)


def double_and_entropies(quantizer: Any, z: jax.Array, q: Any) -> jax.Array:
    return double(quantizer, z, q) + entropies(quantizer, z, q)


WEIGHTS = {"commitment": 1.0, "codebook": 0.25}  # of IBQ
TRICKS = {
    "VQ, small noise to start": Trick(noise),
    "VQ, k-means to start": Trick(means),
    "+ rotation trick": Trick(lambda key, z: Rotation(means(key, z))),
    "+ averages": Trick(means, averages=0.0),
    "+ averages, revival": Trick(means, averages=THRESHOLD),
    "+ entropy penalty": Trick(means, options={"penalty": entropies}),
    "+ orthogonal penalty": Trick(means, options={"penalty": right_angles}),
    "+ cosine": Trick(lambda key, z: cosine(on_the_sphere(key, z))),
    "+ 4 dimensions": Trick(low),
    "+ 4 dimensions, cosine": Trick(partial(low, of=cosine)),
    "+ averages, revival, rotation, cosine": Trick(
        lambda key, z: Projected(Rotation(UnitCodes(on_the_sphere(key, z))), Partial(unit)),
        averages=THRESHOLD,
    ),
    "SimVQ": Trick(linear_map),
    "IBQ, k-means to start": Trick(
        lambda key, z: IBQ(means(key, z)), options=WEIGHTS | {"penalty": double}
    ),
    "+ entropy penalty of IBQ": Trick(
        lambda key, z: IBQ(means(key, z)), options=WEIGHTS | {"penalty": double_and_entropies}
    ),
    "residual, 2 x 16": Trick(residual, averages=THRESHOLD, choices=(2, 16)),
    "grouped residual, 2 x 2 x 4": Trick(grouped, averages=THRESHOLD, choices=(2, 2, 4)),
    "FSQ, 4 x 4 x 4 x 4": Trick(lambda key, z: FSQ((4,) * 4), dim=4),
    "FSQ, the paper's even levels": Trick(lambda key, z: FSQ((4,) * 4, shifted=True), dim=4),
    "residual FSQ, 2 of 4 x 4": Trick(
        lambda key, z: ResidualFSQ((4, 4), 2), dim=2, choices=(2, 16)
    ),
    "LFQ": Trick(lambda key, z: LFQ(BITS), dim=BITS),
    "LFQ, entropy penalty": Trick(lambda key, z: LFQ(BITS), dim=BITS, options={"penalty": of_bits}),
    "BSQ": Trick(lambda key, z: BSQ(BITS), dim=BITS),
    "BSQ, entropy penalty": Trick(lambda key, z: BSQ(BITS), dim=BITS, options={"penalty": of_bits}),
}


def run(trick: Trick, images: jax.Array, key: jax.Array) -> VQVAE:
    scale = partial(jaxvae.rescale, max_value=255.0)
    init_key, codes_key, key = jax.random.split(key, 3)
    shape, rngs, mlp = images.shape[1:], nnx.Rngs(init_key), partial(nn.MLP, hidden=HIDDEN)
    encoder = mlp(shape, (PLACES, trick.dim), rngs=rngs)
    order = jax.random.permutation(codes_key, len(images))[:FIRST]
    vectors = jax.vmap(encoder)(images[order].astype(float) / 255.0).reshape(-1, trick.dim)
    model = VQVAE(
        encoder=encoder,
        quantizer=trick.make(jax.random.fold_in(codes_key, 1), vectors),
        decoder=nn.Conditional(mlp, nn.NormalHead(SIGMA), (PLACES, trick.dim), shape, rngs=rngs),
        prior=jaxvae.Constant(jaxvae.Categorical(np.zeros((PLACES, *trick.choices), np.float32))),
    )
    objective = jaxvae.preprocessed(partial(vq, **(trick.options or {})), scale)
    step = jaxvae.train_step(objective, OPTIMIZER)
    if trick.averages is not None:
        step = ema_step(objective, OPTIMIZER, threshold=trick.averages)
    return fit(step, model, key, images, STEPS * BATCH // len(images))


def codes_of(model: VQVAE, images: jax.Array) -> jax.Array:
    """One number 0 ... CODES - 1 a place of images as stored, [n, PLACES]."""
    indices = jax.lax.map(
        lambda x: model.encode(x.astype(float) / 255.0).value, images, batch_size=BATCH
    )
    numbers = indices.reshape(len(images), PLACES, -1)
    radix = round(CODES ** (1 / numbers.shape[-1]))
    return numbers @ (radix ** jnp.arange(numbers.shape[-1]))


@jax.jit
def measure(key: Any, model: VQVAE, train: jax.Array, test: jax.Array) -> dict[str, jax.Array]:
    """Of held-out images; the prior of a place is how often training images have each code there.

    Pixels off, root mean square, of 0..255; codes in use and not, over all places; bits an image.
    """

    def squares(x: jax.Array) -> jax.Array:
        x = x.astype(float)
        return jnp.mean(
            jnp.square(255.0 * mean_of(model.decode(model.encode(x / 255.0).value)) - x)
        )

    seen, codes = codes_of(model, train), codes_of(model, test)
    used = (
        jax.vmap(partial(code_counts, num_codes=CODES), 1)(seen).astype(float) + 0.5
    )  # [PLACES, CODES]
    log2_p = jnp.log2(used / jnp.sum(used, axis=1, keepdims=True))
    counts = code_counts(codes, num_codes=CODES)
    return {
        "off": jnp.sqrt(jnp.mean(jax.lax.map(squares, test, batch_size=BATCH))),
        "perplexity": perplexity(counts),
        "dead": jnp.sum(counts == 0),
        "bits": -jnp.mean(jnp.sum(log2_p[jnp.arange(PLACES), codes], axis=1)),
    }


def photographs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    train, held_out = patches(folder, FOLDER / "patches")
    return np.stack([read(file) for file in train]), np.stack([read(file) for file in held_out])


def mnist() -> tuple[np.ndarray, np.ndarray]:
    data = load("mnist")
    return data.train.images, data.test.images


def main(
    photographs_folder: tyro.conf.Positional[Path],
    only: Literal["patches", "MNIST"] | None = None,
) -> None:
    data = {"patches": partial(photographs, photographs_folder), "MNIST": mnist}
    for name in [only] if only else data:
        train, test = map(jnp.asarray, data[name]())
        runs = {label: partial(run, trick, train[:IMAGES]) for label, trick in TRICKS.items()}
        measured = partial(measure, train=train[:IMAGES], test=test)
        compare(f"tricks/{name}", runs, measured, seeds=SEEDS)
    files = {name: FOLDER / name / "result.json" for name in data}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    for name, of_tricks in results.items():
        print(table(name, of_tricks))
    draw(FOLDER / "tricks.png", results)


def table(name: str, results: dict[str, list[dict[str, float]]]) -> str:
    """Rows of Markdown: mean and standard deviation over seeds."""
    head = f"| {name} | error, of 255 | perplexity | dead | bits |"
    lines = [head, "|---|---|---|---|---|"]
    for label, seeds in results.items():
        columns = ([seed[of] for seed in seeds] for of in ("off", "perplexity", "dead", "bits"))
        cells = (f"{np.mean(v):.1f} ± {np.std(v, ddof=1):.1f}" for v in columns)
        lines.append(" | ".join([f"| {label}", *cells]) + " |")
    return "\n".join(lines)


@styled
def draw(path: Path, results: dict[str, Any]) -> None:
    """A dot a seed: error and perplexity of every quantizer."""
    picture = figure(8.0, 0.8 + 0.21 * len(TRICKS))
    axes = picture.subplots(1, 2 * len(results), sharey=True)
    for i, (name, of_tricks) in enumerate(results.items()):
        for ax, what in zip(axes[2 * i : 2 * i + 2], ("off", "perplexity"), strict=True):
            for row, label in enumerate(TRICKS):
                seeds = of_tricks.get(label, [])
                colour = BLUE if what == "off" else ORANGE
                ax.plot([seed[what] for seed in seeds], [row] * len(seeds), "o", color=colour)
            ax.set_title(f"{name}\n" + {"off": "error, of 255"}.get(what, what))
            ax.margins(y=0.02)
    axes[0].set_yticks(range(len(TRICKS)), list(TRICKS))
    axes[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    save(picture, path)


if __name__ == "__main__":
    command(main, __doc__)
