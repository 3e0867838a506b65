"""Networks that draw codes: masked dense, PixelCNN and attention over the grid of one VQ-VAE.

    python -m experiments.prepare mnist --from DIR      # once
    python -m experiments.codes.priors

MNIST cut at half its range. A convolutional VQ-VAE, 28x28 to 7x7 codes of 32, is trained once on
5,000 images; every prior p(k) = prod_i p(k_i | k_1 ... k_{i-1}) then sees the same codes of the
same images in as many steps: a `MaskedMLP`, which takes labels for numbers; a gated PixelCNN (van
den Oord et al. 2016b), and with the class given; and causal attention. Draws of the last three come
from their caches.

It prints bits of the 49 codes of a held-out image, mean and standard deviation over seeds 0, 1, 2:

    each place alone      147.45
    masked dense          123.55 +- 0.20
    attention             103.09 +- 0.74
    PixelCNN               92.65 +- 0.30
    PixelCNN, class given  89.42 +- 0.47

(1.8 minutes of processor time, two x86-64 cores; few steps, so that no number is a limit.)
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.tree_util import Partial

import jaxvae
from experiments.common.command import command
from experiments.common.comparison import compare
from experiments.common.data import load
from experiments.common.evaluate import drawn
from experiments.common.plotting import image_rows
from jaxvae import nn
from jaxvae.evaluation import tempered, top_k
from jaxvae.models.quantization import VQVAE, ema_step, init_codebook, vq
from jaxvae.protocols import mean_of

SHAPE = (28, 28, 1)  # of an image
GRID = (7, 7)  # codes of an image
PLACES = GRID[0] * GRID[1]
CODES = 32  # in the codebook that the places share
DIM = 8  # coordinates of a code
CHANNELS = (16, 32)  # of the convolutions, 28 to 14 to 7, and back
CLASSES = 10
IMAGES = 5000  # to train on, of 60,000
TESTS = 2000  # of 10,000
BATCH = 32  # images a step
MODEL_EPOCHS = 4
MODEL_OPTIMIZER = optax.adam(1e-3)
PRIOR_EPOCHS = 5
PRIOR_OPTIMIZER = optax.adam(2e-3)
SEEDS = 3  # runs of each prior, from keys 0, 1, 2
TEMPERATURE = 0.8  # of the draws that are cut,
LARGEST = 8  # to so many labels a place
FOLDER = Path("runs/priors")


class Encoder(nnx.Module):
    """An image -> a vector of each place, [49, DIM]."""

    def __init__(self, *, rngs: nnx.Rngs):
        n, m = CHANNELS
        self.first, self.second = nn.Down(1, n, rngs=rngs), nn.Down(n, m, rngs=rngs)
        self.last = nn.Convolution(m, DIM, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(self.second(jax.nn.relu(self.first(x))))
        return self.last(h).reshape(PLACES, DIM)


class Decoder(nnx.Module):
    """The codes of all places -> p(x|k)."""

    def __init__(self, *, rngs: nnx.Rngs):
        n, m = CHANNELS
        self.first = nn.Convolution(DIM, m, size=3, rngs=rngs)
        self.second, self.last = nn.Up(m, n, (14, 14), rngs=rngs), nn.Up(n, 1, (28, 28), rngs=rngs)

    def __call__(self, codes: jax.Array) -> jaxvae.Bernoulli:
        h = jax.nn.relu(self.first(codes.reshape(*GRID, DIM)))
        return jaxvae.Bernoulli(self.last(jax.nn.relu(self.second(h))))


def make_model(key: jax.Array) -> VQVAE:
    rngs = nnx.Rngs(key)
    codes = jax.random.uniform(rngs.params(), (CODES, DIM), minval=-1.0, maxval=1.0) / CODES
    uniform = jaxvae.Constant(jaxvae.Categorical(np.zeros((PLACES, CODES), np.float32)))
    return VQVAE(Encoder(rngs=rngs), init_codebook(codes), Decoder(rngs=rngs), uniform)


def in_black_and_white(key: Any, image: jax.Array) -> jax.Array:
    del key
    return (image > 127).astype(float)


def as_numbers(net: Any, k: jax.Array, context: None) -> jax.Array:
    """Logits of a network whose inputs are real, by labels on [-1, 1]."""
    return net(2.0 * k / (CODES - 1) - 1.0, context)


# each prior of the class of an image, (rngs) -> (y -> p(k|y)), most of which do not look at it
def masked(rngs: nnx.Rngs) -> Any:
    return Partial(as_numbers, nn.MaskedMLP(PLACES, CODES, hidden=(256, 256), rngs=rngs))


def pixel_cnn(rngs: nnx.Rngs, context: int = 0) -> Any:
    return nn.PixelCNN(GRID, CODES, width=24, depth=3, context=context, rngs=rngs)


def attention(rngs: nnx.Rngs) -> Any:
    return nn.CausalTransformer(PLACES, CODES, width=32, rngs=rngs)


NETWORKS = {
    "masked dense": masked,
    "PixelCNN": pixel_cnn,
    "PixelCNN, class given": partial(pixel_cnn, context=CLASSES),
    "attention": attention,
}


def prior_of(net: Any, y: jax.Array | int) -> jaxvae.Autoregressive:
    """p(k), or p(k|y) if the network takes a context."""
    context = jax.nn.one_hot(y, CLASSES) if getattr(net, "context", 0) else None
    return jaxvae.Autoregressive(net, jaxvae.Categorical, PLACES, context)


def log_prior(net: Any, key: Any, pair: Any) -> tuple[jax.Array, None]:
    del key
    k, y = pair
    return prior_of(net, y).log_prob(k), None


def fit(step: Any, optimizer: Any, model: Any, key: jax.Array, data: Any, epochs: int) -> Any:
    """A whole run: the trained model."""
    epoch = jaxvae.train_epoch(step, batch_size=BATCH)
    state = jaxvae.init_state(model, optimizer)
    state, _ = jax.lax.scan(lambda state, _: epoch(state, key, data), state, length=epochs)
    return state.model


@jax.jit
def train_model(images: jax.Array, key: jax.Array) -> VQVAE:
    """Codes follow by moving averages, and those that hardly serve are drawn anew."""
    init_key, key = jax.random.split(key)
    objective = jaxvae.preprocessed(vq, in_black_and_white)
    step = ema_step(objective, MODEL_OPTIMIZER, threshold=0.5)
    return fit(step, MODEL_OPTIMIZER, make_model(init_key), key, images, MODEL_EPOCHS)


def run(make: Any, codes: Any, key: jax.Array) -> Any:
    """A whole run of a prior's network, a pure function of its key."""
    init_key, key = jax.random.split(key)
    step = jaxvae.train_step(log_prior, PRIOR_OPTIMIZER)
    return fit(step, PRIOR_OPTIMIZER, make(nnx.Rngs(init_key)), key, codes, PRIOR_EPOCHS)


@jax.jit
def codes_of(model: VQVAE, images: jax.Array) -> jax.Array:
    """The codes of images as stored, [n, places]."""

    def encode(image: jax.Array) -> jax.Array:
        return model.encode(in_black_and_white(None, image)).value

    return jax.lax.map(encode, images, batch_size=BATCH)


def each_alone(train: jax.Array, test: jax.Array) -> float:
    """Bits of test codes if every place has frequencies of its own, one count added to each."""
    counts = 1.0 + np.sum(np.asarray(train)[..., None] == np.arange(CODES), axis=0)
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    return float(np.mean(np.sum(bits[np.arange(PLACES), np.asarray(test)], axis=1)))


def main() -> None:
    data = load("mnist")
    rows = data.train.images, data.train.labels
    images, labels = drawn(jax.random.key(97), rows, IMAGES)
    rows = data.test.images, data.test.labels
    test, test_labels = drawn(jax.random.key(98), rows, TESTS)
    model = train_model(images, jax.random.key(0))
    codes, held_out = codes_of(model, images), codes_of(model, test)
    used = len(np.unique(held_out))
    print(f"{used} of {CODES} codes in use; each alone {each_alone(codes, held_out):.2f} bits")

    @jax.jit
    def measure(key: jax.Array, net: Any) -> jax.Array:
        log_ps = jax.lax.map(
            lambda pair: log_prior(net, key, pair)[0], (held_out, test_labels), batch_size=100
        )
        return -jnp.mean(log_ps) / jnp.log(2.0)

    runs = {name: partial(run, make, (codes, labels)) for name, make in NETWORKS.items()}
    trained = compare("priors", runs, measure, seeds=SEEDS, unit="bits")
    draw_images(FOLDER / "draws.png", model, trained.firsts, test)


def draw_images(path: Path, model: VQVAE, nets: dict[str, Any], test: jax.Array) -> None:
    """Draws of each prior, decoded, from the same keys, two of each class where it is given."""
    keys, ys = jax.random.split(jax.random.key(7), 20), jnp.arange(20) // 2 % CLASSES

    @partial(jax.jit, static_argnames="cut")
    def pictures(net: Any, cut: bool) -> jax.Array:
        def one(key: jax.Array, y: jax.Array) -> jax.Array:
            prior = prior_of(net, y)
            if cut:
                prior = top_k(tempered(prior, TEMPERATURE), LARGEST)
            return mean_of(model.decode(prior.sample(key)))

        return jax.vmap(one)(keys, ys)

    of_codes = jax.vmap(lambda k: mean_of(model.decode(k)))(codes_of(model, test[:20]))
    rows = {"test images, by their codes": of_codes}
    for name, net in nets.items():
        rows[name] = pictures(net, cut=False)
    for name in ("PixelCNN, class given", "attention"):
        rows[f"{name}, T = {TEMPERATURE}, top {LARGEST}"] = pictures(nets[name], cut=True)
    image_rows(path, rows)


if __name__ == "__main__":
    command(main, __doc__)
